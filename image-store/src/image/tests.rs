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
fn what_go_takes_is_taken() {
    let nulls = parse(json!({
        "User": null, "Env": ["A=b", null], "Cmd": null, "Volumes": {"/d": null}, "Labels": {"a": null, "b": "c"},
        "ExposedPorts": {"80/tcp": 7}, "StopSignal": null, "WorkingDir": null, "Hostname": 5, "Healthcheck": [],
    }))
    .unwrap();
    assert_eq!(nulls.env, ["A=b", ""]);
    assert_eq!(nulls.volumes, ["/d"]);
    assert_eq!(nulls.labels, BTreeMap::from([("a".into(), String::new()), ("b".into(), "c".into())]));
    let document = br#"{"OS": null, "Architecture": null, "created": 7, "history": {}, "config": {"ENV": ["A=1"],
        "user": "a", "User": "b"}, "rootfs": {"type": 3, "diff_ids": []}}"#;
    let config = parse_config(document).unwrap().config;
    assert_eq!((config.env, config.user.as_str()), (vec!["A=1".to_owned()], "b"));
}

#[test]
fn values_that_only_matter_to_a_container_do_not_keep_an_image_away() {
    let odd = json!({
        "User": "app\t", "Env": ["", "=x", "A", "HOME=/a:/b", "A\nB=1", "N=\0"], "StopSignal": "SIGTERM # nice",
        "Volumes": {"['/a', '/b']": {}, "relative": {}}, "WorkingDir": "a\r", "Cmd": ["a\0b"],
    });
    let config = parse(odd).unwrap();
    assert_eq!(config.user, "app\t");
    assert_eq!(config.env.len(), 6);
    assert_eq!(config.stop_signal.as_deref(), Some("SIGTERM # nice"));
    assert_eq!(config.volumes, ["['/a', '/b']", "relative"]);
}

#[test]
fn refuses_what_is_no_config() {
    for (name, config) in [
        ("many args", json!({"Cmd": vec!["a"; 5000]})),
        ("long arg", json!({"Cmd": ["a".repeat(200_000)]})),
        ("long user", json!({"User": "a".repeat(200_000)})),
        ("wrong type", json!({"Cmd": "sh -c"})),
        ("wrong type inside", json!({"Env": [{}]})),
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
    #[test]
    fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse_config(&bytes);
    }
}
