//! Any order of calls, from several clients at once, some hung up on, some past their deadline, the
//! daemon killed in between: what is there afterwards is legal (`cofferdam_proto::legal`), works,
//! and can be removed.

mod client;
mod dice;
mod stuck;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cofferdam_proto::{cri, legal};

use super::Test;
use crate::crictl::{self, BUSYBOX};
use crate::daemon;
use crate::failure::{Doing, Failure, Outcome, ensure};
use crate::rpc::{Client, container_config};
use dice::Dice;

pub(super) const TESTS: &[Test] = &[("any_order_of_calls_ends_legal", any_order)];

/// Clients at once, and the least and the most calls of each.
const CLIENTS: u32 = 4;
const CALLS: u32 = 60;
const MOST_CALLS: u32 = 600;
/// How often the daemon is killed.
const KILLS: u32 = 2;

/// What the clients share.
#[derive(Default)]
struct World {
    pods: Mutex<Vec<(String, cri::PodSandboxConfig)>>,
    containers: Mutex<Vec<String>>,
    /// Raised before the daemon is killed, and when it is back.
    epoch: AtomicU32,
    /// Verb and outcome.
    outcomes: Mutex<BTreeMap<String, u32>>,
}

impl World {
    /// A call of [`client::VERBS`] that has not succeeded yet.
    fn without_success(&self) -> Option<&'static str> {
        let outcomes = lock(&self.outcomes);
        client::VERBS.into_iter().find(|verb| !outcomes.contains_key(&format!("{verb} Ok")))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn any_order() -> Outcome {
    let seed = match std::env::var("COFFERDAM_SEED") {
        Ok(text) => text.parse().doing("read COFFERDAM_SEED as a number")?,
        Err(_) => std::time::UNIX_EPOCH.elapsed().doing("read the clock")?.as_secs(),
    };
    println!("        any_order: seed {seed}; COFFERDAM_SEED={seed} makes the same programs again");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let outcome = runtime.doing("start tokio")?.block_on(drive(seed));
    outcome.map_err(|f| Failure(format!("seed {seed}: {f}")))
}

async fn drive(seed: u64) -> Outcome {
    let world = Arc::new(World::default());
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..CLIENTS {
        let client = Client::connect("order", crictl::SOCKET).await?;
        let program = client::Program::new(client, world.clone(), Dice::new(seed, number), number);
        clients.spawn(program.run(CALLS, MOST_CALLS));
    }
    let killer = tokio::spawn(kill(world.clone(), Dice::new(seed, CLIENTS)));
    while let Some(ended) = clients.join_next().await {
        ended.doing("run a client")??;
    }
    killer.await.doing("kill the daemon")??;
    let outcomes = lock(&world.outcomes).clone();
    println!("        any_order: {outcomes:?}");
    if let Some(verb) = world.without_success() {
        return Err(Failure(format!(
            "no {verb} succeeded in {MOST_CALLS} calls of each client: the test shows nothing of it"
        )));
    }
    let mut client = Client::connect("order", crictl::SOCKET).await?;
    let pods = at_rest(&mut client).await?;
    works(&mut client, &world, &pods).await?;
    for pod in &pods {
        client.remove(&pod.id).await?;
    }
    let (pods, containers) = lists(&mut client).await?;
    ensure!(pods.is_empty() && containers.is_empty(), "still listed after their removal: {pods:?} {containers:?}");
    Ok(())
}

async fn kill(world: Arc<World>, mut dice: Dice) -> Outcome {
    for _ in 0..KILLS {
        tokio::time::sleep(Duration::from_millis(3_000 + dice.below(9_000))).await;
        world.epoch.fetch_add(1, Ordering::SeqCst);
        let killed = tokio::task::spawn_blocking(daemon::kill_and_restart).await;
        world.epoch.fetch_add(1, Ordering::SeqCst);
        killed.doing("kill the daemon")??;
    }
    Ok(())
}

async fn lists(client: &mut Client) -> Outcome<(Vec<cri::PodSandbox>, Vec<cri::Container>)> {
    let pods = client.runtime.list_pod_sandbox(cri::ListPodSandboxRequest { filter: None }).await;
    let pods = pods.map_err(|s| client.failed("ListPodSandbox", &s))?.into_inner().items;
    let containers = client.runtime.list_containers(cri::ListContainersRequest { filter: None }).await;
    let containers = containers.map_err(|s| client.failed("ListContainers", &s))?.into_inner().containers;
    Ok((pods, containers))
}

/// Waits until calls whose clients left have ended and all is legal; the pods then.
async fn at_rest(client: &mut Client) -> Outcome<Vec<cri::PodSandbox>> {
    let mut quiet = 0;
    let mut last = (Vec::new(), Vec::new());
    for _ in 0..60 {
        let now = lists(client).await?;
        quiet = if now == last { quiet + 1 } else { 0 };
        last = now;
        if quiet >= 2 {
            match legal_now(client, &last).await {
                Ok(()) => return Ok(last.0),
                Err(failure) if quiet > 15 => return Err(failure),
                Err(_) => {}
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Err("pods and containers still change a minute after the last call".into())
}

async fn legal_now(client: &mut Client, (pods, containers): &(Vec<cri::PodSandbox>, Vec<cri::Container>)) -> Outcome {
    let mut statuses = Vec::new();
    for item in containers {
        let request = cri::ContainerStatusRequest { container_id: item.id.clone(), verbose: false };
        let answer =
            client.runtime.container_status(request).await.map_err(|s| client.failed("ContainerStatus", &s))?;
        let status = answer.into_inner().status.ok_or("a container's status is empty")?;
        legal::container(&status)?;
        legal::container_listed(item, &status)?;
        ensure!(pods.iter().any(|p| p.id == item.pod_sandbox_id), "container {} is of no pod", item.id);
        statuses.push((item.pod_sandbox_id.clone(), status));
    }
    for item in pods {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: item.id.clone(), verbose: false };
        let answer =
            client.runtime.pod_sandbox_status(request).await.map_err(|s| client.failed("PodSandboxStatus", &s))?;
        let status = answer.into_inner().status.ok_or("a pod's status is empty")?;
        legal::pod(&status)?;
        legal::pod_listed(item, &status)?;
        let own: Vec<_> = statuses.iter().filter(|(pod, _)| *pod == item.id).map(|(_, s)| s.clone()).collect();
        legal::at_rest(&status, &own)?;
    }
    Ok(())
}

/// Every pod that is said to be ready takes and runs another container, and every container that is
/// said to run takes a command.
async fn works(client: &mut Client, world: &World, pods: &[cri::PodSandbox]) -> Outcome {
    let (_, containers) = lists(client).await?;
    for pod in pods.iter().filter(|p| p.state() == cri::PodSandboxState::SandboxReady) {
        let known = lock(&world.pods).iter().find(|(id, _)| *id == pod.id).map(|(_, config)| config.clone());
        let config = container_config("last", BUSYBOX, &["sleep", "1000000"]);
        let id = client.create(&pod.id, known.unwrap_or_default(), config).await?;
        client.start_container(&id).await?;
        client.exec_true(&id).await?;
    }
    for container in containers.iter().filter(|c| c.state() == cri::ContainerState::ContainerRunning) {
        client.exec_true(&container.id).await?;
    }
    Ok(())
}
