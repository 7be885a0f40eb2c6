//! Real images from the real registry, with every form of layer and manifest, seen from inside both kinds of pods.

use super::{Check, Test, in_one_pod, with_both};
use crate::crictl::{Container, Crictl, Pod};
use crate::failure::{Outcome, ensure};

pub(super) const TESTS: &[Test] = &[
    ("images", || with_both(|handler| in_one_pod(handler, &Pod::new("images"), CHECKS))),
    ("removed_images_give_their_space_back", removed),
];

const CHECKS: &[Check] = &[
    ("layers_with_whiteouts_and_hardlinks", layers),
    ("image_users_are_resolved", users),
    ("every_kind_of_layer_and_manifest", kinds),
];

const PREFIX: &str = "registry.k8s.io/cofferdam";

fn output(id: &str, pod: &Pod, image: &str, script: &str) -> Outcome<String> {
    let crictl = Crictl::default();
    crictl.run(&["pull", image])?;
    let name = image.replace(['/', ':'], "-");
    let container = crictl.run_container(id, pod, &Container::new(&name, image, &["sh", "-c", script]))?;
    crictl.wait_state(&container, "CONTAINER_EXITED")?;
    crictl.log(&container)
}

fn layers(_handler: &'static str, id: &str, pod: &Pod) -> Outcome {
    let log = output(id, pod, &format!("{PREFIX}/layers:1"), "sh /check.sh")?;
    ensure!(log.trim().ends_with("all as built"), "the merged layers are not as built: {log}");
    Ok(())
}

fn users(_handler: &'static str, id: &str, pod: &Pod) -> Outcome {
    let numeric = output(id, pod, &format!("{PREFIX}/user-numeric:1"), "id -u; id -g")?;
    ensure!(numeric.split_whitespace().eq(["1002", "1003"]), "numeric user: {numeric}");
    let named = output(id, pod, &format!("{PREFIX}/user-named:1"), "id -un; id -u")?;
    ensure!(named.split_whitespace().eq(["www-data", "33"]), "named user: {named}");
    Ok(())
}

fn kinds(_handler: &'static str, id: &str, pod: &Pod) -> Outcome {
    for name in ["zstd", "plain", "docker-v2", "multi"] {
        let log = output(id, pod, &format!("{PREFIX}/{name}:1"), "cat /kind; stat -c %s /unique")?;
        ensure!(log.trim() == format!("{name}\n300000"), "{name}: {log}");
    }
    Ok(())
}

fn removed() -> Outcome {
    let crictl = Crictl::default();
    let used = || -> Outcome<u64> {
        let info = crictl.json(&["imagefsinfo", "-o", "json"])?;
        let value = info
            .pointer("/status/imageFilesystems/0/usedBytes/value")
            .or(info.pointer("/imageFilesystems/0/usedBytes/value"));
        let text = value.map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned)).unwrap_or_default();
        text.parse().map_err(|_| format!("imagefsinfo has no used bytes: {info}").into())
    };
    let image = format!("{PREFIX}/big:1");
    crictl.run(&["rmi", &image]).ok();
    let before = used()?;
    crictl.run(&["pull", &image])?;
    let with = used()?;
    ensure!(with > before + 50_000_000, "a 120 MB image adds only {} bytes", with - before);
    crictl.run(&["rmi", &image])?;
    let after = used()?;
    ensure!(after <= before + 1_000_000, "{} bytes stay after the image's removal", after - before);
    Ok(())
}
