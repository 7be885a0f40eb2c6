use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use super::*;

fn node(dir: &Path, text: &str) -> NodeLogin {
    fs::write(dir.join("config.json"), text).unwrap();
    NodeLogin { file: dir.join("config.json"), programs: format!("{}:/usr/bin:/bin", dir.display()) }
}

fn helper(dir: &Path, name: &str, script: &str) {
    let path = dir.join(format!("docker-credential-{name}"));
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test]
async fn auths_are_found_by_host_and_path() {
    let dir = tempfile::tempdir().unwrap();
    // u:p, hub:p, a:p, ab:p
    let login = node(
        dir.path(),
        r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "aHViOnA="},
            "r.example": {"auth": "dTpw"},
            "r.example/a": {"auth": "YTpw"},
            "r.example/a/b": {"auth": "YWI6cA"},
            "https://R2.example:443/v2/": {"username": "x", "password": "y", "auth": "dTpw"},
            "r3.example:5000": {"auth": "dTo=", "identitytoken": "refresh"},
            "r4.example": {"registrytoken": "bearer"},
            "empty.example": {}
        }, "HttpHeaders": {}}"#,
    );
    for (host, repository, expected) in [
        ("registry-1.docker.io", "library/x", Some(Auth::basic("hub", "p"))),
        ("docker.io", "library/x", Some(Auth::basic("hub", "p"))),
        ("r.example", "c", Some(Auth::basic("u", "p"))),
        ("r.example", "ab", Some(Auth::basic("u", "p"))),
        ("r.example", "a/c", Some(Auth::basic("a", "p"))),
        ("r.example", "a", Some(Auth::basic("a", "p"))),
        ("r.example", "a/b/c", Some(Auth::basic("ab", "p"))),
        ("r.example:5000", "c", None),
        ("sub.r.example", "c", None),
        ("r2.example", "c", Some(Auth::basic("x", "y"))),
        ("r3.example:5000", "c", Some(Secret::Identity("refresh".into()).into())),
        ("r4.example", "c", Some(Secret::Bearer("bearer".into()).into())),
        ("empty.example", "c", None),
    ] {
        assert_eq!(login.find(host, repository).await, expected, "{host}/{repository}");
    }
    assert_eq!(NodeLogin::new(dir.path().join("absent")).find("x", "y").await, None);
    assert_eq!(node(dir.path(), "{").find("x", "y").await, None);
    assert_eq!(node(dir.path(), "{\"auths\": null}").find("x", "y").await, None);
}

#[tokio::test]
async fn helpers_are_asked() {
    let dir = tempfile::tempdir().unwrap();
    // The answer carries what the helper was given and sees.
    let script = r#"read -r server; printf '{"ServerURL":"%s","Username":"%s-%s","Secret":"%s"}' "$server" "$1" "$server" "${SECRET-clean}""#;
    helper(dir.path(), "good", script);
    helper(
        dir.path(),
        "store",
        "read -r s; [ \"$s\" = kept.example ] || { echo 'credentials not found in native keychain'; exit 1; }; echo '{\"Username\":\"<token>\",\"Secret\":\"t\"}'",
    );
    helper(dir.path(), "bad", "echo 'no network'; exit 1");
    helper(dir.path(), "noise", "cat /dev/zero");
    helper(dir.path(), "words", "echo hello");
    let login = node(
        dir.path(),
        r#"{"credHelpers": {"one.example": "good", "https://index.docker.io/v1/": "good", "bad.example": "bad",
            "noise.example": "noise", "words.example": "words", "gone.example": "gone", "evil.example": "../../bin/sh"},
            "credsStore": "store", "auths": {"u.example": {"auth": "dTpw"}, "bad.example": {"auth": "dTpw"}}}"#,
    );
    for (host, expected) in [
        ("one.example", Some(Auth::basic("get-one.example", "clean"))),
        ("docker.io", Some(Auth::basic("get-https://index.docker.io/v1/", "clean"))),
        ("kept.example", Some(Secret::Identity("t".into()).into())),
        ("u.example", Some(Auth::basic("u", "p"))),
        ("other.example", None),
        ("bad.example", None),
        ("noise.example", None),
        ("words.example", None),
        ("gone.example", None),
        ("evil.example", None),
    ] {
        assert_eq!(login.find(host, "a/b").await, expected, "{host}");
    }
}
