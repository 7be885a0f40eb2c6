//! What of a microVM is fixed when it boots, and so is that of its template.

use std::fmt;
use std::os::unix::fs::MetadataExt;

use sha2::{Digest, Sha256};

use crate::error::{Doing, SandboxError};
use crate::spec::{PodSpec, TemplateConfig, VmConfig, VmSize};

/// Sizes of guests below the usual one, MiB: small pods are restored with one of these, and get the
/// rest of their memory plugged.
const SMALLER_MIB: [u32; 4] = [192, 128, 96, 64];

/// What the guest was told at its boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Shape {
    /// At the start.
    pub(crate) size: VmSize,
    /// vCPUs that it can have.
    pub(crate) vcpus_max: u8,
    /// Memory that can be plugged, MiB; an even number.
    pub(crate) hotplug_mib: u32,
    /// Network cards.
    pub(crate) cards: u8,
}

impl Shape {
    /// Of a microVM that boots for `spec`.
    pub(crate) fn to_boot(spec: &PodSpec, cards: usize) -> Self {
        let hotplug_mib = spec.vm_max.memory_mib.saturating_sub(spec.vm.memory_mib) & !1;
        let cards = u8::try_from(cards).unwrap_or(u8::MAX);
        Self { size: spec.vm, vcpus_max: spec.vm_max.vcpus, hotplug_mib, cards }
    }

    /// Of the template for a pod that gets `wanted`: it has no more than that, and can grow to it.
    pub(crate) fn to_restore(config: &TemplateConfig, wanted: VmSize, cards: usize) -> Option<Self> {
        let usual = config.size;
        let sizes = std::iter::once(usual.memory_mib).chain(SMALLER_MIB.into_iter().filter(|s| *s < usual.memory_mib));
        let memory_mib = sizes.into_iter().find(|size| *size <= wanted.memory_mib)?;
        let most = config.most.at_least(usual);
        if wanted.vcpus < usual.vcpus || wanted.vcpus > most.vcpus || wanted.memory_mib > most.memory_mib {
            return None;
        }
        Some(Self {
            size: VmSize { memory_mib, ..usual },
            vcpus_max: most.vcpus,
            hotplug_mib: (most.memory_mib - memory_mib) & !1,
            cards: u8::try_from(cards).ok()?,
        })
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { size: VmSize { vcpus, memory_mib }, vcpus_max, hotplug_mib, cards } = self;
        write!(f, "{vcpus}-{vcpus_max}-{memory_mib}-{hotplug_mib}-{cards}")
    }
}

impl std::str::FromStr for Shape {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut numbers = text.split('-').map(str::parse::<u32>);
        let mut next = || numbers.next().and_then(Result::ok).ok_or(());
        let byte = |number: u32| u8::try_from(number).map_err(drop);
        let (vcpus, vcpus_max, memory_mib) = (byte(next()?)?, byte(next()?)?, next()?);
        let (hotplug_mib, cards) = (next()?, byte(next()?)?);
        let shape = Self { size: VmSize { vcpus, memory_mib }, vcpus_max, hotplug_mib, cards };
        // Numbers that are spelled otherwise, and what follows them.
        if shape.to_string() == text { Ok(shape) } else { Err(()) }
    }
}

/// What a template is made of: 16 hex digits over the files and the arguments. Another daemon is
/// another one, whose agent may be asked other things.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Inputs(String);

impl Inputs {
    /// As they are now. Blocks.
    ///
    /// # Errors
    /// When a file is not there.
    #[expect(clippy::disallowed_methods, reason = "on blocking threads only")]
    pub(crate) fn of(config: &VmConfig) -> Result<Self, SandboxError> {
        let mut hash = Sha256::new();
        hash.update(concat!(env!("CARGO_PKG_VERSION"), "\0"));
        for path in [&config.monitor, &config.kernel, &config.initramfs, &config.disk_template] {
            let data = std::fs::metadata(path).doing(|| format!("look at {}", path.display()))?;
            let changed = [data.mtime(), data.mtime_nsec(), data.ctime(), data.ctime_nsec()];
            for number in [data.dev(), data.ino(), data.size()] {
                hash.update(number.to_ne_bytes());
            }
            changed.iter().for_each(|number| hash.update(number.to_ne_bytes()));
        }
        hash.update(&config.kernel_args);
        Ok(Self(hex::encode(&hash.finalize()[..8])))
    }

    /// The digits.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USUAL: VmSize = VmSize { vcpus: 1, memory_mib: 256 };

    fn config() -> TemplateConfig {
        let most = VmSize { vcpus: 4, memory_mib: 8193 };
        TemplateConfig { size: USUAL, most, cgroup_parent: String::new(), pool: 0 }
    }

    fn restored(vcpus: u8, memory_mib: u32) -> Option<(u32, u32)> {
        let shape = Shape::to_restore(&config(), VmSize { vcpus, memory_mib }, 1)?;
        assert_eq!((shape.size.vcpus, shape.vcpus_max, shape.cards), (1, 4, 1));
        Some((shape.size.memory_mib, shape.hotplug_mib))
    }

    #[test]
    fn a_pod_gets_a_template_that_is_no_larger_and_can_grow_to_it() {
        assert_eq!(restored(1, 256), Some((256, 7936)));
        assert_eq!(restored(4, 8193), Some((256, 7936)), "an odd MiB more cannot be plugged");
        assert_eq!(restored(1, 255), Some((192, 8000)));
        assert_eq!(restored(1, 91), Some((64, 8128)));
        for (vcpus, memory_mib) in [(1, 63), (0, 256), (5, 256), (1, 8194)] {
            assert_eq!(restored(vcpus, memory_mib), None, "{vcpus} vCPUs, {memory_mib} MiB");
        }
    }

    #[test]
    fn a_shape_is_found_again_by_its_name() {
        let shape = Shape::to_restore(&config(), USUAL, 2).unwrap();
        assert_eq!(shape.to_string(), "1-4-256-7936-2");
        assert_eq!(shape.to_string().parse(), Ok(shape));
        for other in ["", "1-4-256-7936", "1-4-256-7936-2-1", "01-4-256-7936-2", "1-4-256-7936-x", "300-4-256-7936-2"] {
            assert_eq!(other.parse::<Shape>(), Err(()), "{other}");
        }
    }

    #[test]
    fn another_file_or_argument_is_another_input() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = crate::testing::config_below(folder.path()).vm;
        let files = [&mut config.monitor, &mut config.kernel, &mut config.initramfs, &mut config.disk_template];
        for (number, path) in files.into_iter().enumerate() {
            *path = folder.path().join(number.to_string());
            std::fs::write(path, "one").unwrap();
        }
        let before = Inputs::of(&config).unwrap();
        assert_eq!((Inputs::of(&config).unwrap(), before.as_str().len()), (before.clone(), 16));
        std::fs::write(&config.kernel, "another").unwrap();
        let after = Inputs::of(&config).unwrap();
        assert_ne!(after, before);
        assert_ne!(Inputs::of(&VmConfig { kernel_args: "quiet".into(), ..config.clone() }).unwrap(), after);
        std::fs::remove_file(&config.initramfs).unwrap();
        assert!(Inputs::of(&config).is_err());
    }
}
