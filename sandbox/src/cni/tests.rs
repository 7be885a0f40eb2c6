use std::fs;
use std::future::ready;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;

use super::*;
use crate::spec::{Bandwidth, PortMapping, Protocol};

const CHAIN: &str = r#"{"cniVersion": "1.0.0", "name": "lab", "plugins": [
    {"type": "first", "bridge": "cni0", "capabilities": {"portMappings": true, "dns": false}},
    {"type": "second", "capabilities": {"dns": true, "mac": true}}]}"#;

fn spec() -> NetworkSpec {
    let port = PortMapping { protocol: Protocol::Tcp, container_port: 80, host_port: 8080, host_ip: String::new() };
    NetworkSpec {
        args: [("K8S_POD_NAME".into(), "web".into())].into(),
        port_mappings: vec![port],
        ..NetworkSpec::default()
    }
}

fn attachment(list: &str) -> Attachment {
    let list = NetworkList::parse(list).unwrap();
    Attachment::new(list, "pod1", &spec(), "nameserver 10.0.0.1\nsearch a b\noptions ndots:5\n", "/x/pod1").unwrap()
}

/// A folder of plugins, each of which appends its command, its name and its input to `calls`, and then runs `script`.
struct Bench {
    folder: tempfile::TempDir,
    config: CniConfig,
}

impl Bench {
    fn new(plugins: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, script) in plugins {
            let path = folder.path().join(name);
            let calls = folder.path().join("calls");
            let text = format!(
                "#!/bin/sh\ninput=$(cat)\necho \"$CNI_COMMAND {name} $CNI_NETNS $CNI_IFNAME $CNI_ARGS HOME=$HOME $input\" >>{}\n{script}\n",
                calls.display()
            );
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let path = folder.path().to_owned();
        let config =
            CniConfig { bin_dirs: vec![path.clone()], conf_dir: path, plugin_timeout: Duration::from_millis(1500) };
        Self { folder, config }
    }

    fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.folder.path().join("calls")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

#[tokio::test]
async fn add_goes_forward_with_results_and_del_backward() {
    let bench = Bench::new(&[
        ("first", r#"echo '{"cniVersion":"1.0.0","ips":[{"address":"10.1.2.3/16"}]}'"#),
        ("second", r#"[ $CNI_COMMAND = DEL ] || echo '{"cniVersion":"1.0.0","ips":[{"address":"10.1.2.4/16"}]}'"#),
    ]);
    let mut attachment = attachment(CHAIN);
    let mut saved = Vec::new();
    let save = |attachment: &Attachment| {
        saved.push((
            attachment.result.clone().map(|result| status(&result).addresses[0].to_string()),
            attachment.complete,
        ));
        ready(Ok(()))
    };
    attachment.add(&bench.config, Path::new("/n"), save).await.unwrap();
    let address = |text: &str| Some(text.to_owned());
    assert_eq!(saved, [(None, false), (address("10.1.2.3"), false), (address("10.1.2.4"), true)]);
    assert_eq!(
        status(attachment.result.as_ref().unwrap()).addresses,
        ["10.1.2.4".parse::<std::net::IpAddr>().unwrap()]
    );
    let stored: Attachment = serde_json::from_str(&serde_json::to_string(&attachment).unwrap()).unwrap();
    assert_eq!(stored, attachment);
    stored.del(&bench.config, None).await.unwrap();

    let calls = bench.calls();
    let heads: Vec<String> = calls.iter().map(|c| c.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(heads, ["ADD first", "ADD second", "DEL second", "DEL first"]);
    let input = |n: usize| serde_json::from_str::<Value>(&calls[n][calls[n].find('{').unwrap()..]).unwrap();
    assert!(calls[0].contains("ADD first /n eth0 IgnoreUnknown=1;K8S_POD_NAME=web HOME= {"), "{}", calls[0]);
    assert!(calls[3].contains("DEL first  eth0 "), "{}", calls[3]);
    assert_eq!(input(0)["runtimeConfig"]["portMappings"][0]["hostPort"], 8080);
    assert_eq!(input(0)["runtimeConfig"].get("dns"), None);
    assert_eq!(
        input(1)["runtimeConfig"],
        json!({"dns": {"servers": ["10.0.0.1"], "searches": ["a", "b"], "options": ["ndots:5"]}})
    );
    assert_eq!((input(0).get("prevResult"), input(0).get("capabilities")), (None, None));
    assert_eq!(
        (&input(0)["name"], &input(0)["cniVersion"], &input(0)["bridge"]),
        (&json!("lab"), &json!("1.0.0"), &json!("cni0"))
    );
    assert_eq!(input(1)["prevResult"]["ips"][0]["address"], "10.1.2.3/16");
    assert_eq!(input(2)["prevResult"]["ips"][0]["address"], "10.1.2.4/16");
    assert_eq!(input(3)["prevResult"]["ips"][0]["address"], "10.1.2.4/16");
}

#[tokio::test]
async fn a_failure_names_plugin_and_network_and_del_still_asks_all() {
    let failing = r#"echo '{"code": 7, "msg": "no addresses", "details": "range is full"}'; exit 1"#;
    let bench = Bench::new(&[("first", "echo '{}'"), ("second", failing)]);
    let mut attachment = attachment(CHAIN);
    let error = attachment.add(&bench.config, Path::new("/n"), |_| ready(Ok(()))).await.unwrap_err();
    let expected = "cannot add the pod to network lab: plugin second: no addresses; range is full (code 7)";
    assert_eq!(error.chain(), expected);
    assert_eq!((attachment.result.clone(), attachment.complete), (Some(json!({})), false));
    let error = attachment.del(&bench.config, Some(Path::new("/n"))).await.unwrap_err();
    assert!(error.chain().contains("take the pod off network lab: plugin second: no addresses"), "{}", error.chain());
    assert!(bench.calls()[3].starts_with("DEL first /n "));
}

#[tokio::test]
async fn what_plugins_may_answer_is_bounded() {
    for (script, expected) in [
        ("echo oops >&2; exit 3", "plugin first: oops"),
        ("exit 3", "exit status: 3"),
        ("echo no json", "malformed"),
        ("exit 0", "answered nothing"),
        ("head -c 1100000 /dev/zero", "more than 1048576 bytes"),
    ] {
        let bench = Bench::new(&[("first", script)]);
        let mut attachment = attachment(r#"{"cniVersion": "1.0.0", "name": "lab", "type": "first"}"#);
        let error = attachment.add(&bench.config, Path::new("/n"), |_| ready(Ok(()))).await.unwrap_err();
        assert!(error.chain().contains(expected), "{script}: {}", error.chain());
    }
}

#[tokio::test]
async fn a_plugin_that_hangs_is_killed_with_what_it_started() {
    let bench = Bench::new(&[("first", "sleep 1000 & echo $! >$0.pid; wait")]);
    let mut attachment = attachment(r#"{"cniVersion": "1.0.0", "name": "lab", "type": "first"}"#);
    let start = Instant::now();
    let error = attachment.add(&bench.config, Path::new("/n"), |_| ready(Ok(()))).await.unwrap_err();
    assert!(matches!(error, SandboxError::TimedOut { .. }) && start.elapsed() < Duration::from_secs(60), "{error}");
    let pid = fs::read_to_string(bench.folder.path().join("first.pid")).unwrap();
    let stat = PathBuf::from(format!("/proc/{}/stat", pid.trim()));
    let deadline = Instant::now() + Duration::from_secs(20);
    while fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
        assert!(Instant::now() < deadline, "process {pid} lives on");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[test]
fn configurations_are_checked() {
    for (text, expected) in [
        ("[]", "not an object"),
        (r#"{"name": "a b", "type": "x"}"#, "no network name"),
        (r#"{"name": "n", "type": "../../bin/sh"}"#, "no plugin name"),
        (r#"{"name": "n", "plugins": []}"#, "list of objects"),
        (r#"{"name": "n", "plugins": [1]}"#, "list of objects"),
        (r#"{"name": "n", "type": "x", "cniVersion": "2.0.0"}"#, "newer than 1.1"),
    ] {
        let error = NetworkList::parse(text).unwrap_err();
        assert!(error.contains(expected), "{text}: {error}");
    }
    let several = r#"{"name": "n", "cniVersion": "0.4.0", "cniVersions": ["1.0.0", "1.1.0", "2.0.0"], "type": "x"}"#;
    assert_eq!(NetworkList::parse(several).unwrap().version, "1.1.0");
    assert!(!NetworkList::parse(r#"{"name": "n", "type": "x"}"#).unwrap().at_least(0, 4));
}

#[test]
fn the_first_configuration_by_name_counts_and_what_is_missing_is_said() {
    let bench = Bench::new(&[("first", "")]);
    let load = || NetworkList::load(&bench.config);
    assert!(load().unwrap_err().contains("there is no CNI configuration"));
    let write = |name: &str, text: &str| fs::write(bench.folder.path().join(name), text).unwrap();
    write("20-b.conf", r#"{"name": "b", "type": "first"}"#);
    write("05-ignored.txt", "");
    assert_eq!(load().unwrap().name, "b");
    write("10-a.conflist", r#"{"name": "a", "plugins": [{"type": "missing"}]}"#);
    let error = load().unwrap_err();
    assert!(error.contains("10-a.conflist: plugin missing is not in /"), "{error}");
}

#[test]
fn addresses_of_the_node_are_not_the_pods() {
    let text = r#"{"interfaces": [{"name": "cni0"}, {"name": "eth0", "sandbox": "/n"}], "ips": [
        {"address": "10.0.0.1/16", "interface": 0}, {"address": "fd00::5/64", "interface": 1},
        {"address": "10.0.0.5/16", "interface": 1}, {"address": "10.0.0.6/16"}, {"address": "x"}]}"#;
    let found: Vec<String> =
        status(&serde_json::from_str(text).unwrap()).addresses.iter().map(ToString::to_string).collect();
    assert_eq!(found, ["fd00::5", "10.0.0.5", "10.0.0.6"]);
    let old = json!({"ip4": {"ip": "10.0.0.7/16"}});
    assert_eq!(status(&old).addresses[0].to_string(), "10.0.0.7");
}

#[test]
fn arguments_cannot_smuggle_others() {
    let list = || NetworkList::parse(CHAIN).unwrap();
    for (name, value) in [("A", "b;C=d"), ("A;B", "c"), ("", "x")] {
        let spec = NetworkSpec { args: [(name.into(), value.into())].into(), ..NetworkSpec::default() };
        assert!(Attachment::new(list(), "pod1", &spec, "", "").is_err(), "{name}={value}");
    }
}

/// What a plugin that declares everything reads: the names and forms are those of containerd 2.1.
#[tokio::test]
async fn every_capability_has_the_form_that_containerd_gives_it() {
    let list = r#"{"cniVersion": "1.0.0", "name": "lab", "type": "first", "capabilities": {"portMappings": true,
        "bandwidth": true, "dns": true, "cgroupPath": true, "io.kubernetes.cri.pod-annotations": true, "ipRanges": true,
        "mac": true, "ips": true, "aliases": true}}"#;
    let expected = json!({
        "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""}],
        "bandwidth": {"ingressRate": 10_000_000, "ingressBurst": 4_294_967_295_u32, "egressRate": 0, "egressBurst": 0},
        "dns": {"servers": ["10.0.0.1"], "searches": ["a", "b"], "options": ["ndots:5"]},
        "cgroupPath": "/kubepods/besteffort/pod1",
        "io.kubernetes.cri.pod-annotations": {"kubernetes.io/ingress-bandwidth": "10M", "a/b": "c"}
    });
    let bench = Bench::new(&[("first", "echo '{}'")]);
    let mut spec = spec();
    spec.bandwidth = Some(Bandwidth { ingress: Some(10_000_000), egress: None });
    spec.annotations =
        [("kubernetes.io/ingress-bandwidth", "10M"), ("a/b", "c")].map(|(k, v)| (k.into(), v.into())).into();
    let resolv_conf = "nameserver 10.0.0.1\nsearch a b\noptions ndots:5\n";
    let list = NetworkList::parse(list).unwrap();
    let mut attachment = Attachment::new(list, "pod1", &spec, resolv_conf, "/kubepods/besteffort/pod1").unwrap();
    attachment.add(&bench.config, Path::new("/n"), |_| ready(Ok(()))).await.unwrap();
    attachment.del(&bench.config, Some(Path::new("/n"))).await.unwrap();
    for call in bench.calls() {
        let input: Value = serde_json::from_str(&call[call.find('{').unwrap()..]).unwrap();
        assert_eq!(input["runtimeConfig"], expected, "{call}");
    }
}
