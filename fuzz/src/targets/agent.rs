//! What the agent reads of images and of profiles.

use cofferdam_agent::fuzzing;
use cofferdam_proto::agent::User;

use super::{Target, target, texts};
use crate::words::Words;

pub(super) const SECCOMP: Target = target("seccomp", seccomp, seccomp_seeds);
pub(super) const USERS: Target = target("users", users, user_seeds);

fn seccomp(bytes: &[u8]) {
    let mut words = Words::new(bytes);
    let bounding = words.long();
    fuzzing::seccomp_profile(words.rest(), bounding);
}

fn seccomp_seeds() -> Vec<Vec<u8>> {
    let mut seeds = texts(&[
        r#"........{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86"],"flags":["SECCOMP_FILTER_FLAG_LOG"],"syscalls":[{"names":["read","write","clone"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":2114060288,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"},{"index":1,"value":5,"op":"SCMP_CMP_GE"}],"includes":{"caps":["CAP_SYS_ADMIN"]},"excludes":{"arches":["arm"]}}]}"#,
        r#"........{"defaultAction":"SCMP_ACT_ALLOW","archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]}],"syscalls":[{"name":"socket","action":"SCMP_ACT_TRACE","errnoRet":7,"args":[{"index":0,"value":40,"op":"SCMP_CMP_EQ"},{"index":0,"value":41,"op":"SCMP_CMP_LT"},{"index":5,"value":1,"op":"SCMP_CMP_NE"}]}]}"#,
    ]);
    seeds.iter_mut().for_each(|seed| seed[..8].fill(0xff));
    seeds
}

/// `/etc/passwd`, `/etc/group` and the user's name, with a byte 0 between them.
fn users(bytes: &[u8]) {
    let mut words = Words::new(bytes);
    let how = words.byte();
    let user = User {
        uid: (how & 1 != 0).then(|| words.word()),
        gid: (how & 2 != 0).then(|| words.word()),
        strict_groups: how & 4 != 0,
        supplemental_groups: (0..(how >> 3) % 4).map(|_| words.word()).collect(),
        ..Default::default()
    };
    let mut texts = words.rest().split(|byte| *byte == 0).map(String::from_utf8_lossy);
    let mut next = || texts.next().unwrap_or_default().into_owned();
    let (name, passwd, group) = (next(), next(), next());
    fuzzing::user(&passwd, &group, &User { name, ..user });
}

fn user_seeds() -> Vec<Vec<u8>> {
    let files = "\0root:x:0:0:root:/root:/bin/sh\nweb:x:33:33::/var/www:\nodd:x:4294967295:1:::\n\0root:x:0:\nweb:x:33:\nextra:x:44:web,root\n";
    ["web", "web:extra", "33:44", "", "root:", "4294967294"]
        .iter()
        .enumerate()
        .map(|(number, name)| [&[if number == 3 { 24 } else { 0 }], name.as_bytes(), files.as_bytes()].concat())
        .collect()
}
