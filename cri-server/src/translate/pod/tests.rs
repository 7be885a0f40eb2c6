use std::collections::HashMap;

use cofferdam_proto::cri::{
    DnsConfig, LinuxContainerResources, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode,
    NamespaceOption, PodSandboxMetadata, UserNamespace,
};
use cofferdam_sandbox::VmSize;

use super::*;

fn config() -> Config {
    crate::config::tests_config()
}

fn pod() -> PodSandboxConfig {
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata { name: "web".into(), uid: "u".into(), namespace: "ns".into(), attempt: 3 }),
        hostname: "web".into(),
        log_directory: "/var/log/pods/ns_web_u".into(),
        linux: Some(LinuxPodSandboxConfig::default()),
        ..Default::default()
    }
}

fn options(pod: &mut PodSandboxConfig) -> &mut NamespaceOption {
    let linux = pod.linux.get_or_insert_default();
    let context: &mut LinuxSandboxSecurityContext = linux.security_context.get_or_insert_default();
    context.namespace_options.get_or_insert_default()
}

fn planned(handler: &str, pod: &PodSandboxConfig) -> Result<PodPlan, CriError> {
    plan(&config(), "id", handler, pod, 7)
}

#[test]
fn an_ordinary_pod() {
    let mut asked = pod();
    asked.labels.insert("a".into(), "b\nc".into());
    asked.port_mappings = vec![
        PortMapping { container_port: 80, host_port: 8080, ..Default::default() },
        PortMapping { container_port: 81, ..Default::default() },
    ];
    asked.dns_config = Some(DnsConfig { servers: vec!["10.0.0.10".into()], ..Default::default() });
    let linux = asked.linux.as_mut().unwrap();
    linux.cgroup_parent = "/kubepods/pod1".into();
    linux.sysctls = HashMap::from([("net.ipv4.ip_forward".into(), "1".into())]);
    linux.resources = Some(LinuxContainerResources { memory_limit_in_bytes: 1 << 30, ..Default::default() });
    let plan = planned("", &asked).unwrap();
    assert_eq!((plan.spec.kind, plan.record.handler.as_str()), (Kind::Vm, ""));
    assert_eq!(plan.spec.vm, VmSize { vcpus: 1, memory_mib: 1004 });
    assert_eq!(plan.spec.vm_max, config().vm_max);
    assert_eq!(plan.spec.oom_score_adj, -997);
    assert_eq!(
        (plan.spec.cgroup_parent.as_str(), plan.spec.resolv_conf.as_str()),
        ("/kubepods/pod1", "nameserver 10.0.0.10\n")
    );
    let network = plan.spec.network.unwrap();
    assert_eq!(network.port_mappings.len(), 1, "ports without a host port are the pod's own");
    assert_eq!(network.args["K8S_POD_NAME"], "web");
    assert_eq!(network.args["K8S_POD_INFRA_CONTAINER_ID"], "id");
    assert_eq!((plan.record.phase, plan.record.created_at, plan.record.attempt), (PodPhase::Creating, 7, 3));
    assert_eq!(plan.record.labels, asked.labels);
    assert!(!plan.node_dns);
    let plain = planned("host", &pod()).unwrap();
    assert_eq!((plain.spec.kind, plain.spec.cgroup_parent.as_str(), plain.node_dns), (Kind::Host, "/cofferdam", true));
}

#[test]
fn a_container_s_pod_is_as_its_request_says() {
    let kept = |privileged| PodRecord { privileged, ..crate::records::tests::pod("p") };
    let sent = |privileged, directory: &str| {
        let context = LinuxSandboxSecurityContext { privileged, ..Default::default() };
        let linux = LinuxPodSandboxConfig { security_context: Some(context), ..Default::default() };
        PodSandboxConfig { log_directory: directory.into(), linux: Some(linux), ..pod() }
    };
    for (before, sent, privileged, directory) in [
        (false, None, false, "/var/log/pods/x"),
        (true, None, true, "/var/log/pods/x"),
        (false, Some(sent(true, "")), true, "/var/log/pods/x"),
        (true, Some(sent(false, "/var/log/pods/y")), false, "/var/log/pods/y"),
        (true, Some(PodSandboxConfig::default()), false, "/var/log/pods/x"),
    ] {
        let got = as_sent(kept(before), sent.as_ref()).unwrap();
        assert_eq!((got.privileged, got.log_directory.as_str()), (privileged, directory), "{before} {sent:?}");
    }
    assert!(as_sent(kept(false), Some(&sent(false, "logs"))).is_err());
}

