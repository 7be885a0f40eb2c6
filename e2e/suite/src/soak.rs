//! Pods come and go by the hundred; afterwards the node and the daemon have what they had before.
//!
//! Most host pods use the node's network: in an emulated node a CNI chain takes longer than everything else together, and what it
//! leaves is counted with the `cni` ones.

use std::time::{Duration, Instant};

use clap::Args;

use crate::crictl::{self, BUSYBOX};
use crate::failure::{Doing, Outcome, ensure};
use crate::rpc::{Client, Net};
use reading::Reading;

mod reading;

/// How many pods.
#[derive(Args, Debug, Clone, Copy)]
pub(crate) struct Options {
    /// Host pods on the node's network.
    #[arg(long, default_value_t = 450)]
    pub(crate) host: usize,
    /// Host pods with the CNI chain.
    #[arg(long, default_value_t = 50)]
    pub(crate) cni: usize,
    /// Pods in microVMs, which always have the CNI chain.
    #[arg(long, default_value_t = 100)]
    pub(crate) vm: usize,
    /// Pods of each kind beforehand that do not count: caches and pools of threads are filled then.
    #[arg(long, default_value_t = 10)]
    pub(crate) warm_up: usize,
}

/// How long the daemon may take to let go of idle threads, and its allocator of memory.
const SETTLE: Duration = Duration::from_secs(90);

/// Runs it.
pub(crate) fn run(options: &Options) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().doing("start tokio")?;
    runtime.block_on(soak(options))
}

async fn soak(options: &Options) -> Outcome {
    let mut client = Client::connect("soak", crictl::SOCKET).await?;
    client.pull(BUSYBOX).await?;
    let kinds = [
        ("host", Net::Node, options.host, "host pods on the node's network"),
        ("host", Net::Cni, options.cni, "host pods with CNI"),
        ("vm", Net::Cni, options.vm, "vm pods"),
    ];
    for (handler, net, pods, _) in kinds {
        for _ in 0..options.warm_up.min(pods) {
            one(&mut client, handler, net).await?;
        }
    }
    let before = settled(None).await?;
    println!("soak: before: {before}");
    for (handler, net, pods, title) in kinds {
        let began = Instant::now();
        for number in 1..=pods {
            one(&mut client, handler, net).await?;
            if number % 50 == 0 {
                println!("soak: {number} of {pods} {title}; {}", Reading::take()?);
            }
        }
        println!("soak: {pods} {title} in {:.0} s", began.elapsed().as_secs_f64());
    }
    let after = settled(Some(&before)).await?;
    println!("soak: after:  {after}");
    let leaks = after.beyond(&before);
    ensure!(
        leaks.is_empty(),
        "after {} pods there is more than before:{leaks}",
        kinds.iter().map(|k| k.2).sum::<usize>()
    );
    Ok(())
}

/// One pod's whole life: run, container created and started, used, stopped, removed.
async fn one(client: &mut Client, handler: &str, net: Net) -> Outcome {
    let started = client.start(handler, net, BUSYBOX).await?;
    client.exec_true(&started.container).await?;
    client.remove(&started.pod).await
}

/// The best reading of a while: until nothing is beyond `before`, or its memory is as low as it gets.
async fn settled(before: Option<&Reading>) -> Outcome<Reading> {
    let began = Instant::now();
    let mut best = Reading::take()?;
    while began.elapsed() < SETTLE {
        // Blocking threads of tokio end after 10 s without work.
        tokio::time::sleep(Duration::from_secs(3)).await;
        best = Reading::take()?.with_least_memory(&best);
        let quiet = began.elapsed() > Duration::from_secs(15);
        if quiet && before.is_none_or(|before| best.beyond(before).is_empty()) {
            break;
        }
    }
    Ok(best)
}
