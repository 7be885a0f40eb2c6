//! `cofferdam images`: what the store has.

use std::path::Path;

use cofferdam_proto::cri::{Image, ListImagesRequest};
use serde_json::{Value, json};

use super::client::with_daemon;
use super::table::{Table, bytes, plain};
use super::{Format, Outcome, print};

pub(crate) fn run(path: Option<&Path>, format: Format) -> Outcome {
    with_daemon(path, |mut daemon| async move {
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
