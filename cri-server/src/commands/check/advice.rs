//! What a kubelet's settings mean for this runtime.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::kubelet::Settings;
use crate::config::CgroupDriver;

/// The kubelet's own default of how long it waits for an answer, and the least that is good: a
/// microVM that starts on a busy node may need most of a minute, a container with block devices as
/// long again.
const LEAST_TIMEOUT: Duration = Duration::from_secs(120);
/// At how many percent of use the kubelet begins to remove images, unless it is told otherwise.
const IMAGE_GC_PERCENT: f64 = 85.0;
/// Where the kubelet looks for its runtime, unless it is told otherwise.
const OTHER_RUNTIME: &str = "unix:///run/containerd/containerd.sock";
const STATS_GATE: &str = "PodAndContainerStatsFromCRI";

/// What of this daemon the settings have to fit.
pub(super) struct Ours {
    pub(super) socket: PathBuf,
    pub(super) cgroup_driver: CgroupDriver,
}

/// A name of at most 18 letters, and whether that is right.
pub(super) type Line = (&'static str, Result<(), String>);

/// All that is looked at.
pub(super) fn lines(kubelet: &Settings, ours: &Ours) -> Vec<Line> {
    vec![
        ("kubelet's runtime", endpoint(kubelet, ours)),
        ("kubelet's stats", stats(kubelet)),
        ("kubelet's cgroups", cgroups(kubelet, ours)),
        ("kubelet's patience", patience(kubelet)),
        ("kubelet's eviction", eviction(kubelet)),
    ]
}

/// Where a setting is to be written.
fn place(kubelet: &Settings) -> String {
    kubelet.file.as_ref().map_or_else(|| "its configuration file".to_owned(), |file| file.display().to_string())
}

fn endpoint(kubelet: &Settings, ours: &Ours) -> Result<(), String> {
    let wanted = format!("unix://{}", ours.socket.display());
    let named = kubelet.text("containerRuntimeEndpoint", "container-runtime-endpoint");
    let named = named.unwrap_or_else(|| OTHER_RUNTIME.to_owned());
    if !is_socket(&named, &ours.socket) {
        return Err(format!(
            "it speaks with {named}: drain the node, set containerRuntimeEndpoint to {wanted} in {} (or the flag \
             --container-runtime-endpoint, if that is used), and restart the kubelet",
            place(kubelet)
        ));
    }
    match kubelet.text("imageServiceEndpoint", "image-service-endpoint") {
        Some(images) if !is_socket(&images, &ours.socket) => {
            Err(format!("it pulls images through {images}: remove imageServiceEndpoint from {}", place(kubelet)))
        }
        _ => Ok(()),
    }
}

/// Whether an endpoint of the kubelet is this socket. /var/run is /run.
fn is_socket(endpoint: &str, socket: &Path) -> bool {
    let plain =
        |path: &str| PathBuf::from(path.strip_prefix("/var/run/").map_or(path.into(), |rest| format!("/run/{rest}")));
    let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
    plain(path) == plain(&socket.display().to_string())
}

fn stats(kubelet: &Settings) -> Result<(), String> {
    if kubelet.gate(STATS_GATE) == Some(true) {
        return Ok(());
    }
    Err(format!(
        "it looks for containers in the node's cgroups, where those of vm pods are not, so that their metrics are missing: set \
         featureGates.{STATS_GATE} to true in {}",
        place(kubelet)
    ))
}

fn cgroups(kubelet: &Settings, ours: &Ours) -> Result<(), String> {
    let ours = match ours.cgroup_driver {
        CgroupDriver::Cgroupfs => "cgroupfs",
        CgroupDriver::Systemd => "systemd",
    };
    let theirs = kubelet.text("cgroupDriver", "cgroup-driver").unwrap_or_else(|| "cgroupfs".to_owned());
    if theirs == ours {
        return Ok(());
    }
    Err(format!(
        "its cgroupDriver is {theirs}, and that of Cofferdam {ours}: a kubelet from 1.31 on takes Cofferdam's, an older one keeps its own, \
         so set both to the same (cgroup_driver = \"{theirs}\" in Cofferdam's configuration, before there are pods)"
    ))
}

fn patience(kubelet: &Settings) -> Result<(), String> {
    let Some(text) = kubelet.text("runtimeRequestTimeout", "runtime-request-timeout") else { return Ok(()) };
    match duration(&text) {
        // Zero means the default.
        Some(timeout) if timeout.is_zero() || timeout >= LEAST_TIMEOUT => Ok(()),
        Some(_) => Err(format!(
            "it gives up on a call after {text}, and a microVM on a busy node may need longer: set runtimeRequestTimeout to 2m or more in {}",
            place(kubelet)
        )),
        None => Err(format!("its runtimeRequestTimeout {text:?} is no duration")),
    }
}

fn eviction(kubelet: &Settings) -> Result<(), String> {
    let Some(thresholds) = kubelet.eviction_hard() else { return Ok(()) };
    let named = |key: &str| thresholds.get(key).filter(|value| is_threshold(value));
    let default = kubelet.merges_thresholds() && !thresholds.contains_key("imagefs.available");
    if !default && named("imagefs.available").is_none() && named("nodefs.available").is_none() {
        return Err(format!(
            "evictionHard names neither imagefs.available nor nodefs.available, so nothing is evicted before the disk of images and \
             writable layers is full: add imagefs.available: 15% in {}",
            place(kubelet)
        ));
    }
    let high = kubelet.text("imageGCHighThresholdPercent", "image-gc-high-threshold");
    let high = high.and_then(|text| text.parse().ok()).unwrap_or(IMAGE_GC_PERCENT);
    match named("imagefs.available").and_then(|value| percent(value)) {
        // At 100 images are never collected, which is somebody's wish.
        Some(free) if high < 100.0 && free > 100.0 - high => Err(format!(
            "pods are evicted when {free} % of the images' disk are free, before unused images are removed at {} %: lower \
             imageGCHighThresholdPercent or imagefs.available in {}",
            100.0 - high,
            place(kubelet)
        )),
        _ => Ok(()),
    }
}

/// Whether the kubelet acts on a threshold: 0 % and 100 % switch it off.
fn is_threshold(value: &str) -> bool {
    match percent(value) {
        Some(percent) => percent > 0.0 && percent < 100.0,
        None => !value.trim_start_matches('0').is_empty(),
    }
}

fn percent(value: &str) -> Option<f64> {
    value.trim().strip_suffix('%')?.trim().parse().ok()
}

/// As Go writes durations: `2m0s`, `1.5h`, `300ms`.
fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let (mut rest, mut total) = (text, 0.0);
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let value: f64 = rest[..number].parse().ok()?;
        rest = &rest[number..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let seconds = match &rest[..unit] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total += value * seconds;
        rest = &rest[unit..];
    }
    if text.is_empty() { None } else { Duration::try_from_secs_f64(total).ok() }
}

