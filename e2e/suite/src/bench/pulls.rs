//! Pulls of images of several shapes (e2e/node/bench_images.py), each beside containerd's.

use std::time::Duration;

use super::report::{self, Row};
use super::{Options, PEER_SOCKET, Samples, targets};
use crate::crictl::SOCKET;
use crate::failure::{Failure, Outcome};
use crate::rpc::Client;

/// Rows, and the images that they pull.
const PULLS: &[(&str, &str)] = &[
    ("pull", "registry.k8s.io/cofferdam/big:1"),
    ("pull_60mb_5_layers", "registry.k8s.io/cofferdam/bench/60mb-5-layers:1"),
    ("pull_300mb_5_layers", "registry.k8s.io/cofferdam/bench/300mb-5-layers:1"),
    ("pull_20_layers", "registry.k8s.io/cofferdam/bench/20-layers:1"),
    ("pull_many_small_files", "registry.k8s.io/cofferdam/bench/many-small-files:1"),
    ("pull_zstd", "registry.k8s.io/cofferdam/bench/zstd:1"),
];
/// The image that ten pods want at once.
const SHARED: &str = "registry.k8s.io/cofferdam/bench/60mb-5-layers:1";
const AT_ONCE: usize = 10;
/// The time of so many pulls at once in that of one.
const TEN: &str = "ten_pulls_at_once";
const UNCHANGED: &str = "pull_unchanged_tag_ms";

/// Measures the pulls alone, and adds their rows to the report that is there.
pub(super) async fn alone(options: &Options) -> Outcome {
    let mut ours = Client::connect("cofferdam", SOCKET).await?;
    let mut peer = Client::connect("containerd", PEER_SOCKET).await?;
    let mut samples = Samples::default();
    measure(&mut ours, &mut peer, options.pulls, &mut samples).await?;
    let rows = rows(&samples);
    rows.iter().for_each(|row| println!("bench: {}", row.markdown()));
    report::add(&options.out, &rows, &targets::notes(targets::TARGETS, &rows))
}

pub(super) fn rows(samples: &Samples) -> Vec<Row> {
    let mut rows: Vec<Row> = PULLS.iter().map(|(name, _)| samples.row(name, None, "ms")).collect();
    rows.extend([samples.row(TEN, None, "of one pull"), samples.row(UNCHANGED, None, "ms")]);
    rows
}

/// So many pulls of each image, in turn.
pub(super) async fn measure(ours: &mut Client, peer: &mut Client, rounds: usize, samples: &mut Samples) -> Outcome {
    for (row, image) in PULLS {
        for round in 0..rounds {
            println!("bench: {row} {} of {rounds}", round + 1);
            for (who, client) in [("ours", &mut *ours), ("peer", &mut *peer)] {
                samples.took(row, who, anew(client, image).await?);
                client.remove_image(image).await?;
            }
        }
    }
    for _ in 0..rounds {
        for (who, client) in [("ours", &mut *ours), ("peer", &mut *peer)] {
            let one = anew(client, SHARED).await?;
            samples.took(UNCHANGED, who, client.pull(SHARED).await?);
            client.remove_image(SHARED).await?;
            rustix::fs::sync();
            let ten = together(client).await?;
            samples.add(TEN, who, ten.as_secs_f64() / one.as_secs_f64());
            client.remove_image(SHARED).await?;
        }
    }
    Ok(())
}

/// A pull of an image that is not there.
async fn anew(client: &mut Client, image: &str) -> Outcome<Duration> {
    client.remove_image(image).await?;
    rustix::fs::sync();
    client.pull(image).await
}

/// Pulls of one image at once; gives the time of the one that ends last.
async fn together(client: &mut Client) -> Outcome<Duration> {
    let mut pulls = tokio::task::JoinSet::new();
    for _ in 0..AT_ONCE {
        let mut other = client.another();
        pulls.spawn(async move { other.pull(SHARED).await });
    }
    let mut longest = Duration::ZERO;
    while let Some(pulled) = pulls.join_next().await {
        let took = pulled.map_err(|e| Failure(format!("a pull's task: {e}")))??;
        longest = longest.max(took);
    }
    Ok(longest)
}
