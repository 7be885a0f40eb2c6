//! Platforms of images, under the names that their builders give them, and which of them a node
//! runs.

use crate::config::Platform;

/// A platform in Go's names: `linux`, `amd64`, and a variant that is empty for the usual one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Normal {
    pub(crate) os: String,
    pub(crate) architecture: String,
    pub(crate) variant: String,
}

impl Normal {
    /// Brings a platform into the form of containerd's `platforms` package: other names of an
    /// architecture, any case, the usual variant left out (`amd64/v1`, `arm64/v8`) or filled in
    /// (`arm` is `arm/v7`).
    pub(crate) fn new(os: &str, architecture: &str, variant: &str) -> Self {
        let (os, variant) = (os.to_ascii_lowercase(), variant.to_ascii_lowercase());
        let mut variant = match variant.as_bytes() {
            [b'0'..=b'9', ..] => format!("v{variant}"),
            _ => variant,
        };
        let architecture = architecture.to_ascii_lowercase();
        let architecture = match architecture.as_str() {
            "i386" | "386" => {
                variant.clear();
                "386"
            }
            "x86_64" | "x86-64" | "amd64" => {
                if variant == "v1" {
                    variant.clear();
                }
                "amd64"
            }
            "aarch64" | "arm64" => {
                if matches!(variant.as_str(), "v8" | "v8.0") {
                    variant.clear();
                }
                "arm64"
            }
            "armhf" => {
                variant = "v7".into();
                "arm"
            }
            "armel" => {
                variant = "v6".into();
                "arm"
            }
            "arm" => {
                if variant.is_empty() {
                    variant = "v7".into();
                }
                "arm"
            }
            other => other,
        };
        Self { os, architecture: architecture.into(), variant }
    }

    /// How well an image of this platform suits a node; 0 is best, `None` does not run. An older
    /// variant of the node's architecture runs, and so do 32-bit programs on a 64-bit node. An
    /// image that names no operating system is for the node's.
    pub(crate) fn rank(&self, node: &Platform) -> Option<usize> {
        let node = Self::new(&node.os, &node.architecture, node.variant.as_deref().unwrap_or_default());
        if !self.os.is_empty() && self.os != node.os {
            return None;
        }
        runs(&node)
            .iter()
            .position(|(architecture, variant)| *architecture == self.architecture && *variant == self.variant)
    }
}

/// What a node runs, best first.
fn runs(node: &Normal) -> Vec<(&str, String)> {
    let own = (node.architecture.as_str(), node.variant.clone());
    let number = node.variant.strip_prefix('v').and_then(|v| v.split('.').next()?.parse::<u8>().ok());
    let down = |from: u8, to: u8| (to..from).rev().map(|n| format!("v{n}"));
    let mut all = vec![own];
    match node.architecture.as_str() {
        "amd64" => {
            all.extend(down(number.unwrap_or(1), 2).map(|variant| ("amd64", variant)));
            all.extend([("amd64", String::new()), ("386", String::new())]);
        }
        "arm64" => {
            all.push(("arm64", String::new()));
            all.extend(down(9, 5).map(|variant| ("arm", variant)));
        }
        "arm" => all.extend(down(number.unwrap_or(7), 5).map(|variant| ("arm", variant))),
        _ => {}
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rank(node: (&str, Option<&str>), image: (&str, &str, &str)) -> Option<usize> {
        let node = Platform { os: "linux".into(), architecture: node.0.into(), variant: node.1.map(str::to_owned) };
        Normal::new(image.0, image.1, image.2).rank(&node)
    }

    #[test]
    fn other_names_are_the_same_platform() {
        for (node, image) in [
            ("amd64", ("linux", "x86_64", "")),
            ("amd64", ("Linux", "AMD64", "v1")),
            ("x86_64", ("linux", "amd64", "1")),
            ("amd64", ("", "x86-64", "")),
            ("arm64", ("linux", "aarch64", "v8")),
            ("aarch64", ("linux", "arm64", "8")),
            ("arm", ("linux", "armhf", "")),
            ("arm", ("linux", "arm", "7")),
            ("riscv64", ("linux", "riscv64", "")),
        ] {
            assert_eq!(rank((node, None), image), Some(0), "{node} {image:?}");
        }
    }

    #[test]
    fn older_ones_come_later_and_others_not_at_all() {
        let order = |node, images: &[(&str, &str)]| {
            let ranks: Vec<_> = images.iter().map(|(arch, variant)| rank(node, ("linux", arch, variant))).collect();
            assert!(ranks.iter().all(Option::is_some) && ranks.is_sorted(), "{node:?}: {ranks:?}");
        };
        order(("amd64", None), &[("amd64", ""), ("386", "")]);
        order(("amd64", Some("v3")), &[("amd64", "v3"), ("amd64", "v2"), ("amd64", "v1"), ("i386", "")]);
        order(("arm", Some("v7")), &[("arm", "v7"), ("arm", "v6"), ("arm", "v5")]);
        order(("arm64", None), &[("arm64", ""), ("arm", "v8"), ("arm", "v7"), ("arm", "v6"), ("arm", "v5")]);
        order(("arm64", Some("v9")), &[("arm64", "v9"), ("arm64", "v8"), ("arm", "v7")]);
        for (node, image) in [
            (("amd64", None), ("linux", "amd64", "v2")),
            (("amd64", None), ("windows", "amd64", "")),
            (("amd64", None), ("linux", "arm64", "")),
            (("amd64", None), ("unknown", "unknown", "")),
            (("arm", Some("v6")), ("linux", "arm", "v7")),
            (("386", None), ("linux", "amd64", "")),
        ] {
            assert_eq!(rank(node, image), None, "{node:?} {image:?}");
        }
    }
}
