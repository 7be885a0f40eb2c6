use cofferdam_proto::cri::{KeyValue, LinuxContainerConfig, LinuxContainerSecurityContext, NamespaceOption};
use cofferdam_sandbox::ProgramVersion;

use super::super::container::{plan, tests as containers};
use super::*;
use crate::records::tests::pod as pod_record;

const HOST: Pids = Pids { sandbox: Some(10), container: Some(20) };

fn made(kind: Kind, change: impl FnOnce(&mut ContainerConfig)) -> (ContainerRecord, PodRecord) {
    let pod = PodRecord { kind, ..pod_record("p") };
    let mut asked = containers::asked();
    change(&mut asked);
    let mut plan = plan("c", &pod, &asked, &containers::image(), 7).unwrap();
    plan.request.cgroup_parent = "/kubepods/p".into();
    let info = container(&asked, &plan.request);
    let record = ContainerRecord { phase: ContainerPhase::Running, agent_pid: 5, info, ..plan.record };
    (record, pod)
}

fn at<'a>(info: &'a Value, path: &str) -> &'a Value {
    info.pointer(path).unwrap_or_else(|| panic!("no {path} in {info:#}"))
}

#[test]
fn a_host_container_is_shown_as_tools_look_for_it() {
    let (record, pod) = made(Kind::Host, |asked| {
        asked.envs.push(KeyValue { key: "A".into(), value: b"b".to_vec() });
        asked.mounts.push(cofferdam_proto::cri::Mount {
            container_path: "/data".into(),
            host_path: "/srv".into(),
            ..Default::default()
        });
    });
    let info = container_info(&record, &pod, HOST);
    for (path, expected) in [
        ("/pid", json!(20)),
        ("/sandboxID", json!("p")),
        ("/removing", json!(false)),
        ("/snapshotKey", json!("c")),
        ("/config/metadata/name", json!("app")),
        ("/config/image/image", json!("sha256:1")),
        ("/config/log_path", json!("app/1.log")),
        ("/config/envs/0", json!({"key": "A", "value": "b"})),
        ("/config/mounts/0/host_path", json!("/srv")),
        ("/runtimeSpec/process/args", json!(["/entry", "default"])),
        ("/runtimeSpec/process/cwd", json!("/srv")),
        ("/runtimeSpec/hostname", json!("web")),
        ("/runtimeSpec/root/path", json!("/proc/20/root")),
        ("/runtimeSpec/linux/cgroupsPath", json!("/kubepods/p/c")),
        ("/runtimeSpec/annotations/io.kubernetes.cri.sandbox-id", json!("p")),
        ("/runtimeSpec/annotations/io.kubernetes.cri.container-type", json!("container")),
        ("/runtimeSpec/annotations/io.kubernetes.cri.container-name", json!("app")),
    ] {
        assert_eq!(at(&info, path), &expected, "{path}");
    }
    let namespaces = at(&info, "/runtimeSpec/linux/namespaces").as_array().unwrap();
    let find = |kind: &str| namespaces.iter().find(|n| n["type"] == kind).cloned().unwrap_or_default();
    assert_eq!(find("network")["path"], "/proc/20/ns/net");
    assert_eq!(find("ipc")["path"], "/proc/20/ns/ipc");
    assert_eq!(find("mount"), json!({"type": "mount"}));
    assert!(info.pointer("/runtimeSpec/linux/shared").is_none());
    let ended = container_info(&record, &pod, Pids::default());
    assert_eq!(at(&ended, "/pid"), &json!(0));
}

#[test]
fn a_guest_s_process_is_none_of_the_nodes() {
    let (record, pod) = made(Kind::Vm, |_| {});
    let info = container_info(&record, &pod, Pids { sandbox: Some(10), container: None });
    assert!(info.get("pid").is_none(), "{info}");
    assert_eq!((at(&info, "/guestPid"), at(&info, "/monitorPid")), (&json!(5), &json!(10)));
    assert!(info.pointer("/runtimeSpec/root/path").is_none());
}

#[test]
fn the_nodes_namespaces_are_not_listed() {
    let node = NamespaceMode::Node.into();
    let options = NamespaceOption { pid: node, network: node, ipc: node, ..Default::default() };
    let mut pod = PodRecord { kind: Kind::Host, privileged: true, ..pod_record("p") };
    (pod.namespaces.pid, pod.namespaces.network, pod.namespaces.ipc) = (node, node, node);
    let context =
        LinuxContainerSecurityContext { privileged: true, namespace_options: Some(options), ..Default::default() };
    let linux = LinuxContainerConfig { security_context: Some(context), ..Default::default() };
    let asked = ContainerConfig { linux: Some(linux), ..containers::asked() };
    let plan = plan("c", &pod, &asked, &containers::image(), 7).unwrap();
    let info = container(&asked, &plan.request);
    let record = ContainerRecord { phase: ContainerPhase::Running, info, ..plan.record };
    let info = container_info(&record, &pod, HOST);
    assert_eq!(at(&info, "/runtimeSpec/linux/namespaces"), &json!([{"type": "mount"}]));
    assert_eq!(at(&info, "/config/linux/security_context/privileged"), &json!(true));
}

#[test]
fn a_pod_is_shown_with_its_network() {
    let asked = PodSandboxConfig { hostname: "web".into(), log_directory: "/var/log/x".into(), ..Default::default() };
    let info = pod(&asked, &json!({"net.ipv4.ip_forward": "1"}));
    let record = PodRecord { kind: Kind::Host, info, ..pod_record("p") };
    let network = NetworkStatus { addresses: vec!["10.0.0.7".parse().unwrap()] };
    let programs = Programs { agent: Some(ProgramVersion { api: 1, version: "0.0.9".into() }), monitor: None };
    let info = pod_info(&record, Some(10), Some(&network), Some(&programs));
    for (path, expected) in [
        ("/pid", json!(10)),
        ("/versions/agent", json!({"api": 1, "version": "0.0.9"})),
        ("/versions/daemon/version", json!(env!("CARGO_PKG_VERSION"))),
        ("/config/hostname", json!("web")),
        ("/config/log_directory", json!("/var/log/x")),
        ("/processStatus", json!("running")),
        ("/netNamespaceClosed", json!(false)),
        ("/cniResult/Interfaces/eth0/IPConfigs/0/IP", json!("10.0.0.7")),
        ("/runtimeSpec/linux/namespaces/0", json!({"type": "network", "path": "/proc/10/ns/net"})),
        ("/runtimeSpec/linux/sysctl", json!({"net.ipv4.ip_forward": "1"})),
    ] {
        assert_eq!(at(&info, path), &expected, "{path}");
    }
    let gone = pod_info(&PodRecord { phase: PodPhase::NotReady, ..record }, None, None, None);
    assert_eq!((at(&gone, "/pid"), at(&gone, "/netNamespaceClosed")), (&json!(0), &json!(true)));
}
