//! Devices of a container: nodes in its /dev, and the eBPF program on its cgroup that decides what may be opened and made.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use cofferdam_proto::agent::Device;
use rustix::fs::FileType;

use super::cgroup::Cgroup;
use super::paths::check_absolute;
use crate::error::{Doing, Error, Result};

/// A node that is made in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Where.
    pub path: PathBuf,
    /// Character or block.
    pub kind: FileType,
    /// Major and minor number.
    pub number: (u32, u32),
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub owner: (u32, u32),
    /// The request names it, so that nothing else may be in its place.
    pub asked: bool,
}

/// One line of the allow list. `None` is any number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    kind: FileType,
    major: Option<u32>,
    minor: Option<u32>,
    access: u32,
}

const MKNOD: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
const ALL: u32 = MKNOD | READ | WRITE;

/// Nodes that every container has: name, major, minor.
pub const STANDARD: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// Major number of loop devices.
const LOOP_MAJOR: u32 = 7;
/// Loop devices of a privileged container, as many as distributions have.
const LOOP_NODES: u32 = 8;

/// Most nodes of one container.
const MAX_NODES: usize = 4096;

fn standard_rules() -> Vec<Rule> {
    let character = |major, minor, access| Rule { kind: FileType::CharacterDevice, major, minor, access };
    let mut rules =
        vec![character(None, None, MKNOD), Rule { kind: FileType::BlockDevice, ..character(None, None, MKNOD) }];
    rules.extend(STANDARD.iter().map(|(_, major, minor)| character(Some(*major), Some(*minor), ALL)));
    rules.push(character(Some(5), Some(1), ALL)); // console
    rules.push(character(Some(5), Some(2), ALL)); // ptmx
    rules.push(character(Some(136), None, ALL)); // terminals
    rules.push(character(Some(10), Some(200), ALL)); // tun, whose node VPN programs make themselves; NET_ADMIN is needed as well
    rules
}

/// What a container gets.
#[derive(Debug, Default)]
pub struct Devices {
    /// Nodes besides the standard ones.
    pub nodes: Vec<Node>,
    rules: Vec<Rule>,
    everything: bool,
}

impl Devices {
    /// Looks up the devices that a request names; all of this machine's for a privileged container.
    ///
    /// # Errors
    /// When one is missing or is no device.
    pub fn parse(requested: &[Device], privileged: bool) -> Result<Self> {
        let mut devices = Self { nodes: Vec::new(), rules: standard_rules(), everything: privileged };
        if privileged {
            devices.add_tree(Path::new("/dev"), Path::new("/dev"), ALL, 0)?;
            if Path::new("/dev/loop-control").exists() {
                devices.add_loop();
            }
        }
        for device in requested {
            let path = check_absolute(&device.path)?;
            let source = if device.source.is_empty() { path.clone() } else { PathBuf::from(&device.source) };
            let mut access = 0;
            for letter in device.permissions.chars() {
                access |= match letter {
                    'r' => READ,
                    'w' => WRITE,
                    'm' => MKNOD,
                    other => return Err(Error::invalid(format!("{other:?} is not a permission of a device"))),
                };
            }
            // A privileged container's request may name one otherwise than this machine does: a
            // disk at /dev/vda.
            devices.nodes.retain(|node| node.path != path);
            let there = devices.nodes.len();
            let meta = fs::metadata(&source).asked(format!("look at device {}", source.display()))?;
            if meta.is_dir() {
                devices.add_tree(&source, &path, access, 0)?;
            } else if !devices.add(&meta, path, access)? {
                return Err(Error::invalid(format!("{} is not a device", source.display())));
            }
            devices.nodes[there..].iter_mut().for_each(|node| node.asked = true);
        }
        Ok(devices)
    }

    fn add(&mut self, meta: &fs::Metadata, path: PathBuf, access: u32) -> Result<bool> {
        let kind = if meta.file_type().is_char_device() {
            FileType::CharacterDevice
        } else if meta.file_type().is_block_device() {
            FileType::BlockDevice
        } else {
            return Ok(false);
        };
        if self.nodes.len() == MAX_NODES {
            return Err(Error::invalid(format!("a container may have {MAX_NODES} devices")));
        }
        let number = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
        self.rules.push(Rule { kind, major: Some(number.0), minor: Some(number.1), access });
        let owner = (meta.uid(), meta.gid());
        self.nodes.push(Node { path, kind, number, mode: meta.mode() & 0o7777, owner, asked: false });
        Ok(true)
    }

