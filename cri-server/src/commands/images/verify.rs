//! `cofferdam images verify`.

use std::process::ExitCode;

use cofferdam_proto::images::{LayerState, VerifiedLayer, VerifyRequest};

use super::super::client::Daemon;
use super::super::table::plain;
use super::super::{Outcome, print};

pub(super) async fn run(mut daemon: Daemon) -> Outcome {
    let mut layers = daemon.admin.verify_layers(VerifyRequest {}).await?.into_inner();
    let mut seen = Seen::default();
    while let Some(layer) = layers.message().await? {
        if let Some(line) = seen.add(&layer) {
            print(&line)?;
        }
    }
    print(&seen.summary())?;
    Ok(if seen.changed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What there was so far.
#[derive(Default)]
struct Seen {
    intact: usize,
    new: usize,
    changed: usize,
}

impl Seen {
    /// Counts a layer, and says what is wrong with it.
    fn add(&mut self, layer: &VerifiedLayer) -> Option<String> {
        match layer.state() {
            LayerState::Intact => self.intact += 1,
            LayerState::New => self.new += 1,
            LayerState::Changed => {
                self.changed += 1;
                let images: Vec<_> = layer.images.iter().map(|image| plain(image)).collect();
                let images = if images.is_empty() { "no image".into() } else { images.join(", ") };
                return Some(format!("layer {} of {images}: {}\n", plain(&layer.chain_id), plain(&layer.detail)));
            }
        }
        None
    }

    fn summary(&self) -> String {
        let Self { intact, new, changed } = self;
        let mut text = format!("{intact} layers are intact, {new} new, {changed} damaged\n");
        if *changed > 0 {
            text.push_str("stop the containers of the images that are named, remove the images (crictl rmi), and pull them again\n");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_named_with_its_images() {
        let layer = |state: LayerState, images: &[&str]| VerifiedLayer {
            chain_id: "sha256:1".into(),
            images: images.iter().map(|&image| image.into()).collect(),
            state: state.into(),
            detail: "is\nbad".into(),
        };
        let mut seen = Seen::default();
        assert_eq!(seen.add(&layer(LayerState::Intact, &["a:1"])), None);
        assert_eq!(seen.add(&layer(LayerState::New, &[])), None);
        assert_eq!(seen.summary(), "1 layers are intact, 1 new, 0 damaged\n");
        let line = seen.add(&layer(LayerState::Changed, &["a:1", "b:1"])).unwrap();
        assert_eq!(line, "layer sha256:1 of a:1, b:1: is?bad\n");
        assert!(seen.add(&layer(LayerState::Changed, &[])).unwrap().contains("of no image"));
        assert!(seen.summary().contains("2 damaged") && seen.summary().contains("crictl rmi"));
    }
}
