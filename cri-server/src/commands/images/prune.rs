//! `cofferdam images prune`.

use std::collections::HashSet;

use cofferdam_proto::cri::{Image, ImageSpec, ListContainersRequest, ListImagesRequest, RemoveImageRequest};

use super::super::client::Daemon;
use super::super::table::{bytes, plain};
use super::super::{Outcome, print};
use super::names;

pub(super) async fn run(mut daemon: Daemon) -> Outcome {
    // The images first: the container of an image that comes afterwards is no reason to remove it.
    let images = daemon.images.list_images(ListImagesRequest::default()).await?.into_inner().images;
    let containers = daemon.runtime.list_containers(ListContainersRequest::default()).await?.into_inner().containers;
    let used = containers.into_iter().map(|container| container.image_ref).collect();
    let mut freed = 0;
    for image in unused(images, &used) {
        let image_spec = Some(ImageSpec { image: image.id.clone(), ..Default::default() });
        daemon.patient.remove_image(RemoveImageRequest { image: image_spec }).await?;
        let name = names(&image).into_iter().next().unwrap_or(image.id);
        print(&format!("removed {}, {}\n", plain(&name), bytes(image.size)))?;
        freed += image.size;
    }
    print(&format!("{} in all; layers that other images have stay\n", bytes(freed)))
}

/// The images that are not pinned and that no container has, by what containers say of theirs.
fn unused(images: Vec<Image>, used: &HashSet<String>) -> impl Iterator<Item = Image> {
    images.into_iter().filter(|image| {
        let mut names = std::iter::once(&image.id).chain(&image.repo_digests).chain(&image.repo_tags);
        !image.pinned && !names.any(|name| used.contains(name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_that_are_pinned_or_in_use_stay() {
        let image = |id: &str, digest: &str, pinned| Image {
            id: id.into(),
            repo_digests: vec![digest.into()],
            pinned,
            ..Default::default()
        };
        let images = vec![
            image("sha256:1", "a@sha256:1", false),
            image("sha256:2", "b@sha256:2", false),
            image("sha256:3", "c@sha256:3", true),
            image("sha256:4", "d@sha256:4", false),
        ];
        let used = ["sha256:1", "b@sha256:2"].map(str::to_owned).into();
        let ids: Vec<_> = unused(images, &used).map(|image| image.id).collect();
        assert_eq!(ids, ["sha256:4"]);
    }
}