#[cfg(test)]
mod tests {
    use super::super::kubelet::tests::settings;
    use super::*;

    fn ours() -> Ours {
        Ours { socket: "/run/cofferdam/cofferdam.sock".into(), cgroup_driver: CgroupDriver::Cgroupfs }
    }

    /// What is wrong with a kubelet's file and arguments, by the names of the lines.
    fn wrong(config: &str, args: &[&str]) -> Vec<(&'static str, String)> {
        let lines = lines(&settings(config, args), &ours());
        assert!(lines.iter().all(|(name, _)| name.len() <= 18));
        lines.into_iter().filter_map(|(name, answer)| Some((name, answer.err()?))).collect()
    }

    const GOOD: &str = "containerRuntimeEndpoint: unix:///var/run/cofferdam/cofferdam.sock\n\
        featureGates: {PodAndContainerStatsFromCRI: true}\n";

    #[test]
    fn a_kubelet_that_fits_is_told_nothing() {
        for more in [
            "",
            "runtimeRequestTimeout: 10m\n",
            "runtimeRequestTimeout: 0s\n",
            "runtimeRequestTimeout: 2m0s\ncgroupDriver: cgroupfs\n",
            "evictionHard: {imagefs.available: 15%}\n",
            "evictionHard: {nodefs.available: 1Gi}\n",
            "evictionHard: {memory.available: 1Gi}\nmergeDefaultEvictionSettings: true\n",
            "evictionHard: {imagefs.available: 1%}\nimageGCHighThresholdPercent: 100\n",
            "imageServiceEndpoint: unix:///run/cofferdam/cofferdam.sock\n",
        ] {
            assert_eq!(wrong(&format!("{GOOD}{more}"), &[]), [], "{more}");
        }
    }

    #[test]
    fn what_does_not_fit_is_told_with_what_to_do() {
        for (more, line, words) in [
            ("imageServiceEndpoint: unix:///x\n", "kubelet's runtime", "remove imageServiceEndpoint from /etc/k.yaml"),
            ("cgroupDriver: systemd\n", "kubelet's cgroups", "cgroup_driver = \"systemd\""),
            ("runtimeRequestTimeout: 1m30s\n", "kubelet's patience", "after 1m30s"),
            ("runtimeRequestTimeout: soon\n", "kubelet's patience", "\"soon\" is no duration"),
            ("evictionHard: {memory.available: 1Gi}\n", "kubelet's eviction", "add imagefs.available: 15%"),
            ("evictionHard: {imagefs.available: 0%}\n", "kubelet's eviction", "neither"),
            ("evictionHard: {imagefs.available: 20%}\n", "kubelet's eviction", "20 % of the images' disk"),
        ] {
            let wrong = wrong(&format!("{GOOD}{more}"), &[]);
            assert!(matches!(&wrong[..], [(name, why)] if *name == line && why.contains(words)), "{more}: {wrong:?}");
        }
        let nothing = wrong("kind: KubeletConfiguration\n", &[]);
        let names: Vec<&str> = nothing.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["kubelet's runtime", "kubelet's stats"]);
        assert!(
            nothing[0].1.contains("containerd.sock") && nothing[0].1.contains("unix:///run/cofferdam/cofferdam.sock")
        );
        assert!(nothing[1].1.contains("PodAndContainerStatsFromCRI to true in /etc/k.yaml"), "{}", nothing[1].1);
        // The command line counts before the file.
        let args = ["--container-runtime-endpoint=unix:///run/crio/crio.sock", "--runtime-request-timeout=15s"];
        assert_eq!(wrong(GOOD, &args).len(), 2);
    }

    #[test]
    fn durations_are_go_s() {
        for (text, millis) in [
            ("2m", Some(120_000)),
            ("2m0s", Some(120_000)),
            ("1.5h", Some(5_400_000)),
            ("1h2m3s4ms", Some(3_723_004)),
            ("0", Some(0)),
            ("0s", Some(0)),
            ("", None),
            ("5", None),
            ("m", None),
            ("1x", None),
            ("-2m", None),
            ("1e400s", None),
        ] {
            assert_eq!(duration(text), millis.map(Duration::from_millis), "{text:?}");
        }
    }
}