    fn add_tree(&mut self, source: &Path, path: &Path, access: u32, depth: u32) -> Result<()> {
        let entries = fs::read_dir(source).doing(format!("list {}", source.display()))?;
        for entry in entries.flatten() {
            let (from, to) = (entry.path(), path.join(entry.file_name()));
            let Ok(meta) = fs::symlink_metadata(&from) else { continue };
            // What each container has of its own.
            let own = ["pts", "shm", "fd", "mqueue", "console", "ptmx"].iter().any(|n| to == Path::new("/dev").join(n))
                || STANDARD.iter().any(|(n, _, _)| to == Path::new("/dev").join(n));
            if own {
                continue;
            }
            if meta.is_dir() && depth < 4 {
                self.add_tree(&from, &to, access, depth + 1)?;
            } else {
                self.add(&meta, to, access)?;
            }
        }
        Ok(())
    }

    /// Nodes of loop devices that the guest's kernel makes when they are opened: none at its boot, to save memory.
    fn add_loop(&mut self) {
        for number in 0..LOOP_NODES {
            let path = PathBuf::from(format!("/dev/loop{number}"));
            if self.nodes.iter().all(|node| node.path != path) {
                let kind = FileType::BlockDevice;
                self.nodes.push(Node {
                    path,
                    kind,
                    number: (LOOP_MAJOR, number),
                    mode: 0o660,
                    owner: (0, 6),
                    asked: false,
                });
            }
        }
    }

    /// Makes the kernel enforce the list on `cgroup` and below.
    ///
    /// # Errors
    /// When it does not take the program.
    pub fn enforce(&self, cgroup: &Cgroup) -> Result<()> {
        if self.everything {
            return Ok(());
        }
        let program = crate::sys::bpf_load_device(&program(&self.rules)).doing("load the device filter")?;
        crate::sys::bpf_attach_device(cgroup.open_for_programs()?, program).doing("attach the device filter")
    }
}

/// One eBPF instruction: code, destination, source, offset, immediate.
const fn instruction(code: u8, dst: u8, src: u8, offset: i16, imm: u32) -> u64 {
    code as u64 | (dst as u64) << 8 | (src as u64) << 12 | ((offset as u16) as u64) << 16 | (imm as u64) << 32
}