#[test]
fn namespaces_of_the_node_are_for_host_pods() {
    let node = i32::from(NamespaceMode::Node);
    let mut asked = pod();
    options(&mut asked).network = node;
    options(&mut asked).ipc = node;
    options(&mut asked).pid = node;
    let spec = planned("host", &asked).unwrap().spec;
    assert!(spec.network.is_none() && spec.node_ipc && spec.node_pid);
    for (network, ipc) in [(node, 0), (0, node)] {
        let mut asked = pod();
        options(&mut asked).network = network;
        options(&mut asked).ipc = ipc;
        let error = planned("vm", &asked).unwrap_err();
        assert!(matches!(error, CriError::Invalid(_)) && error.to_string().contains("host"), "{error}");
    }
    // The node that a container in a microVM sees is the guest.
    let mut asked = pod();
    options(&mut asked).pid = node;
    let plan = planned("vm", &asked).unwrap();
    assert!(!plan.spec.node_pid && plan.record.namespaces.pid == node);
}

#[test]
fn crooked_pods_are_refused() {
    type Spoil = fn(&mut PodSandboxConfig);
    fn metadata(p: &mut PodSandboxConfig) -> &mut PodSandboxMetadata {
        p.metadata.as_mut().unwrap()
    }
    let rows: [(&str, Spoil); 21] = [
        ("no metadata", |p| p.metadata = None),
        ("no name", |p| metadata(p).name.clear()),
        ("no namespace", |p| metadata(p).namespace.clear()),
        ("no uid", |p| metadata(p).uid.clear()),
        ("CNI argument in the name", |p| metadata(p).name = "a;IP=10.0.0.1".into()),
        ("newline in the uid", |p| metadata(p).uid = "a\nb".into()),
        ("long name", |p| metadata(p).name = "a".repeat(254)),
        ("newline in the host name", |p| p.hostname = "a\nb".into()),
        ("blank in the host name", |p| p.hostname = "a b".into()),
        ("long host name", |p| p.hostname = "a".repeat(65)),
        ("relative log directory", |p| p.log_directory = "log".into()),
        ("climbing log directory", |p| p.log_directory = "/var/log/../../etc".into()),
        ("relative cgroup", |p| p.linux.as_mut().unwrap().cgroup_parent = "kubepods".into()),
        ("climbing cgroup", |p| p.linux.as_mut().unwrap().cgroup_parent = "/a/../..".into()),
        ("sysctl of the node", |p| drop(p.linux.as_mut().unwrap().sysctls.insert("vm.swappiness".into(), "1".into()))),
        ("unknown namespace mode", |p| options(p).pid = 9),
        ("network of a container", |p| options(p).network = NamespaceMode::Container.into()),
        ("user namespace", |p| options(p).userns_options = Some(UserNamespace::default())),
        ("port 0", |p| p.port_mappings.push(PortMapping { host_port: 80, ..Default::default() })),
        ("port 65536", |p| {
            p.port_mappings.push(PortMapping { host_port: 65_536, container_port: 1, ..Default::default() });
        }),
        ("host address that is none", |p| {
            let host_ip = "1.2.3.4 -j ACCEPT".into();
            p.port_mappings.push(PortMapping { host_port: 1, container_port: 1, host_ip, ..Default::default() });
        }),
    ];
    for (name, spoil) in rows {
        let mut asked = pod();
        spoil(&mut asked);
        for handler in ["vm", "host"] {
            let error = planned(handler, &asked).expect_err(name);
            assert!(matches!(error, CriError::Invalid(_)), "{name}: {error}");
        }
    }
    let error = planned("kata\u{1b}[0m", &pod()).unwrap_err();
    assert!(matches!(error, CriError::Invalid(_)));
}

/// Annotations by which other runtimes let a pod choose hypervisors, kernels, devices, cgroups or commands (docs: THREATS 15).
#[test]
fn no_annotation_changes_what_is_run() {
    let plain = planned("vm", &pod()).unwrap().spec;
    for key in [
        "io.katacontainers.config.hypervisor.path",
        "io.katacontainers.config.hypervisor.kernel",
        "io.katacontainers.config.hypervisor.kernel_params",
        "io.katacontainers.config.hypervisor.default_memory",
        "io.katacontainers.config.hypervisor.virtio_fs_daemon",
        "io.katacontainers.config.agent.kernel_modules",
        "io.kubernetes.cri-o.Devices",
        "io.kubernetes.cri-o.userns-mode",
        "io.kubernetes.cri-o.UnifiedCgroup",
        "io.kubernetes.cri-o.ShmSize",
        "io.containerd.runc.v2.group",
        "org.systemd.property.ExecStartPre",
        "run.oci.handler",
        "run.oci.hooks.stdout",
        "dev.gvisor.spec.mount",
        "security.alpha.kubernetes.io/sysctls",
    ] {
        let mut asked = pod();
        asked.annotations.insert(key.into(), "/bin/evil".into());
        asked.labels.insert(key.into(), "/bin/evil".into());
        let mut spec = planned("vm", &asked).unwrap().spec;
        // Network plugins that want them are told all annotations, and nothing else is.
        let told = spec.network.as_mut().map(|network| std::mem::take(&mut network.annotations));
        assert_eq!(told.unwrap_or_default().into_iter().collect::<HashMap<_, _>>(), asked.annotations, "{key}");
        assert_eq!(spec, plain, "{key}");
    }
}
