//! How fast work is inside running pods: in a microVM, on the host and in one of the peer's, in turn,
//! in containers alike.

mod counts;
mod network;
mod operations;
mod pod;

use std::collections::BTreeMap;
use std::path::Path;

use super::report::{self, Row};
use super::targets::{self, Limit, Target};
use super::{PEER_SOCKET, Samples};
use crate::crictl::SOCKET;
use crate::failure::Outcome;
use crate::rpc::Client;
use network::{Errors, Servers};
use operations::{OPERATIONS, Operation};
use pod::Pod;

/// What is measured, and the handler that its pods ask for.
const WHO: [(&str, &str); 3] = [("vm", "vm"), ("host", "host"), ("peer", "")];
/// Segments that TCP sent again, and what was lost on the way into the pod, over all rounds.
const RETRANSMISSIONS: &str = "net_retransmissions";
const ERRORS: &str = "net_errors";

/// Measures the workloads alone, and adds their rows to the report that is there.
pub(super) async fn alone(folder: &Path, n: usize) -> Outcome {
    let servers = Servers::start()?;
    let mut ours = Client::connect("cofferdam", SOCKET).await?;
    let mut peer = Client::connect("containerd", PEER_SOCKET).await?;
    crate::templates::settle();
    for client in [&mut ours, &mut peer] {
        client.pull(pod::IMAGE).await?;
    }
    let mut pods = Vec::new();
    for (who, handler) in WHO {
        let client = if who == "peer" { peer.another() } else { ours.another() };
        pods.push(Pod::start(client, who, handler).await?);
    }
    println!("bench: one round of work that does not count");
    round(&mut pods, &servers, &mut Samples::default(), &mut BTreeMap::new()).await?;
    let mut samples = Samples::default();
    let mut errors = BTreeMap::new();
    for number in 1..=n {
        println!("bench: work, round {number} of {n}");
        round(&mut pods, &servers, &mut samples, &mut errors).await?;
    }
    for (who, errors) in errors {
        samples.add(RETRANSMISSIONS, who, errors.retransmitted as f64);
        samples.add(ERRORS, who, errors.not_received as f64);
    }
    let rows = rows(&samples);
    rows.iter().for_each(|row| println!("bench: {}", row.markdown()));
    report::add(folder, &rows, &targets::notes(&targets(), &rows))?;
    let vm = pods.first_mut().ok_or("there is no vm pod")?;
    report::put_section(folder, counts::TITLE, &counts::measure(vm, &servers).await?)?;
    for pod in pods {
        pod.remove().await?;
    }
    Ok(())
}

/// Every operation in every pod, in turn.
async fn round(
    pods: &mut [Pod],
    servers: &Servers,
    samples: &mut Samples,
    errors: &mut BTreeMap<&'static str, Errors>,
) -> Outcome {
    for operation in OPERATIONS {
        for pod in &mut *pods {
            let before = if operation.is_network() { Some(pod.errors().await?) } else { None };
            pod.prepare(operation).await?;
            let value = pod.run(operation, servers).await?;
            samples.add(operation.row, pod.who, value);
            if let Some(before) = before {
                *errors.entry(pod.who).or_default() += pod.errors().await? - before;
            }
        }
    }
    Ok(())
}

fn rows(samples: &Samples) -> Vec<Row> {
    let work = OPERATIONS.iter().map(|operation| (operation.row, operation.measure.unit()));
    work.chain([(RETRANSMISSIONS, "segments"), (ERRORS, "packets")])
        .flat_map(|(row, unit)| ["vm", "host"].map(|handler| samples.row(row, Some(handler), unit)))
        .collect()
}

fn targets() -> Vec<Target> {
    let of = |operation: &Operation| {
        let limit = if operation.measure.is_rate() { Limit::Least } else { Limit::Most };
        let row = operation.row;
        let target = |handler, value| Target { row, handler: Some(handler), ratio: true, limit: limit(value) };
        operation.targets.map(|(vm, host)| [target("vm", vm), target("host", host)])
    };
    let none_of = |row, handler| Target { row, handler: Some(handler), ratio: false, limit: Limit::Most(0.0) };
    let none = |row| ["vm", "host"].map(|handler| none_of(row, handler));
    OPERATIONS.iter().filter_map(of).chain([none(RETRANSMISSIONS), none(ERRORS)]).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_is_measured_in_both_kinds_of_pods() {
        let mut samples = Samples::default();
        for operation in OPERATIONS {
            for (who, _) in WHO {
                samples.add(operation.row, who, 10.0);
            }
        }
        for (who, _) in WHO {
            samples.add(RETRANSMISSIONS, who, 0.0);
            samples.add(ERRORS, who, 0.0);
        }
        let rows = rows(&samples);
        assert_eq!(rows.len(), 2 * (OPERATIONS.len() + 2));
        rows.iter().try_for_each(Row::ensure_measured).unwrap();
        let notes = targets::notes(&targets(), &rows);
        assert!(notes.contains(&"Target: `net_in_mbit` (vm) at least 0.5 of the peer: 1.00, met.".into()), "{notes:?}");
        assert!(notes.contains(&"Target: `net_errors` (host) at most 0 packets: 0.00, met.".into()), "{notes:?}");
    }
}
