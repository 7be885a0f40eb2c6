use proptest::prelude::*;
use serde_json::json;

use super::*;

fn parse(config: serde_json::Value) -> StoreResult<ImageConfig> {
    let document =
        json!({"architecture": "amd64", "os": "linux", "config": config, "rootfs": {"type": "layers", "diff_ids": []}});
    parse_config(document.to_string().as_bytes()).map(|p| p.config)
}

#[test]
fn reads_what_docker_writes() {
    let config = parse(json!({
        "Hostname": "", "User": "1000:1000", "Env": ["PATH=/bin", "MULTI=a\nb"], "Cmd": ["sh"], "Entrypoint": null,
        "WorkingDir": "/srv", "Volumes": {"/data": {}}, "ExposedPorts": {"80/tcp": {}}, "StopSignal": "SIGQUIT",
        "Labels": {"a": "b", "bad\nkey": "x", "bell": "\u{7}"}, "OnBuild": null, "Unknown": {"x": [1]},
    }))
    .unwrap();
    assert_eq!(config.user, "1000:1000");
    assert_eq!(config.env, ["PATH=/bin", "MULTI=a\nb"]);
    assert_eq!(config.cmd, ["sh"]);
    assert!(config.entrypoint.is_empty());
    assert_eq!(config.working_dir, "/srv");
    assert_eq!(config.volumes, ["/data"]);
    assert_eq!(config.exposed_ports, ["80/tcp"]);
    assert_eq!(config.stop_signal.as_deref(), Some("SIGQUIT"));
    assert_eq!(config.labels, BTreeMap::from([("a".into(), "b".into())]));
}

#[test]
fn null_and_missing_config_are_empty() {
    let document = br#"{"config": null, "rootfs": {"diff_ids": null}}"#;
    assert_eq!(parse_config(document).unwrap().config, ImageConfig::default());
    assert!(parse_config(b"{}").is_err(), "rootfs is required");
}

#[test]
fn refuses_control_data() {
    for (name, config) in [
        ("user newline", json!({"User": "a\nroot:x:0:0"})),
        ("user NUL", json!({"User": "a\0b"})),
        ("user length", json!({"User": "a".repeat(300)})),
        ("workdir CR", json!({"WorkingDir": "/a\r"})),
        ("home newline", json!({"Env": ["HOME=/\nroot::0:0::/:/bin/sh"]})),
        ("home colon", json!({"Env": ["HOME=/:x"]})),
        ("env name", json!({"Env": ["A\nB=1"]})),
        ("env NUL", json!({"Env": ["A=\0"]})),
        ("arg NUL", json!({"Cmd": ["a\0b"]})),
        ("signal", json!({"StopSignal": "SIG TERM"})),
        ("volume newline", json!({"Volumes": {"/a\nb": {}}})),
        ("volume relative", json!({"Volumes": {"a": {}}})),
        ("many args", json!({"Cmd": vec!["a"; 5000]})),
        ("long arg", json!({"Cmd": ["a".repeat(200_000)]})),
        ("wrong type", json!({"Cmd": "sh -c"})),
    ] {
        assert!(parse(config).is_err(), "{name}");
    }
}

#[test]
fn an_env_entry_without_a_name_does_not_keep_an_image_away() {
    assert_eq!(parse(json!({"Env": ["=1", ""]})).unwrap().env, ["=1", ""]);
}

#[test]
fn refuses_bad_diff_ids() {
    let document = br#"{"rootfs": {"diff_ids": ["sha256:../../x"]}}"#;
    assert!(matches!(parse_config(document), Err(StoreError::Malformed { .. })));
}

proptest! {
    /// No accepted config has a character that could end a line or a field of /etc/passwd where it may get to.
    #[test]
    fn line_based_fields_are_clean(
        user in ".{0,6}[\\n\\r\\x00\\x1b:]?.{0,6}",
        home in ".{0,6}[\\n\\r\\x00\\x1b:]?.{0,6}",
        dir in ".{0,6}[\\n\\r\\x00\\x1b:]?.{0,6}",
    ) {
        let env = format!("HOME={home}");
        if let Ok(config) = parse(json!({"User": user, "WorkingDir": dir, "Env": [env]})) {
            prop_assert!(!config.user.contains(['\n', '\r', '\0']));
            prop_assert!(!config.working_dir.contains(['\n', '\r', '\0']));
            prop_assert!(!config.env[0].contains(['\n', '\r', '\0', ':']));
        }
    }

    #[test]
    fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse_config(&bytes);
    }
}