/// Walks the list: access type and numbers are in the context (`struct bpf_cgroup_dev_ctx`); 1 allows, 0 denies.
fn program(rules: &[Rule]) -> Vec<u64> {
    const LOAD: u8 = 0x61; // dst = *(u32 *)(src + offset)
    const MOVE: u8 = 0xb7; // dst = imm
    const COPY32: u8 = 0xbc; // dst = src, 32 bits
    const AND32: u8 = 0x54;
    const SHIFT32: u8 = 0x74; // logical, right
    const UNEQUAL: u8 = 0x55; // if dst != imm
    const EXIT: u8 = 0x95;
    let mut code = vec![
        // r2 type, r3 access, r4 major, r5 minor
        instruction(LOAD, 2, 1, 0, 0),
        instruction(COPY32, 3, 2, 0, 0),
        instruction(AND32, 2, 0, 0, 0xffff),
        instruction(SHIFT32, 3, 0, 0, 16),
        instruction(LOAD, 4, 1, 4, 0),
        instruction(LOAD, 5, 1, 8, 0),
    ];
    // The last rule decides nothing twice, so later ones go first: they are the container's own.
    for rule in rules.iter().rev() {
        let kind = if rule.kind == FileType::BlockDevice { 1 } else { 2 };
        // r6: what is asked for and not in the rule
        let mut tests = vec![
            (instruction(COPY32, 6, 3, 0, 0), None),
            (instruction(AND32, 6, 0, 0, ALL & !rule.access), None),
            (0, Some((6, 0))),
            (0, Some((2, kind))),
        ];
        if let Some(major) = rule.major {
            tests.push((0, Some((4, major))));
        }
        if let Some(minor) = rule.minor {
            tests.push((0, Some((5, minor))));
        }
        let length = tests.len() + 2;
        for (at, (plain, test)) in tests.into_iter().enumerate() {
            code.push(match test {
                None => plain,
                Some((register, value)) => {
                    instruction(UNEQUAL, register, 0, i16::try_from(length - at - 1).unwrap_or(0), value)
                }
            });
        }
        code.push(instruction(MOVE, 0, 0, 0, 1));
        code.push(instruction(EXIT, 0, 0, 0, 0));
    }
    code.push(instruction(MOVE, 0, 0, 0, 0));
    code.push(instruction(EXIT, 0, 0, 0, 0));
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The verdict of the program for one access, by running it.
    fn verdict(code: &[u64], kind: u32, access: u32, number: (u32, u32)) -> u32 {
        let context = [access << 16 | kind, number.0, number.1];
        let mut r = [0u32; 8];
        let mut at = 0;
        loop {
            let i = code[at];
            let (op, dst, src) = (i as u8, (i >> 8 & 15) as usize, (i >> 12 & 15) as usize);
            let (offset, imm) = ((i >> 16) as u16 as usize, (i >> 32) as u32);
            at += 1;
            match op {
                0x61 => r[dst] = context[offset / 4],
                0xb7 => r[dst] = imm,
                0xbc => r[dst] = r[src],
                0x54 => r[dst] &= imm,
                0x74 => r[dst] >>= imm,
                0x55 if r[dst] != imm => at += offset,
                0x55 => {}
                0x95 => return r[0],
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn the_filter_decides_as_the_list_says() {
        let mut rules = standard_rules();
        rules.push(Rule { kind: FileType::BlockDevice, major: Some(8), minor: Some(1), access: READ });
        let code = program(&rules);
        let (block, character) = (1, 2);
        for (kind, access, number, allowed) in [
            (character, READ, (1, 3), true),
            (character, READ | WRITE, (1, 3), true),
            (block, READ, (1, 3), false),
            (character, MKNOD, (99, 99), true),
            (character, MKNOD | READ, (99, 99), false),
            (character, READ, (1, 1), false),
            (character, WRITE, (136, 77), true),
            (character, READ, (5, 2), true),
            (character, READ | WRITE | MKNOD, (10, 200), true),
            (character, READ, (10, 201), false),
            (block, READ, (8, 1), true),
            (block, WRITE, (8, 1), false),
            (block, READ, (8, 0), false),
        ] {
            assert_eq!(verdict(&code, kind, access, number), u32::from(allowed), "{kind} {access} {number:?}");
        }
    }

    #[test]
    fn loop_devices_that_are_not_made_yet_have_nodes() {
        let mut devices = Devices::default();
        let there = Node {
            path: "/dev/loop1".into(),
            kind: FileType::BlockDevice,
            number: (LOOP_MAJOR, 1),
            mode: 0o600,
            owner: (0, 0),
            asked: false,
        };
        devices.nodes.push(there.clone());
        devices.add_loop();
        assert_eq!((devices.nodes.len(), &devices.nodes[0]), (8, &there));
        assert!((0..8).all(|n| devices.nodes.iter().any(|node| node.number == (LOOP_MAJOR, n))));
    }

    #[test]
    fn what_is_no_device_is_refused() {
        let device = |path: &str, permissions: &str| Device {
            path: path.into(),
            source: String::new(),
            permissions: permissions.into(),
        };
        for (path, permissions) in
            [("/etc/passwd", "rw"), ("/no/such/device", "rw"), ("null", "r"), ("/dev/null", "rwx")]
        {
            assert!(Devices::parse(&[device(path, permissions)], false).is_err(), "{path} {permissions}");
        }
        let got = Devices::parse(&[device("/dev/null", "r")], false).unwrap();
        assert_eq!((got.nodes.len(), got.nodes[0].number, got.nodes[0].asked), (1, (1, 3), true));
    }

    #[test]
    fn what_is_asked_for_takes_the_place_of_the_machine_s_own() {
        let device = |source: &str| Device { path: "/dev/fuse".into(), source: source.into(), permissions: "r".into() };
        for privileged in [false, true] {
            let got = Devices::parse(&[device("/dev/zero"), device("/dev/null")], privileged).unwrap();
            let there: Vec<_> = got.nodes.iter().filter(|node| node.path == Path::new("/dev/fuse")).collect();
            assert_eq!(there.len(), 1);
            assert_eq!((there[0].number, there[0].asked), ((1, 3), true));
        }
    }
}
