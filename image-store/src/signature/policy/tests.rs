use super::*;

const KEY: &str = "-----BEGIN PUBLIC KEY-----\n\
    MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEaxfR8uEsQkf4vOblY6RA8ncDfYEt\n\
    6zOg9KE5RdiYwpZP40Li/hp/m47n60p8D54WK84zV2sxXs7LtkBoN79R9Q==\n\
    -----END PUBLIC KEY-----\n";

fn data() -> String {
    base64::engine::general_purpose::STANDARD.encode(KEY)
}

fn signed(more: &str) -> String {
    format!(r#"{{"type": "sigstoreSigned", "keyData": "{}"{more}}}"#, data())
}

#[test]
fn the_narrowest_scope_counts_alone() {
    let anything = r#"[{"type": "insecureAcceptAnything"}]"#;
    let names = [
        "*.example.com",
        "a.example.com",
        "a.example.com/team",
        "a.example.com/team/app",
        "a.example.com/team/app:1",
        "127.0.0.1:5000/x",
        "docker.io/library",
    ];
    let scopes: Vec<_> = names.iter().map(|name| format!("{name:?}: {anything}")).collect();
    let text =
        format!(r#"{{"default": [{{"type": "reject"}}], "transports": {{"docker": {{{}}}}}}}"#, scopes.join(","));
    let policy = Policy::parse(text.as_bytes()).unwrap();
    for (image, scope) in [
        ("a.example.com/team/app:1", "a.example.com/team/app:1"),
        ("a.example.com/team/app:2", "a.example.com/team/app"),
        ("a.example.com/team/application", "a.example.com/team"),
        ("a.example.com/teams/app", "a.example.com"),
        ("b.c.example.com/x", "*.example.com"),
        ("example.com/x", "default"),
        ("127.0.0.1:5000/x/y:1", "127.0.0.1:5000/x"),
        ("busybox", "docker.io/library"),
        ("docker.io/team/x", "default"),
    ] {
        assert_eq!(policy.of(&image.parse().unwrap()).0, scope, "{image}");
    }
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    let default = |requirement: &str| format!(r#"{{"default": [{requirement}]}}"#);
    let both = r#", "keyPath": "/x", "signedIdentity": {"type": "matchRepository"}"#;
    let cases = [
        ("", "EOF"),
        ("{}", "missing field `default`"),
        (r#"{"default": []}"#, "no requirement"),
        (r#"{"default": [{"type": "reject"}], "more": 1}"#, "`more`"),
        (r#"{"default": [{"type": "reject"}], "default": [{"type": "reject"}]}"#, "duplicate field `default`"),
        (r#"{"default": [{"type": "reject"}], "transports": {"docker": {"a": [], "a": []}}}"#, "\"a\" is there twice"),
        (r#"{"default": [{"type": "reject"}], "transports": {"oci": {"": [{"type": "later"}]}}}"#, "`later`"),
        (&default(r#"{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/k"}"#), "`signedBy`"),
        (&default(r#"{"type": "reject", "reason": "x"}"#), "`reason`"),
        (&default(r#"{"type": "reject", "type": "insecureAcceptAnything"}"#), "duplicate field `type`"),
        (&default(&signed(r#", "signedIdentity": {"type": "matchRepoDigestOrExact", "x": 1}"#)), "`x`"),
        (&default(&signed(r#", "signedIdentity": {"type": "exactReference", "dockerReference": "a/b"}"#)), "a tag"),
        (&default(r#"{"type": "sigstoreSigned"}"#), "keyPath or keyData"),
        (&default(&signed(both)), "keyPath or keyData"),
        (&default(&signed(r#", "fulcio": {}"#)), "`fulcio`"),
        (&default(&signed(r#", "rekorPublicKeyPath": "/k""#)), "`rekorPublicKeyPath`"),
        (&default(&signed(r#", "signedIdentity": {"type": "matchNothing"}"#)), "`matchNothing`"),
        (&default(&signed(r#", "signedIdentity": {"type": "matchRepository", "x": 1}"#)), "`x`"),
        (&default(&signed(r#", "signedIdentity": {"type": "exactReference"}"#)), "dockerReference"),
        (
            &default(&signed(r#", "signedIdentity": {"type": "exactRepository", "dockerRepository": "busybox"}"#)),
            "full",
        ),
        (&default(r#"{"type": "sigstoreSigned", "keyPath": "key.pub"}"#), "not absolute"),
        (&default(r#"{"type": "sigstoreSigned", "keyPath": "/no/such/key"}"#), "/no/such/key: cannot be read"),
        (&default(r#"{"type": "sigstoreSigned", "keyData": "%"}"#), "base64"),
        (&default(r#"{"type": "sigstoreSigned", "keyData": "eA=="}"#), "no PUBLIC KEY"),
    ];
    for (text, reason) in cases {
        let error = Policy::parse(text.as_bytes()).unwrap_err();
        assert!(error.contains(reason), "{text}: {error}");
    }
    let two = base64::engine::general_purpose::STANDARD.encode(format!("{KEY}{KEY}"));
    let text = default(&format!(r#"{{"type": "sigstoreSigned", "keyData": "{two}"}}"#));
    assert!(Policy::parse(text.as_bytes()).unwrap_err().contains("several keys"));
    let identity = r#", "signedIdentity": {"type": "matchRepoDigestOrExact"}"#;
    assert!(Policy::parse(default(&signed(identity)).as_bytes()).is_ok());
}

#[test]
fn identities_fit_as_the_manual_says() {
    let (digest, digested) =
        (crate::digest::Digest::of(b"x"), |name: &str, d: &crate::digest::Digest| format!("{name}@{d}"));
    let by_digest = digested("a.example/b", &digest);
    let reference = |text: &str| Identity::ExactReference { docker_reference: text.into() };
    let repository = |text: &str| Identity::ExactRepository { docker_repository: text.into() };
    let remap = |from: &str, to: &str| Identity::Remap { prefix: from.into(), signed_prefix: to.into() };
    for (identity, image, signed, fits) in [
        (Identity::MatchExact {}, "a.example/b:1", "a.example/b:1", true),
        (Identity::MatchExact {}, "a.example/b:1", "a.example/b:2", false),
        (Identity::MatchExact {}, "a.example/b", "a.example/b", false),
        (Identity::MatchExact {}, &by_digest, "a.example/b:1", false),
        (Identity::MatchRepoDigestOrExact {}, &by_digest, "a.example/b:1", true),
        (Identity::MatchRepoDigestOrExact {}, &by_digest, "a.example/c:1", false),
        (Identity::MatchRepoDigestOrExact {}, "a.example/b:1", "a.example/b", false),
        (Identity::MatchRepoDigestOrExact {}, "a.example/b:1", "a.example/b:1", true),
        (Identity::MatchRepository {}, "a.example/b:1", "a.example/b", true),
        (Identity::MatchRepository {}, "a.example/b:1", "a.example/b:9", true),
        (Identity::MatchRepository {}, "a.example/b:1", "a.example/bb", false),
        (Identity::MatchRepository {}, "busybox:1", "docker.io/library/busybox", true),
        (Identity::MatchRepository {}, "a.example/b:1", "", false),
        (reference("a.example/other:1"), "a.example/b:1", "a.example/other:1", true),
        (reference("a.example/other:1"), "a.example/b:1", "a.example/b:1", false),
        (repository("a.example/other"), "a.example/b:1", "a.example/other:7", true),
        (repository("a.example/other"), "a.example/b:1", "a.example/b", false),
        (remap("mirror.example/vendor", "vendor.example"), "mirror.example/vendor/b:1", "vendor.example/b:1", true),
        (remap("mirror.example/vendor", "vendor.example"), "mirror.example/vendors/b:1", "vendor.examples/b:1", false),
        (remap("mirror.example/vendor", "vendor.example"), "a.example/b:1", "a.example/b:1", true),
        (remap("mirror.example/b", "a.example/c"), "mirror.example/b:1", "a.example/c:1", true),
        (remap("mirror.example", "a.example"), "mirror.example:5000/b:1", "a.example:5000/b:1", false),
    ] {
        assert_eq!(identity.fits(&image.parse().unwrap(), signed), fits, "{identity:?} {image} {signed}");
    }
}
