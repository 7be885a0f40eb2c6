//! Devices of the node by the Container Device Interface.

use std::fs;
use std::path::{Path, PathBuf};

use cofferdam_proto::cri;
use serde_json::json;
use tonic::Code;

use super::Test;
use crate::crictl::{self, BUSYBOX, Crictl};
use crate::failure::{Doing, Outcome, ensure};
use crate::rpc::{Client, Net, container_config};

pub(super) const TESTS: &[Test] = &[("cdi_device", cdi_device)];

const FILE: &str = "/etc/cdi/cofferdam-e2e.json";
const KNOWN: &str = "e2e.cofferdam/toy=one";
const UNKNOWN: &str = "e2e.cofferdam/toy=two";

/// What an administrator, or a device plugin's installer, puts on a node.
struct OnNode {
    library: PathBuf,
}

impl OnNode {
    fn new() -> Outcome<Self> {
        let node = Self { library: "/run/cofferdam-e2e/cdi".into() };
        fs::create_dir_all(&node.library).doing("make the folder of a device's library")?;
        fs::write(node.library.join("version"), "7.1").doing("write a device's library")?;
        fs::create_dir_all("/etc/cdi").doing("make /etc/cdi")?;
        let device = json!({
            "name": "one",
            "containerEdits": {
                "env": ["TOY_DEVICE=one"],
                // One that every container may use, and one that none may use without being given it.
                "deviceNodes": [
                    {"path": "/dev/toy-null", "hostPath": "/dev/null"},
                    {"path": "/dev/toys/kvm", "hostPath": "/dev/kvm", "permissions": "rwm"},
                ],
                "mounts": [{
                    "hostPath": node.library, "containerPath": "/opt/toy", "options": ["ro", "nosuid", "nodev", "bind"],
                }],
                "additionalGids": [4242],
            },
        });
        let spec = json!({
            "cdiVersion": "0.7.0",
            "kind": "e2e.cofferdam/toy",
            "containerEdits": {"env": ["TOY_DRIVER=all"]},
            "devices": [device],
        });
        fs::write(FILE, spec.to_string()).doing(&format!("write {FILE}"))?;
        Ok(node)
    }
}

impl Drop for OnNode {
    fn drop(&mut self) {
        let _ = fs::remove_file(FILE);
        let _ = fs::remove_dir_all(&self.library);
    }
}

/// What a container says of its devices; the same number without its device must not open.
const SCRIPT: &str = "echo driver=$TOY_DRIVER device=$TOY_DEVICE own=$OWN; echo version=$(cat /opt/toy/version); \
    touch /opt/toy/x 2>&1; stat -c 'is %F %t:%T' /dev/toy-null; [ -c /dev/toy-null ] && echo gone > /dev/toy-null && echo swallowed; \
    (: < /dev/toys/kvm) && echo given opens; mknod /tmp/kvm c 10 232; (: < /tmp/kvm) 2>/dev/null && echo taken opens; \
    id -G; echo whole; exec sleep 100000";

fn config(name: &str, devices: &[&str]) -> cri::ContainerConfig {
    cri::ContainerConfig {
        cdi_devices: devices.iter().map(|name| cri::CdiDevice { name: (*name).into() }).collect(),
        envs: vec![cri::KeyValue { key: "OWN".into(), value: b"kept".to_vec() }],
        ..container_config(name, BUSYBOX, &["sh", "-c", SCRIPT])
    }
}

fn cdi_device() -> Outcome {
    let _node = OnNode::new()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.doing("start tokio")?.block_on(async {
        let mut client = Client::connect("cdi", crictl::SOCKET).await?;
        let (pod, sandbox) = client.run_pod("host", Net::Cni).await?;
        given(&mut client, &pod, &sandbox).await?;
        refused(&mut client, &pod, &sandbox, UNKNOWN, &[UNKNOWN, "/etc/cdi", "/var/run/cdi"]).await?;
        refused(&mut client, &pod, &sandbox, "toy", &["\"toy\"", "vendor/class=device"]).await?;
        client.remove(&pod).await?;

        let (pod, sandbox) = client.run_pod("vm", Net::Cni).await?;
        refused(&mut client, &pod, &sandbox, KNOWN, &["CDI", "microVM", "handler \"host\""]).await?;
        client.remove(&pod).await
    })
}

async fn given(client: &mut Client, pod: &str, sandbox: &cri::PodSandboxConfig) -> Outcome {
    let crictl = Crictl::default();
    let container = client.create(pod, sandbox.clone(), config("with", &[KNOWN])).await?;
    client.start_container(&container).await?;
    let log = crictl.wait_log(&container, "whole")?;
    let all =
        ["driver=all device=one own=kept", "version=7.1", "Read-only file system", "is character special file 1:3"];
    for wanted in all.into_iter().chain(["swallowed", "given opens", "4242"]) {
        ensure!(log.contains(wanted), "no {wanted:?} in the container's words: {log}");
    }
    // It was given /dev/kvm by this number, so the other node of it opens, too.
    ensure!(log.contains("taken opens"), "the device's number is not allowed by itself: {log}");
    ensure!(!Path::new("/run/cofferdam-e2e/cdi/x").exists(), "the container wrote into a read-only mount");

    let without = client.create(pod, sandbox.clone(), config("without", &[])).await?;
    client.start_container(&without).await?;
    let log = crictl.wait_log(&without, "whole")?;
    for unwanted in ["driver=all", "version=7.1", "swallowed", "given opens", "taken opens", "4242"] {
        ensure!(!log.contains(unwanted), "a container that asked for no device has {unwanted:?}: {log}");
    }
    ensure!(log.contains("own=kept"), "the container without devices: {log}");
    Ok(())
}

/// CreateContainer says no, names what it refuses, and leaves nothing.
async fn refused(
    client: &mut Client,
    pod: &str,
    sandbox: &cri::PodSandboxConfig,
    device: &str,
    wanted: &[&str],
) -> Outcome {
    let request = cri::CreateContainerRequest {
        pod_sandbox_id: pod.into(),
        config: Some(config("refused", &[device])),
        sandbox_config: Some(sandbox.clone()),
    };
    let answer = client.runtime.create_container(request).await;
    let status = answer.err().ok_or(format!("a container with the device {device} was created"))?;
    ensure!(status.code() == Code::InvalidArgument, "{device}: {:?}: {}", status.code(), status.message());
    for text in wanted {
        ensure!(status.message().contains(text), "{device}: the refusal does not say {text:?}: {}", status.message());
    }
    let filter = cri::ContainerFilter { pod_sandbox_id: pod.into(), ..Default::default() };
    let listed = client.runtime.list_containers(cri::ListContainersRequest { filter: Some(filter) }).await;
    let listed = listed.map_err(|s| client.failed("ListContainers", &s))?.into_inner().containers;
    let names = listed.iter().filter_map(|c| c.metadata.as_ref().map(|m| m.name.as_str()));
    ensure!(!names.clone().any(|n| n == "refused"), "a refused container is listed");
    Ok(())
}
