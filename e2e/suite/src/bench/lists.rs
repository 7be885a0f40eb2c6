//! Lists of a full node: what the kubelet asks each second.

use std::time::{Duration, Instant};

use cofferdam_proto::cri;

use super::Samples;
use super::report::Row;
use crate::crictl::{BUSYBOX, SOCKET, wait_within};
use crate::failure::{Outcome, ensure};
use crate::openmetrics::{Exposition, scrape};
use crate::rpc::{Client, Net, container_config};

/// How often each list is asked for.
const ASKED: usize = 200;

/// The lists as the daemon's metrics call them, and the rows of what their client saw and of what the daemon counted.
const LISTS: [(&str, &str, &str); 2] = [
    ("ListPodSandbox", "list_200_pods_ms", "list_200_pods_server_ms"),
    ("ListContainers", "list_200_containers_ms", "list_200_containers_server_ms"),
];

/// Measures the lists alone, and says what they took.
pub(super) async fn alone(pods: usize) -> Outcome {
    let mut client = Client::connect("cofferdam", SOCKET).await?;
    client.pull(BUSYBOX).await?;
    let mut samples = Samples::default();
    measure(&mut client, pods, &mut samples).await?;
    rows(&samples).iter().for_each(|row| println!("bench: {}", row.markdown()));
    Ok(())
}

pub(super) fn rows(samples: &Samples) -> Vec<Row> {
    let rows = LISTS.iter().flat_map(|(_, client, server)| [client, server]);
    rows.map(|name| samples.row(name, None, "ms")).collect()
}

/// What the rows are of.
pub(super) fn note(pods: usize) -> String {
    format!(
        "Lists: {pods} host pods with a created container each. `…_server_ms` is the daemon's own time for each call \
         (`cofferdam_rpc_duration_seconds`): from its headers to its whole answer being encoded and with HTTP/2, the writing to the \
         socket not included. The other rows are what a client in the node saw: the socket both ways and the reading of the answer are \
         in. containerd was not asked: as many pods take it a quarter of an hour here."
    )
}

/// Makes so many pods with a container each (created: a list does not care whether it runs), asks, and removes them.
pub(super) async fn measure(client: &mut Client, pods: usize, samples: &mut Samples) -> Outcome {
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
    let mut before = scrape()?;
    for _ in 0..ASKED {
        let clients = ask(client, pods).await?;
        let after = once_counted(&before)?;
        for ((method, row, server_row), time) in LISTS.into_iter().zip(clients) {
            samples.took(row, "ours", time);
            samples.add(server_row, "ours", server_ms(&before, &after, method)?);
        }
        before = after;
    }
    for pod in made {
        client.remove(&pod).await?;
    }
    Ok(())
}

/// Asks for each list once: what the client saw.
async fn ask(client: &mut Client, pods: usize) -> Outcome<[Duration; 2]> {
    let began = Instant::now();
    let answer = client.runtime.list_pod_sandbox(cri::ListPodSandboxRequest { filter: None }).await;
    let pods_took = began.elapsed();
    let listed = answer.map_err(|s| client.failed("ListPodSandbox", &s))?.into_inner().items.len();
    ensure!(listed == pods, "{listed} pods are listed, {pods} were made");
    let began = Instant::now();
    let answer = client.runtime.list_containers(cri::ListContainersRequest { filter: None }).await;
    let containers_took = began.elapsed();
    let listed = answer.map_err(|s| client.failed("ListContainers", &s))?.into_inner().containers.len();
    ensure!(listed == pods, "{listed} containers are listed, {pods} were made");
    Ok([pods_took, containers_took])
}

/// Successful calls of a method, or the seconds that they took.
fn counted(metrics: &Exposition, method: &str, what: &str) -> f64 {
    let labels = [("method", method), ("code", "Ok")];
    metrics.value(&format!("cofferdam_rpc_duration_seconds_{what}"), &labels).unwrap_or(0.0)
}

/// Metrics in which each list has been counted once more: a client may have its answer a little earlier.
fn once_counted(before: &Exposition) -> Outcome<Exposition> {
    let mut after = scrape()?;
    wait_within(Duration::from_secs(60), Duration::from_millis(1), "the daemon to count the lists", || {
        let all = LISTS.iter().all(|(method, ..)| counted(&after, method, "count") > counted(before, method, "count"));
        if !all {
            after = scrape()?;
        }
        Ok(all)
    })?;
    Ok(after)
}

/// What the daemon took for the one call of a list between two answers of its metrics.
fn server_ms(before: &Exposition, after: &Exposition, method: &str) -> Outcome<f64> {
    let more = |what| counted(after, method, what) - counted(before, method, what);
    let calls = more("count").round() as i64;
    ensure!(calls == 1, "{calls} calls of {method} are counted, one was made: somebody else lists, too");
    Ok(more("sum") * 1000.0)
}
