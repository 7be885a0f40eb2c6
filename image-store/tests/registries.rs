//! Registries and mirrors as the world has them: odd answers do no harm where the bytes are right.

mod support;

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use cofferdam_image_store::{Auth, Config, RegistryConfig, Store, StoreError};
use support::image::{Image, Packing, Tar, gzip};
use support::{Answer, Door, Fault, Registry, header, root, scratch};

fn noise(length: usize, mut state: u64) -> Vec<u8> {
    let next = |_| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    (0..length).map(next).collect()
}

/// An image of one layer, whose blob has a little more than `bytes`.
fn image(bytes: usize) -> Image {
    Image::new(vec![Tar::default().file("f", &noise(bytes, 1)).layer(Packing::Gzip)])
}

async fn pull(config: Config, reference: &str, auth: Option<Auth>) -> Result<String, StoreError> {
    Store::open(config).unwrap().pull(reference, auth).await
}

fn mirrored(registry: &Registry, dir: &Path, mirrors: &[String]) -> Config {
    let mut config = registry.config(dir);
    let settings = config.registries.get_mut(&registry.address).unwrap();
    settings.mirrors = mirrors.to_vec();
    config
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_is_whole_when_all_bytes_are_there() {
    if !root() {
        return;
    }
    for size in [1000, 400_000] {
        let (dir, registry) = (scratch(), Registry::start().await);
        let image = image(size);
        let reference = registry.add("a/b:c", &image);
        let blob = image.layers[0].clone();
        let path = format!("/v2/a/b/blobs/{}", blob.digest());
        registry
            .hook(move |request| (request.uri().path() == path).then(|| Answer::new(200, blob.bytes.clone()).broken()));
        pull(registry.config(dir.path()), &reference, None).await.unwrap();
        let asked = registry.log().iter().filter(|line| line.contains(&image.layers[0].digest().to_string())).count();
        assert_eq!(asked, 1, "{size}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_answers_to_ranges_are_got_over() {
    if !root() {
        return;
    }
    let image = image(600_000);
    let blob = image.layers[0].bytes.clone();
    type Odd = fn(&Bytes, usize) -> Answer;
    let cases: [(&str, Odd); 9] = [
        ("416", |b, _| Answer::new(416, "").with("content-range", format!("bytes */{}", b.len()))),
        ("400", |_, _| Answer::new(400, "<Error><Code>InvalidRange</Code></Error>")),
        ("405", |_, _| Answer::new(405, "")),
        ("501", |_, _| Answer::new(501, "")),
        ("part without its range", |b, at| Answer::new(206, b.slice(at..))),
        ("whole called a part", |b, _| Answer::new(206, b.clone())),
        ("an earlier part", |b, at| {
            let (at, end) = (at - 1000, b.len() - 1);
            Answer::new(206, b.slice(at..)).with("content-range", format!("bytes {at}-{end}/{}", b.len()))
        }),
        ("a later part", |b, at| {
            let (at, end) = (at + 1000, b.len() - 1);
            Answer::new(206, b.slice(at..)).with("content-range", format!("bytes {at}-{end}/{}", b.len()))
        }),
        ("whole", |b, _| Answer::new(200, b.clone())),
    ];
    for (case, odd) in cases {
        let (dir, registry) = (scratch(), Registry::start().await);
        let reference = registry.add("a/b:c", &image);
        let (path, blob) = (format!("/v2/a/b/blobs/{}", image.layers[0].digest()), blob.clone());
        let mut first = true;
        registry.hook(move |request| {
            if request.uri().path() != path {
                return None;
            }
            if std::mem::take(&mut first) {
                return Some(Answer::new(200, blob.slice(..300_000)).broken());
            }
            let range = header(request, "range").strip_prefix("bytes=")?.strip_suffix('-')?;
            Some(odd(&blob, range.parse().unwrap()))
        });
        let result = pull(registry.config(dir.path()), &reference, None).await;
        if case == "501" {
            // It says that it cannot do it now: that is no answer to the range.
            assert!(matches!(result, Err(StoreError::Unavailable { .. })), "{case}: {result:?}");
        } else {
            result.unwrap_or_else(|e| panic!("{case}: {}", e.chain()));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registries_say_when_to_come_again() {
    if !root() {
        return;
    }
    let soon = || httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(1));
    let image = image(10);
    for (case, status, value, pulled) in [
        ("seconds", 429, "1".to_owned(), true),
        ("date", 503, soon(), true),
        ("past", 429, "Sun, 06 Nov 1994 08:49:37 GMT".into(), true),
        ("an hour", 429, "3600".into(), false),
        ("rubbish", 503, "later".into(), true),
    ] {
        for path in ["/manifests/", "/blobs/"] {
            let (dir, registry) = (scratch(), Registry::start().await);
            let reference = registry.add("a/b:c", &image);
            let value = value.clone();
            let mut first = true;
            registry.hook(move |request| {
                if !request.uri().path().contains(path) || !(std::mem::take(&mut first) || value == "3600") {
                    return None;
                }
                let words = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"rate exceeded"}]}"#;
                Some(Answer::new(status, words).with("retry-after", value.clone()))
            });
            let begun = Instant::now();
            let result = pull(registry.config(dir.path()), &reference, None).await;
            if pulled {
                result.unwrap_or_else(|e| panic!("{case}: {}", e.chain()));
                assert!(case != "seconds" || begun.elapsed() >= Duration::from_secs(1), "{case}: came too early");
            } else {
                let error = result.unwrap_err();
                assert!(matches!(error, StoreError::Unavailable { .. }), "{case}: {error:?}");
                let text = error.to_string();
                assert!(text.contains("rate exceeded") && text.contains("3600 s"), "{case}: {text}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_that_sends_rubbish_is_passed_over() {
    if !root() {
        return;
    }
    // A blob that is held until it is right, and one that is not.
    for size in [1000, 600_000] {
        let image = image(size);
        let same_length = Bytes::from(noise(image.layers[0].bytes.len(), 7));
        let page = || Answer::new(200, "<html>log in first</html>").with("content-type", "text/html");
        type Rubbish = Box<dyn Fn(&Bytes) -> Answer + Send>;
        let cases: Vec<(&str, Rubbish)> = vec![
            ("page", Box::new(move |_| page())),
            ("page in chunks", Box::new(move |_| page().broken())),
            ("nothing", Box::new(|_| Answer::new(200, ""))),
            ("other bytes", Box::new(|same: &Bytes| Answer::new(200, same.clone()))),
            ("redirect to nowhere", Box::new(|_| Answer::new(307, ""))),
            ("redirect to no web", Box::new(|_| Answer::new(307, "").with("location", "ftp://x/y"))),
            ("teapot", Box::new(|_| Answer::new(418, ""))),
            ("trouble", Box::new(|_| Answer::new(503, ""))),
        ];
        for (case, rubbish) in cases {
            for part in ["/manifests/", "/blobs/"] {
                let (dir, registry, mirror) = (scratch(), Registry::start().await, Registry::start().await);
                let reference = registry.add("a/b:c", &image);
                mirror.add("a/b:c", &image);
                let answer = rubbish(&same_length);
                let answer = Arc::new(Mutex::new(answer));
                mirror.hook(move |request| {
                    let answer = answer.lock().unwrap();
                    let copy = Answer {
                        status: answer.status,
                        headers: answer.headers.clone(),
                        body: answer.body.clone(),
                        broken: answer.broken,
                    };
                    request.uri().path().contains(part).then_some(copy)
                });
                let config = mirrored(&registry, dir.path(), &[format!("http://{}", mirror.address)]);
                let result = pull(config, &reference, None).await;
                assert_eq!(result.map_err(|e| e.chain()), Ok(image.id()), "{case} for {part} of {size}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_that_hangs_is_paid_for_once() {
    if !root() {
        return;
    }
    let (dir, registry) = (scratch(), Registry::start().await);
    let layers = (0..6).map(|i| Tar::default().file("f", &noise(1000, i)).layer(Packing::Gzip)).collect();
    let image = Image::new(layers);
    let reference = registry.add("a/b:c", &image);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let hanging = format!("http://{}", listener.local_addr().unwrap());
    let connections = Arc::new(AtomicUsize::new(0));
    let counter = connections.clone();
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            counter.fetch_add(1, Relaxed);
            kept.push(stream);
        }
    });
    let mut config = mirrored(&registry, dir.path(), &[hanging]);
    config.timeouts.mirror = Duration::from_millis(100);
    pull(config, &reference, None).await.unwrap();
    assert_eq!(connections.load(Relaxed), 1);
    // One that fails again and again is not asked for each layer either.
    let failing = Registry::start().await;
    failing.hook(|_| Some(Answer::new(503, "")));
    let config = mirrored(&registry, dir.path(), &[format!("http://{}", failing.address)]);
    let store = Store::open(config).unwrap();
    store.remove(&reference).await.unwrap();
    store.pull(&reference, None).await.unwrap();
    assert_eq!(failing.log().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_mirror_is_waited_for_when_it_is_all_there_is() {
    if !root() {
        return;
    }
    let (dir, registry) = (scratch(), Registry::start().await);
    let image = image(10);
    let reference = registry.add("a/b:c", &image);
    // The registry itself cannot be reached; its mirror answers late.
    let mut config = mirrored(&registry, dir.path(), &[format!("http://{}", registry.address)]);
    let name = "127.0.0.1:1".to_owned();
    let settings = config.registries.remove(&registry.address).unwrap();
    config.registries.insert(name.clone(), settings);
    config.timeouts.mirror = Duration::from_millis(150);
    registry.hook(|_| {
        std::thread::sleep(Duration::from_millis(400));
        None
    });
    pull(config, &reference.replace(&registry.address, &name), None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_without_progress_names_the_registry() {
    let (dir, registry) = (scratch(), Registry::start().await);
    let image = image(600_000);
    let reference = registry.add("a/b:c", &image);
    registry.fault(&image.layers[0].digest().to_string(), Fault::Stall(0), 1000);
    let mut config = registry.config(dir.path());
    config.timeouts.progress = Duration::from_millis(300);
    let error = pull(config, &reference, None).await.unwrap_err().to_string();
    assert!(error.contains("no progress within 300ms") && error.contains(&registry.address), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn encoded_documents_are_decoded() {
    if !root() {
        return;
    }
    let image = image(10);
    let raw = |bytes: &[u8]| bytes.to_vec();
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 3).unwrap();
    type Encode<'a> = &'a dyn Fn(&[u8]) -> Vec<u8>;
    let cases: [(&str, Encode<'_>, bool); 6] = [
        ("gzip", &gzip, true),
        ("x-gzip", &gzip, true),
        ("zstd", &zstd, true),
        // Labelled wrongly: the bytes are as they should be.
        ("gzip", &raw, true),
        ("br", &raw, true),
        ("gzip", &|_| gzip(&vec![b' '; 8 << 20]), false),
    ];
    for (label, encode, right) in cases {
        for digest_known in [true, false] {
            let (dir, registry) = (scratch(), Registry::start().await);
            registry.content().announces = digest_known;
            let reference = registry.add("a/b:c", &image);
            let (manifest, config) = (encode(&image.manifest()), encode(&image.config()));
            let (of_config, kind) = (format!("blobs/{}", image.id()), image.manifest_type());
            registry.hook(move |request| {
                let path = request.uri().path();
                let body = match path {
                    path if path.contains("/manifests/") => manifest.clone(),
                    path if path.ends_with(&of_config) => config.clone(),
                    _ => return None,
                };
                Some(Answer::new(200, body).with("content-encoding", label).with("content-type", kind))
            });
            let result = pull(registry.config(dir.path()), &reference, None).await;
            match right {
                true => assert_eq!(result.map_err(|e| e.chain()), Ok(image.id()), "{label}"),
                false => assert!(matches!(result, Err(StoreError::TooLarge { .. })), "{label}: {result:?}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_redirected_to_gives_its_own_token() {
    if !root() {
        return;
    }
    let (dir, front, back) = (scratch(), Registry::start().await, Registry::start().await);
    let image = image(10);
    back.add("a/b:c", &image);
    back.content().door = Door::Bearer(None);
    front.content().door = Door::Basic("Basic dTpw");
    let to = back.address.clone();
    front.hook(move |request| {
        let location = format!("http://{to}{}", request.uri());
        (header(request, "authorization") == "Basic dTpw").then(|| Answer::new(307, "").with("location", location))
    });
    let auth = || Auth::from_cri("u", "p", "", "", "");
    let reference = format!("{}/a/b:c", front.address);
    pull(front.config(dir.path()), &reference, auth()).await.unwrap();
    let seen = back.log();
    assert!(!seen.iter().any(|line| line.contains("Basic")), "credentials went elsewhere: {seen:?}");
    assert_eq!(seen.iter().filter(|line| line.contains("/token")).count(), 1, "{seen:?}");
    assert!(!front.log().iter().any(|line| line.contains("good-token")), "a token went elsewhere");
    // One that wants more than an anonymous token does not get the credentials.
    back.content().door = Door::Bearer(Some("Basic dTpw"));
    let error = pull(front.config(dir.path()), &reference, auth()).await.unwrap_err();
    assert!(matches!(error, StoreError::Unauthorized { .. }), "{error:?}");
    assert!(!back.log().iter().any(|line| line.contains("Basic")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn challenges_come_in_any_number_and_order() {
    if !root() {
        return;
    }
    let image = image(10);
    let auth = || Auth::from_cri("u", "p", "", "", "");
    let good = "Bearer realm=\"http://HOST/token\",service=\"s\"";
    let dead = "Bearer realm=\"http://127.0.0.1:1/token\"";
    for (headers, auth, basic) in [
        (vec!["Basic realm=\"x\", BEARER"], None, false),
        (vec!["Negotiate, NTLM", "Basic realm=\"x\", BEARER"], auth(), false),
        (vec!["Basic realm=\"x\"", "BEARER"], None, false),
        (vec!["Digest realm=\"a, Basic b\"", "basic realm=\"x, Bearer y\""], auth(), true),
        (vec![dead, "BASIC"], auth(), true),
        (vec!["Bearer service=\"no realm\"", "BEARER"], None, false),
        (vec![dead, "BEARER"], None, false),
    ] {
        let (dir, registry) = (scratch(), Registry::start().await);
        let reference = registry.add("a/b:c", &image);
        let host = registry.address.clone();
        let sent: Vec<String> = headers.iter().map(|h| h.replace("BEARER", good).replace("HOST", &host)).collect();
        registry.hook(move |request| {
            if request.uri().path() == "/token" {
                return Some(Answer::new(200, r#"{"access_token":"t","expires_in":"soon"}"#));
            }
            let wanted = if basic { "Basic dTpw" } else { "Bearer t" };
            if header(request, "authorization") == wanted {
                return None;
            }
            let answer = Answer::new(401, "{}");
            Some(sent.iter().fold(answer, |answer, value| answer.with("www-authenticate", value.clone())))
        });
        let result = pull(registry.config(dir.path()), &reference, auth).await;
        assert_eq!(result.map_err(|e| e.chain()), Ok(image.id()), "{headers:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_services_of_all_kinds_are_taken() {
    if !root() {
        return;
    }
    let image = image(10);
    let refresh = || Auth::from_cri("", "", "", "r3fresh", "");
    let password = || Auth::from_cri("u", "p", "", "", "");
    // By its method, whether it lets in; what is asked of both.
    for (case, auth, get, post) in [
        ("refresh by POST", refresh(), false, true),
        ("refresh by GET", refresh(), true, false),
        ("password by GET", password(), true, false),
        ("password by POST", password(), false, true),
    ] {
        let (dir, registry) = (scratch(), Registry::start().await);
        let reference = registry.add("a/b:c", &image);
        let host = registry.address.clone();
        let scopes = Arc::new(Mutex::new(Vec::new()));
        let seen = scopes.clone();
        registry.hook(move |request| {
            let path = request.uri().path();
            if path == "/moved" {
                let allowed = if request.method() == "GET" { get } else { post };
                seen.lock().unwrap().push(request.uri().query().unwrap_or_default().to_owned());
                return Some(match allowed {
                    true => Answer::new(200, r#"{"token":"","access_token":"t"}"#),
                    false => Answer::new(405, ""),
                });
            }
            if path == "/token" && request.method() == "GET" {
                return Some(
                    Answer::new(302, "").with("location", format!("/moved?{}", request.uri().query().unwrap())),
                );
            }
            if path == "/token" {
                let form = String::from_utf8_lossy(request.body()).into_owned();
                assert!(form.contains("service=of+us") && form.contains("client_id="), "{form}");
                return Some(if post { Answer::new(200, r#"{"token":"t"}"#) } else { Answer::new(405, "") });
            }
            if header(request, "authorization") == "Bearer t" {
                return None;
            }
            let value =
                format!("Bearer realm=\"http://{host}/token\",service=\"of us\",scope=\"repository:a:pull x:y:z\"");
            Some(Answer::new(401, "").with("www-authenticate", value))
        });
        let result = pull(registry.config(dir.path()), &reference, auth).await;
        assert_eq!(result.map_err(|e| e.chain()), Ok(image.id()), "{case}");
        let scopes = scopes.lock().unwrap();
        assert!(scopes.iter().all(|q| q.matches("scope=").count() == 2 && q.contains("service=of")), "{scopes:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_repeat_the_registrys_words() {
    let (dir, registry) = (scratch(), Registry::start().await);
    let reference = registry.add("a/b:c", &image(10));
    for (status, kind, body, words) in [
        (
            403,
            "application/json",
            r#"{"errors":[{"code":"DENIED","message":"plan has ended"}]}"#,
            "DENIED plan has ended",
        ),
        (403, "application/json", r#"{"message":"plan has ended"}"#, "plan has ended"),
        (401, "application/json", r#"{"details":"bad key"}"#, "bad key"),
        (500, "text/plain", "out of\ncheese", "out of cheese"),
        (502, "text/html", "<html><title>Bad Gateway</title><p>upstream", "Bad Gateway upstream"),
        (400, "application/json", r#"{"error":"invalid_request","error_description":"no scope"}"#, "no scope"),
    ] {
        registry.hook(move |_| Some(Answer::new(status, body).with("content-type", kind)));
        let error = pull(registry.config(dir.path()), &reference, None).await.unwrap_err().chain();
        assert!(error.contains(words), "{error}");
        // And a token service's.
        let host = registry.address.clone();
        registry.hook(move |request| {
            if request.uri().path() == "/token" {
                return Some(Answer::new(status, body).with("content-type", kind));
            }
            Some(Answer::new(401, "").with("www-authenticate", format!("Bearer realm=\"http://{host}/token\"")))
        });
        let error = pull(registry.config(dir.path()), &reference, None).await.unwrap_err().chain();
        assert!(error.contains(words) && error.contains("token service"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unchanged_tag_costs_a_head() {
    if !root() {
        return;
    }
    let (dir, registry) = (scratch(), Registry::start().await);
    let (old, new) = (image(10), image(20));
    let reference = registry.add("a/b:c", &old);
    let store = Store::open(registry.config(dir.path())).unwrap();
    store.pull(&reference, None).await.unwrap();
    let by_digest = store.list().unwrap()[0].repo_digests[0].clone();
    registry.log();
    for name in [&reference, &by_digest] {
        assert_eq!(store.pull(name, None).await.unwrap(), old.id());
        let log = registry.log();
        assert!(log.len() == 1 && log[0].starts_with("HEAD "), "{log:?}");
    }
    // The tag moves.
    registry.add("a/b:c", &new);
    assert_eq!(store.pull(&reference, None).await.unwrap(), new.id());
    assert_eq!(store.status(&reference).unwrap().unwrap().id, new.id());
    // Registries that do not answer HEAD, or without a digest, are asked by GET.
    for answer in [405, 404, 500, 200] {
        registry.hook(move |request| (request.method() == "HEAD").then(|| Answer::new(answer, "")));
        assert_eq!(store.pull(&reference, None).await.unwrap(), new.id(), "{answer}");
    }
    // A digest that is announced and not served.
    registry.hook(|request| {
        let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        (request.method() == "HEAD").then(|| Answer::new(200, "").with("docker-content-digest", digest))
    });
    assert_eq!(store.pull(&reference, None).await.unwrap(), new.id());
    // Who may not have it does not get it for being there.
    registry.content().hook = None;
    registry.content().door = Door::Basic("Basic dTpw");
    assert!(matches!(store.pull(&reference, None).await, Err(StoreError::Unauthorized { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mirrors_are_told_the_registry_and_have_logins_of_their_own() {
    if !root() {
        return;
    }
    let (dir, registry, mirror) = (scratch(), Registry::start().await, Registry::start().await);
    let image = image(10);
    let reference = registry.add("a/b:c", &image);
    mirror.add("a/b:c", &image);
    let mut config = mirrored(&registry, dir.path(), &[format!("http://m:s%40@{}", mirror.address)]);
    config.registries.get_mut(&registry.address).unwrap().mirrors_only = true;
    let query = format!("ns={}", registry.address.replace(':', "%3A"));
    mirror.hook(move |request| {
        if request.uri().query() != Some(&query) {
            return Some(Answer::new(404, ""));
        }
        // m:s@
        (header(request, "authorization") != "Basic bTpzQA==")
            .then(|| Answer::new(401, "").with("www-authenticate", "Basic realm=x"))
    });
    pull(config, &reference, Auth::from_cri("u", "p", "", "", "")).await.unwrap();
    assert!(mirror.log().iter().all(|line| !line.contains("dTpw")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_go_to_the_server_that_they_name() {
    if !root() {
        return;
    }
    let (dir, registry, mirror) = (scratch(), Registry::start().await, Registry::start().await);
    let image = image(10);
    let reference = registry.add("a/b:c", &image);
    mirror.add("a/b:c", &image);
    let auth = |server: &str| Some(Auth::from_cri("u", "p", "", "", "").unwrap().for_server(server));
    for door in [&registry, &mirror] {
        door.content().door = Door::Basic("Basic dTpw");
    }
    let config = || mirrored(&registry, dir.path(), &[format!("http://{}", mirror.address)]);
    let sees = |registry: &Registry| registry.log().iter().any(|line| line.contains("Basic"));
    let own = format!("https://{}/v2/", registry.address);
    for (server, pulled, at_registry, at_mirror) in [
        ("", true, true, false),
        (own.as_str(), true, true, false),
        (mirror.address.as_str(), true, false, true),
        ("other.example", false, false, false),
    ] {
        let store = Store::open(config()).unwrap();
        let result = store.pull(&reference, auth(server)).await;
        assert_eq!(result.is_ok(), pulled, "{server}: {result:?}");
        assert_eq!((sees(&registry), sees(&mirror)), (at_registry, at_mirror), "{server}");
        store.remove(&reference).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_on_loopback_needs_no_settings() {
    if !root() {
        return;
    }
    let (dir, registry) = (scratch(), Registry::start().await);
    let image = image(10);
    let reference = registry.add("a/b:c", &image);
    for name in [reference.clone(), reference.replace("127.0.0.1", "localhost")] {
        let mut config = registry.config(dir.path());
        config.registries.clear();
        assert_eq!(pull(config, &name, None).await.map_err(|e| e.chain()), Ok(image.id()), "{name}");
    }
    // Who says that it has TLS gets no less.
    let mut config = registry.config(dir.path());
    let settings = RegistryConfig { ca_files: vec!["/dev/null".into()], ..RegistryConfig::default() };
    config.registries = [(registry.address.clone(), settings)].into();
    assert!(pull(config, &reference, None).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_blobs_come_in_parts_where_the_registry_sends_them() {
    if !root() {
        return;
    }
    let image = Image::new(vec![Tar::default().file("f", &noise(9 << 20, 1)).layer(Packing::Plain)]);
    let blob = image.layers[0].bytes.clone();
    let digest = image.layers[0].digest().to_string();
    let size = blob.len();
    type Odd = fn(&Bytes, usize, usize) -> Answer;
    let right: Odd = |blob, from, to| {
        let range = format!("bytes {from}-{}/{}", to - 1, blob.len());
        Answer::new(206, blob.slice(from..to)).with("content-range", range)
    };
    let cases: [(&str, Odd); 5] = [
        ("parts", right),
        ("whole", |blob, _, _| Answer::new(200, blob.clone())),
        ("refused", |_, _, _| Answer::new(416, "")),
        ("other parts", |blob, from, to| {
            let range = format!("bytes {}-{}/{}", from + 1, to - 1, blob.len());
            Answer::new(206, blob.slice(from + 1..to)).with("content-range", range)
        }),
        ("broken", |blob, from, to| {
            let range = format!("bytes {from}-{}/{}", to - 1, blob.len());
            Answer::new(206, blob.slice(from..to - 1)).with("content-range", range).broken()
        }),
    ];
    for (case, odd) in cases {
        let (dir, registry) = (scratch(), Registry::start().await);
        let reference = registry.add("a/b:c", &image);
        let (path, blob, mut left) = (format!("/v2/a/b/blobs/{digest}"), blob.clone(), 3);
        registry.hook(move |request| {
            let (from, to) = header(request, "range").strip_prefix("bytes=")?.split_once('-')?;
            let (from, to) = (from.parse().unwrap(), to.parse::<usize>().ok()? + 1);
            if request.uri().path() != path {
                return None;
            }
            // A connection that breaks is no reason to give parts up.
            left -= 1;
            Some(if case == "broken" && left < 0 { right(&blob, from, to) } else { odd(&blob, from, to) })
        });
        let mut config = registry.config(dir.path());
        config.parallel_blob_bytes = 1 << 20;
        let store = Store::open(config).unwrap();
        let result = store.pull(&reference, None).await;
        assert_eq!(result.map_err(|e| e.chain()), Ok(image.id()), "{case}");
        assert_eq!(store.received_bytes(), (size) as u64, "{case}");
        let log: Vec<_> = registry.log().into_iter().filter(|line| line.contains(&digest)).collect();
        let whole = log.iter().filter(|line| !line.contains("bytes=")).count();
        assert_eq!(whole, usize::from(!matches!(case, "parts" | "broken")), "{case}: {log:?}");
        assert!(case != "parts" || log.len() == size.div_ceil(2 << 20), "{case}: {log:?}");
    }
}
