use super::super::place::Scheme;
use super::*;

fn read(text: &str, registry: &str) -> Result<Vec<Place>, String> {
    parse(Path::new("/etc/certs.d/x/hosts.toml"), text, registry)
}

fn url(place: &Place) -> String {
    let scheme = if place.scheme == Scheme::Https { "https" } else { "http" };
    format!("{scheme}://{}{}", place.host, place.root)
}

#[test]
fn hosts_come_in_the_order_of_the_file_and_the_server_last() {
    let text = r#"
        server = "https://registry-1.docker.io"
        capabilities = ["pull"]

        [host."https://z.example/cache/"]
        capabilities = ["Pull", "resolve", "push"]
        ca = "ca.pem"
        dial_timeout = "1m30s"
        unknown = "is left out"

        [host."https://b.example".header]
        X-One = "1"
        x-more = ["2", "3"]

        [host."http://a.example:5000/v2/project"]
        override_path = true
        skip_verify = true
        client = [["c.cert", "/c.key"], ["both.pem", ""]]
        ca = ["one.pem", "/two.pem"]

        [host."c.example/v2"]
        capabilities = ["resolve"]
        client = "client.pem"

        [host."https://u:p%40@d.example"]
        client = ["d.pem", "e.pem"]
    "#;
    let places = read(text, "docker.io").unwrap();
    let urls: Vec<_> = places.iter().map(url).collect();
    assert_eq!(
        urls,
        [
            "https://z.example/cache/v2",
            "https://b.example/v2",
            "http://a.example:5000/v2/project",
            "https://c.example/v2",
            "https://d.example/v2",
            "https://registry-1.docker.io/v2",
        ]
    );
    let [z, b, a, c, d, server] = &places[..] else { panic!("{urls:?}") };
    assert!(z.pull && z.resolve && b.pull && b.resolve && !c.pull && c.resolve && server.pull && !server.resolve);
    assert_eq!(z.trust.authorities, [Path::new("/etc/certs.d/x/ca.pem")]);
    assert_eq!(a.trust.authorities, [Path::new("/etc/certs.d/x/one.pem"), Path::new("/two.pem")]);
    assert_eq!(z.trust.connect, Some(Duration::from_secs(90)));
    assert!(a.trust.skip_verify && !z.trust.skip_verify);
    let folder = Path::new("/etc/certs.d/x");
    let key = Some(PathBuf::from("/c.key"));
    assert_eq!(a.trust.identities, [(folder.join("c.cert"), key), (folder.join("both.pem"), None)]);
    assert_eq!(c.trust.identities, [(folder.join("client.pem"), None)]);
    assert_eq!(d.trust.identities, [(folder.join("d.pem"), None), (folder.join("e.pem"), None)]);
    assert_eq!(b.headers.get_all("x-more").iter().count(), 2);
    assert_eq!(b.headers["x-one"], "1");
    assert!(d.login.is_some());
    assert!(server.origin && !z.origin && !a.origin);
}

#[test]
fn without_a_server_the_registry_itself_is_last() {
    for (text, registry, expected) in [
        ("", "docker.io", &["https://registry-1.docker.io/v2"] as &[&str]),
        ("[host.\"http://m\"]", "r.example:5000", &["http://m/v2", "https://r.example:5000/v2"]),
        ("server = \"r.example\"\nskip_verify = true", "r.example", &["https://r.example/v2"]),
        ("server = \"https://docker.io\"", "docker.io", &["https://registry-1.docker.io/v2"]),
        // The registry itself among the hosts is the registry.
        (
            "server = \"https://other\"\n[host.\"https://r.example\"]",
            "r.example",
            &["https://r.example/v2", "https://other/v2"],
        ),
    ] {
        let places = read(text, registry).unwrap();
        assert_eq!(places.iter().map(url).collect::<Vec<_>>(), expected, "{text}");
        assert!(places.last().unwrap().origin, "{text}");
    }
    assert!(read("server = \"https://o\"\n[host.\"https://r.example\"]", "r.example").unwrap()[0].origin);
}

#[test]
fn what_is_wrong_is_named_with_its_line() {
    for (text, line, words) in [
        ("server = \"https://x\"\n[host.\"https://y\"\n", 2, ""),
        ("\n\n[host.\"https://y\"]\ncapabilities = [\"fetch\"]", 4, "\"fetch\" is no capability"),
        ("[host.\"ftp://y\"]", 1, "\"ftp://y\" is not"),
        ("[host.\"https://\"]", 1, "is not http:// or https://"),
        ("[host.\"https://y\"]\nskip_verify = \"yes\"", 2, "boolean"),
        ("[host.\"https://y\"]\nca = 7", 2, ""),
        ("[host.\"https://y\"]\nclient = [[\"a\", \"b\", \"c\"]]", 2, ""),
        ("[host.\"https://y\"]\n\ndial_timeout = \"soon\"", 3, "\"soon\" is not a time"),
        ("[host.\"https://y\".header]\n\"a b\" = \"x\"", 2, "is not one of HTTP"),
        ("[host.\"https://y\".header]\na = \"x\\ny\"", 2, "is not one of HTTP"),
        ("server = 1", 1, "string"),
    ] {
        let error = read(text, "x").map(|_| ()).unwrap_err();
        let start = format!("/etc/certs.d/x/hosts.toml:{line}: ");
        assert!(error.starts_with(&start) && error.contains(words), "{text:?}: {error}");
    }
    let error = read("server = \"https://user:secret@h?x\"", "x").map(|_| ()).unwrap_err();
    assert!(!error.contains("secret"), "{error}");
}

#[test]
fn times_are_go_s() {
    for (text, millis) in
        [("3s", Some(3000)), ("500ms", Some(500)), ("1m30.5s", Some(90_500)), ("0", Some(0)), ("2h", Some(7_200_000))]
    {
        assert_eq!(duration(text), millis.map(Duration::from_millis), "{text}");
    }
    for bad in ["", "3", "s", "3 s", "-3s", "1x", "1.2.3s", "9e9h"] {
        assert_eq!(duration(bad), None, "{bad}");
    }
}

proptest::proptest! {
    #[test]
    fn never_panics(text in "[\\[\\]\"a-z0-9.=:/ \n]{0,80}") {
        let _ = read(&text, "x");
        let _ = duration(&text);
    }
}
