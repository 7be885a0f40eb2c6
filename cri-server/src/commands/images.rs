//! `cofferdam images`: what the store has.

mod export;
mod import;
mod prune;
mod pull;
mod verify;

use std::path::{Path, PathBuf};

use cofferdam_proto::cri::{Image, ListImagesRequest};
use serde_json::{Value, json};

use super::client::with_daemon;
use super::table::{Table, bytes, plain};
use super::{Format, Outcome, print};

/// What is to be done with images; without one they are listed.
#[derive(clap::Subcommand)]
pub(crate) enum Work {
    /// Pulls an image, and shows how far each of its layers is.
    Pull {
        /// As in a pod's `image`: `registry.example/name:tag`.
        reference: String,
    },
    /// Brings images of archives into the store, without a registry.
    ///
    /// An archive is an OCI layout (a directory or a tar) or what `docker save` and `podman save`
    /// write, also packed with gzip or zstd.
    Import {
        /// What the image is to be called, where an archive has only one; otherwise images have the
        /// names that the archive gives them.
        #[arg(long, value_name = "REFERENCE")]
        name: Option<String>,
        /// Archives; `-` is standard input.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Writes images into one archive, which `images import` and `docker load` take.
    ///
    /// The archive is an OCI layout in a tar, and what `docker save` writes as well. Layers are
    /// packed anew and not compressed: they and the image have other digests and ids than those of
    /// the registry.
    Export {
        /// Where to write the archive; `-` is standard output.
        #[arg(long, short = 'f', value_name = "FILE", default_value = "-")]
        file: PathBuf,
        /// Images, by name or id. One that is named by a tag has that name in the archive, and
        /// otherwise all its tags.
        #[arg(required = true, value_name = "REFERENCE")]
        references: Vec<String>,
    },
    /// Looks whether each layer is still what was pulled; status 1 when one is not.
    ///
    /// Everything is read, at low priority. A layer whose digest was not taken before, which takes
    /// a moment after a pull, is new: it counts as it is now.
    Verify,
    /// Removes the images that no container uses and that are not pinned.
    Prune,
}

pub(crate) fn run(path: Option<&Path>, format: Format, work: Option<Work>) -> Outcome {
    with_daemon(path, |mut daemon| async move {
        match work {
            Some(Work::Pull { reference }) => return pull::run(daemon, &reference).await,
            Some(Work::Import { name, files }) => return import::run(daemon, name, files).await,
            Some(Work::Export { file, references }) => return export::run(daemon, &file, references).await,
            Some(Work::Verify) => return verify::run(daemon).await,
            Some(Work::Prune) => return prune::run(daemon).await,
            None => {}
        }
        let mut images = daemon.images.list_images(ListImagesRequest::default()).await?.into_inner().images;
        images.sort_by_key(names);
        print(&match format {
            Format::Json => format!("{:#}\n", Value::from(images.iter().map(object).collect::<Vec<_>>())),
            Format::Table => table(&images).text(),
        })
    })
}

/// Its tags, or else its digests.
fn names(image: &Image) -> Vec<String> {
    let names = if image.repo_tags.is_empty() { &image.repo_digests } else { &image.repo_tags };
    names.clone()
}

fn object(image: &Image) -> Value {
    json!({
        "id": image.id, "tags": image.repo_tags, "digests": image.repo_digests, "bytes": image.size, "pinned": image.pinned,
    })
}

fn table(images: &[Image]) -> Table {
    let mut table = Table::new(&["NAME", "SIZE", "ID", "PINNED"]);
    for image in images {
        let id = image.id.trim_start_matches("sha256:");
        let pinned = if image.pinned { "yes" } else { "" };
        for name in names(image) {
            let id = id.chars().take(12).collect();
            table.row(vec![plain(&name), bytes(image.size), id, pinned.to_owned()]);
        }
    }
    table
}
