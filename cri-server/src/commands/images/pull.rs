//! `cofferdam images pull`: has the daemon pull an image, and asks it meanwhile how far it is.

use std::time::Duration;

use cofferdam_proto::cri::{ImageSpec, ImageStatusRequest, PullImageRequest};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde::Deserialize;

use super::super::client::Daemon;
use super::super::table::plain;
use super::super::{Outcome, print};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);

/// A layer, as the daemon tells in a verbose ImageStatus.
#[derive(Deserialize)]
struct Layer {
    digest: String,
    bytes_done: u64,
    bytes_total: u64,
    done: bool,
}

impl Layer {
    /// The first digits of the digest.
    fn short(&self) -> String {
        let hex = self.digest.split_once(':').map_or(&*self.digest, |(_, hex)| hex);
        plain(hex).chars().take(12).collect()
    }

    fn stage(&self) -> &'static str {
        match (self.done, self.bytes_done == self.bytes_total) {
            (true, _) => "done",
            (false, true) => "unpacking",
            (false, false) => "",
        }
    }
}

/// The layers of a running pull, from the `info` of a verbose ImageStatus.
fn layers(info: &str) -> Option<Vec<Layer>> {
    serde_json::from_str(info).ok()
}

pub(super) async fn run(daemon: Daemon, reference: &str) -> Outcome {
    let Daemon { mut images, mut patient, .. } = daemon;
    let image = Some(ImageSpec { image: reference.to_owned(), ..Default::default() });
    let pull = patient.pull_image(PullImageRequest { image: image.clone(), ..Default::default() });
    tokio::pin!(pull);
    let mut bars = Bars::default();
    loop {
        tokio::select! {
            pulled = &mut pull => {
                bars.finish();
                let id = pulled?.into_inner().image_ref;
                return print(&format!("{}\n", plain(&id)));
            }
            () = tokio::time::sleep(LOOK) => {}
        }
        let status = images.image_status(ImageStatusRequest { image: image.clone(), verbose: true }).await;
        // Only the bars depend on it.
        let info = status.ok().and_then(|status| status.into_inner().info.remove("pull"));
        if let Some(layers) = info.as_deref().and_then(layers) {
            bars.show(&layers);
        }
    }
}

/// A bar for each layer, on standard error; nothing when that is no terminal.
#[derive(Default)]
struct Bars {
    all: MultiProgress,
    layers: Vec<ProgressBar>,
}

impl Bars {
    fn show(&mut self, layers: &[Layer]) {
        let style = || {
            let template = "{prefix} {bar:30} {bytes:>11} of {total_bytes:11} {msg}";
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
        };
        for layer in layers.iter().skip(self.layers.len()) {
            let bar = ProgressBar::new(layer.bytes_total).with_style(style()).with_prefix(layer.short());
            self.layers.push(self.all.add(bar));
        }
        for (bar, layer) in self.layers.iter().zip(layers) {
            bar.set_position(layer.bytes_done);
            bar.set_message(layer.stage());
        }
    }

    fn finish(&self) {
        self.layers.iter().for_each(ProgressBar::abandon);
    }
}

#[cfg(test)]
mod tests {
    use indicatif::ProgressDrawTarget;

    use super::*;

    #[test]
    fn each_layer_has_a_bar_that_follows_it() {
        let told = |a: u64, b: u64, done: bool| {
            let (first, second) = ("ab".repeat(32), "cd".repeat(32));
            let info = format!(
                r#"[{{"digest":"sha256:{first}","bytes_done":{a},"bytes_total":10,"done":{done}}},
                    {{"digest":"sha512:{second}","bytes_done":{b},"bytes_total":20,"done":false}}]"#
            );
            layers(&info).unwrap()
        };
        let mut bars = Bars { all: MultiProgress::with_draw_target(ProgressDrawTarget::hidden()), layers: Vec::new() };
        bars.show(&[]);
        assert!(bars.layers.is_empty(), "the manifest is not known yet");
        bars.show(&told(3, 0, false));
        bars.show(&told(10, 20, true));
        bars.finish();
        let shown: Vec<_> = bars.layers.iter().map(|bar| (bar.prefix(), bar.position(), bar.message())).collect();
        let bar = |digest: &str, bytes, stage: &str| (digest.to_owned(), bytes, stage.to_owned());
        assert_eq!(shown, [bar("abababababab", 10, "done"), bar("cdcdcdcdcdcd", 20, "unpacking")]);
        assert!(layers("{}").is_none() && layers("[{}]").is_none());
    }
}
