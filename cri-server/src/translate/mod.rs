//! CRI's messages, turned into what a sandbox and an agent are asked. No I/O but five: a seccomp
//! profile is read by path, the kernel is asked which AppArmor profiles it has and whether SELinux
//! is on, and the node which CDI devices it has and which paths are block devices.

pub(crate) mod apparmor;
pub(crate) mod bandwidth;
pub(crate) mod capabilities;
pub(crate) mod cdi;
pub(crate) mod cgroups;
pub(crate) mod container;
pub(crate) mod devices;
pub(crate) mod dns;
pub(crate) mod filters;
pub(crate) mod inspect;
pub(crate) mod memory_volume;
pub(crate) mod mounts;
pub(crate) mod namespaces;
pub(crate) mod oom;
pub(crate) mod own_volume;
pub(crate) mod pod;
pub(crate) mod resources;
pub(crate) mod seccomp;
pub(crate) mod selinux;
pub(crate) mod signal;
pub(crate) mod sysctls;
pub(crate) mod text;
pub(crate) mod user;
pub(crate) mod users;
