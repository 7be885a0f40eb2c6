use proptest::prelude::*;

use super::*;

const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

#[test]
fn normalises() {
    let table = [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.37", "docker.io/library/busybox:1.37"),
        ("docker.io/busybox", "docker.io/library/busybox:latest"),
        ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
        ("registry-1.docker.io/a/b", "docker.io/a/b:latest"),
        ("bitnami/redis:7", "docker.io/bitnami/redis:7"),
        ("localhost/busybox", "localhost/busybox:latest"),
        ("localhost:5000/busybox", "localhost:5000/busybox:latest"),
        ("127.0.0.1:5000/a/b:1", "127.0.0.1:5000/a/b:1"),
        ("[::1]:5000/a:1", "[::1]:5000/a:1"),
        ("[::1]/a", "[::1]/a:latest"),
        ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
        ("HOST/a", "HOST/a:latest"),
        ("host:5/a", "host:5/a:latest"),
        // Without a slash, what follows the colon is a tag.
        ("localhost:5000", "docker.io/library/localhost:5000"),
        ("foo/bar", "docker.io/foo/bar:latest"),
        ("a__b/c-d.e---f", "docker.io/a__b/c-d.e---f:latest"),
    ];
    for (text, expected) in table {
        let reference: Reference = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(reference.to_string(), expected, "{text}");
    }
}

#[test]
fn digests_win_over_tags() {
    let reference: Reference = format!("busybox@sha256:{HEX}").parse().unwrap();
    assert_eq!(reference.tag(), None);
    assert_eq!(reference.selector(), format!("sha256:{HEX}"));
    assert_eq!(reference.tag_key(), None);
    assert_eq!(reference.digest_key(&Digest::of(b"other")), format!("docker.io/library/busybox@sha256:{HEX}"));

    let both: Reference = format!("quay.io/a/b:v1@sha256:{HEX}").parse().unwrap();
    assert_eq!(both.tag(), Some("v1"));
    assert_eq!(both.selector(), format!("sha256:{HEX}"));
    assert_eq!(both.tag_key(), None);
    assert_eq!(both.to_string(), format!("quay.io/a/b:v1@sha256:{HEX}"));
}

#[test]
fn refuses() {
    let long = "a".repeat(256);
    let table = [
        "",
        " ",
        "busybox ",
        "Busybox",
        "a/B",
        "a//b",
        "/a",
        "a/",
        "a:",
        "a:-x",
        ":1",
        "a@",
        "a@sha256:12",
        "a@md5:d41d8cd98f00b204e9800998ecf8427e",
        "a..b",
        "a___b",
        "a_-b",
        "-a",
        "a-",
        "a/../b",
        "host.:5/a",
        "host:port/a",
        "host:99999/a",
        "host:/../a:b/c",
        "user@host.io/a",
        "ho st.io/a",
        "http://host.io/a",
        "a\nb",
        "a\0b",
        "ä/b",
        "[::1/a",
        "[zz]:5/a",
        "[::1]x/a",
        HEX,
        &long,
        &format!("a:{}", "t".repeat(129)),
        &format!("a@sha256:{HEX}@sha256:{HEX}"),
        &"x".repeat(100_000),
    ];
    for text in table {
        assert!(text.parse::<Reference>().is_err(), "{text:?} was taken");
    }
}

proptest! {
    /// Whatever is taken, its normal form is a fixed point, and it can go into an URL as it is.
    #[test]
    fn normal_form_is_stable(text in "[a-zA-Z0-9._:/@\\[\\]-]{0,60}") {
        if let Ok(reference) = text.parse::<Reference>() {
            let again: Reference = reference.to_string().parse().unwrap();
            prop_assert_eq!(&again, &reference);
            prop_assert!(!reference.repository().split('/').any(|c| c == ".." || c == "." || c.is_empty()));
        }
    }

    #[test]
    fn never_panics(text in "\\PC*") {
        let _ = text.parse::<Reference>();
    }

    #[test]
    fn real_names_are_taken(
        host in "([a-z]{1,5}\\.[a-z]{2,3}(:[1-9][0-9]{0,3})?/)?",
        path in "[a-z0-9]{1,8}(/[a-z0-9]{1,8}([._-][a-z0-9]{1,4})?){1,3}",
        tag in "(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,20})?",
    ) {
        let text = format!("{host}{path}{tag}");
        let reference: Reference = text.parse().unwrap();
        if host.is_empty() {
            prop_assert_eq!(reference.host(), "docker.io");
        } else {
            prop_assert_eq!(reference.host(), host.trim_end_matches('/'));
        }
        prop_assert_eq!(reference.repository(), path);
    }
}
