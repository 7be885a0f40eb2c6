//! File systems that are doors to the node's kernel: to read or write a file there is to act on the kernel or on a process.
//!
//! A guest gets none of them: not as a volume, and not as a mount below one. The file server is a process of the node, so
//! `/proc/<pid>/mem` of its own would be its memory, and what it reads or writes in the others would be done by the node's root.
//! sysfs and cgroups are not among them: node agents read both, and what a volume may write there is the pod's to say.

/// Type of file system as `statfs` has it, and its name.
const UNSHARED: &[(i64, &str)] = &[
    (0x9fa0, "proc"),
    (0x7363_6673, "securityfs"),
    (0x6462_6720, "debugfs"),
    (0x7472_6163, "tracefs"),
    (0x6265_6570, "configfs"),
    (0xcafe_4a11, "bpf"),
    (0x4249_4e4d, "binfmt_misc"),
    (0xde5e_81e4, "efivarfs"),
    (0x6573_5543, "fusectl"),
    (0xf97c_ff8c, "selinuxfs"),
    (0x6e66_7364, "nfsd"),
    // Descriptors of namespaces, which would keep them.
    (0x6e73_6673, "nsfs"),
    // Its pages are the node's.
    (0x9584_58f6, "hugetlbfs"),
];

/// The name of a file system that no guest gets, by its type.
pub fn name(magic: i64) -> Option<&'static str> {
    // 32-bit kernels and libraries sign-extend it.
    UNSHARED.iter().find(|(known, _)| *known == magic & 0xffff_ffff).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_own_are_known() {
        let of = |path: &str| name(rustix::fs::statfs(path).unwrap().f_type);
        assert_eq!(of("/proc"), Some("proc"));
        assert_eq!(of("/proc/self/ns/net"), Some("nsfs"));
        assert_eq!(of("/sys"), None);
        assert_eq!(of("/"), None);
        assert_eq!(name(0xde5e_81e4_u32.cast_signed().into()), Some("efivarfs"));
    }
}
