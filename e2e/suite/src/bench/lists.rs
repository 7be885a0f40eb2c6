//! Lists of a full node: what the kubelet asks each second.

use std::time::{Duration, Instant};

use cofferdam_proto::cri;

use crate::crictl::BUSYBOX;
use crate::failure::{Outcome, ensure};
use crate::rpc::{Client, Net, container_config};

/// How often each list is asked for.
const ASKED: usize = 200;

/// What one call of each kind took, as its client saw it: the daemon's own time, the way through the socket and the reading of the answer.
#[derive(Default)]
pub(super) struct Lists {
    pub(super) pods: Vec<Duration>,
    pub(super) containers: Vec<Duration>,
}

/// Makes so many pods with a container each (created: a list does not care whether it runs), asks, and removes them.
pub(super) async fn measure(client: &mut Client, pods: usize) -> Outcome<Lists> {
    let mut made = Vec::new();
    for number in 0..pods {
        if number % 50 == 0 {
            println!("bench: lists: pod {number} of {pods}");
        }
        let (pod, config) = client.run_pod("host", Net::Node).await?;
        let container = container_config("idle", BUSYBOX, &["sleep", "1000000"]);
        client.create(&pod, config, container).await?;
        made.push(pod);
    }
    let lists = ask(client, pods).await?;
    for pod in made {
        client.remove(&pod).await?;
    }
    Ok(lists)
}

async fn ask(client: &mut Client, pods: usize) -> Outcome<Lists> {
    let mut lists = Lists::default();
    for _ in 0..ASKED {
        let began = Instant::now();
        let answer = client.runtime.list_pod_sandbox(cri::ListPodSandboxRequest { filter: None }).await;
        lists.pods.push(began.elapsed());
        let listed = answer.map_err(|s| client.failed("ListPodSandbox", &s))?.into_inner().items.len();
        ensure!(listed == pods, "{listed} pods are listed, {pods} were made");
        let began = Instant::now();
        let answer = client.runtime.list_containers(cri::ListContainersRequest { filter: None }).await;
        lists.containers.push(began.elapsed());
        let listed = answer.map_err(|s| client.failed("ListContainers", &s))?.into_inner().containers.len();
        ensure!(listed == pods, "{listed} containers are listed, {pods} were made");
    }
    Ok(lists)
}
