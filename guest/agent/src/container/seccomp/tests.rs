use super::compile::{Filter, compile};
use super::*;

/// What the kernel would make of one call: runs the program as the kernel does.
fn run(filter: &Filter, arch: u32, nr: u32, args: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend_from_slice(&nr.to_le_bytes());
    data.extend_from_slice(&arch.to_le_bytes());
    data.extend_from_slice(&0u64.to_le_bytes());
    for a in args {
        data.extend_from_slice(&a.to_le_bytes());
    }
    let program = filter.program();
    let (mut at, mut a) = (0usize, 0u32);
    loop {
        let i = &program[at];
        let jump = |yes: bool| at + 1 + usize::from(if yes { i.jt } else { i.jf });
        at = match i.code {
            0x20 => {
                let k = i.k as usize;
                a = u32::from_le_bytes(data[k..k + 4].try_into().unwrap());
                at + 1
            }
            0x54 => {
                a &= i.k;
                at + 1
            }
            0x05 => at + 1 + i.k as usize,
            0x15 => jump(a == i.k),
            0x25 => jump(a > i.k),
            0x35 => jump(a >= i.k),
            0x06 => return i.k,
            other => panic!("instruction {other:#x}"),
        };
    }
}

const X86_64: u32 = 0xc000_003e;
const X86: u32 = 0x4000_0003;
const ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = 0x0005_0001;
const ENOSYS: u32 = 0x0005_0026;

fn call(filter: &Filter, name: &str, args: [u64; 6]) -> u32 {
    run(filter, X86_64, Arch::X86_64.number(name).unwrap(), args)
}

fn call_32(filter: &Filter, name: &str, args: [u64; 6]) -> u32 {
    run(filter, X86, Arch::X86.number(name).unwrap(), args)
}

fn caps(names: &[&str]) -> Caps {
    Caps {
        bounding: names.iter().map(|n| 1u64 << capabilities::number(n).unwrap()).fold(0, |a, b| a | b),
        ..Caps::default()
    }
}

#[test]
fn the_default_profile_knows_all_its_names() {
    let lists = default_profile::WITH_CAPABILITY.iter().map(|(_, l)| *l).chain([default_profile::ALLOWED]);
    for name in lists.flat_map(str::split_whitespace) {
        let known = [Arch::X86_64, Arch::X86].iter().any(|arch| arch.number(name).is_some());
        assert!(known, "{name}");
    }
    for name in default_profile::ALLOWED_32.split_whitespace() {
        assert!(Arch::X86.number(name).is_some() && Arch::X86_64.number(name).is_none(), "{name}");
    }
    for (capability, _) in default_profile::WITH_CAPABILITY {
        assert!(capabilities::number(capability).is_some(), "{capability}");
    }
}

#[test]
fn the_default_profile() {
    let plain = default_filter(&caps(&["CAP_CHOWN"])).unwrap();
    let admin = default_filter(&caps(&["CAP_SYS_ADMIN"])).unwrap();
    let one = |n| [n, 0, 0, 0, 0, 0];
    for (name, args, without, with) in [
        ("read", one(0), ALLOW, ALLOW),
        ("execve", one(0), ALLOW, ALLOW),
        ("mount", one(0), EPERM, ALLOW),
        ("unshare", one(0), EPERM, ALLOW),
        ("setns", one(0), EPERM, ALLOW),
        ("bpf", one(0), EPERM, ALLOW),
        ("keyctl", one(0), EPERM, EPERM),
        ("kexec_load", one(0), EPERM, EPERM),
        ("init_module", one(0), EPERM, EPERM),
        ("io_uring_setup", one(0), EPERM, EPERM),
        ("clone3", one(0), ENOSYS, ALLOW),
        ("clone", one(0x11), ALLOW, ALLOW),
        ("clone", one(0x1000_0011), EPERM, ALLOW),
        ("clone", one(0x0002_0011), EPERM, ALLOW),
        ("personality", one(0), ALLOW, ALLOW),
        ("personality", one(0xffff_ffff), ALLOW, ALLOW),
        ("personality", one(0x0004_0000), EPERM, EPERM),
        ("socket", one(1), ALLOW, ALLOW),
        ("socket", one(40), EPERM, EPERM),
        ("clock_adjtime", one(0), ALLOW, ALLOW),
        ("uretprobe", one(0), ALLOW, ALLOW),
    ] {
        assert_eq!(call(&plain, name, args), without, "{name} {args:x?} without CAP_SYS_ADMIN");
        assert_eq!(call(&admin, name, args), with, "{name} {args:x?} with CAP_SYS_ADMIN");
    }
    assert_eq!(run(&plain, 0xc000_00b7, 63, [0; 6]), ENOSYS, "arm64");
    assert_eq!(run(&plain, X86_64, 0x4000_0000, [0; 6]), ENOSYS, "x32");
    assert_eq!(run(&plain, X86_64, 5000, [0; 6]), ENOSYS, "a call of the future");
}

#[test]
fn operators_compare_all_64_bits() {
    let big = 1u64 << 40;
    for (operator, value, holds, fails) in [
        (Operator::Equal, big + 5, vec![big + 5], vec![5, big, big + 6]),
        (Operator::NotEqual, big + 5, vec![5, big, big + 6], vec![big + 5]),
        (Operator::Less, big + 5, vec![0, 9, big + 4], vec![big + 5, big + 6, 2 * big]),
        (Operator::LessOrEqual, big + 5, vec![0, 9, big + 5], vec![big + 6, 2 * big]),
        (Operator::Greater, big + 5, vec![big + 6, 2 * big], vec![0, 9, big + 5]),
        (Operator::GreaterOrEqual, big + 5, vec![big + 5, 2 * big], vec![0, 9, big + 4]),
        (Operator::MaskedEqual(big | 3), big | 1, vec![big | 1, big | 5], vec![1, big, big | 3]),
    ] {
        let rule =
            Rule { syscall: 7, conditions: vec![Condition { index: 5, operator, value }], action: Action::KillProcess };
        let filter = compile(&[(Arch::X86_64, vec![rule])], Action::Allow, 0).unwrap();
        for (args, expected) in [(holds, 0x8000_0000), (fails, ALLOW)] {
            for arg in args {
                let got = run(&filter, X86_64, 7, [0, 0, 0, 0, 0, arg]);
                assert_eq!(got, expected, "{operator:?} {value:#x} with {arg:#x}");
            }
        }
    }
}

#[test]
fn programs_of_32_bits_have_the_same_profile_by_their_own_numbers() {
    let plain = default_filter(&caps(&["CAP_CHOWN"])).unwrap();
    let admin = default_filter(&caps(&["CAP_SYS_ADMIN"])).unwrap();
    let one = |n| [n, 0, 0, 0, 0, 0];
    for (name, args, without, with) in [
        ("write", one(0), ALLOW, ALLOW),
        ("exit", one(0), ALLOW, ALLOW),
        ("mmap2", one(0), ALLOW, ALLOW),
        ("socketcall", one(1), ALLOW, ALLOW),
        ("clock_gettime64", one(0), ALLOW, ALLOW),
        ("mount", one(0), EPERM, ALLOW),
        ("umount", one(0), EPERM, ALLOW),
        ("unshare", one(0), EPERM, ALLOW),
        ("keyctl", one(0), EPERM, EPERM),
        ("stime", one(0), EPERM, EPERM),
        ("clone", one(0x11), ALLOW, ALLOW),
        ("clone", one(0x1000_0011), EPERM, ALLOW),
        ("clone3", one(0), ENOSYS, ALLOW),
        ("personality", one(0xffff_ffff), ALLOW, ALLOW),
        ("personality", one(0x0004_0000), EPERM, EPERM),
        ("socket", one(1), ALLOW, ALLOW),
        ("socket", one(40), EPERM, EPERM),
    ] {
        assert_eq!(call_32(&plain, name, args), without, "{name} {args:x?} without CAP_SYS_ADMIN");
        assert_eq!(call_32(&admin, name, args), with, "{name} {args:x?} with CAP_SYS_ADMIN");
    }
    assert_eq!(run(&plain, X86, 5000, [0; 6]), ENOSYS, "a call of the future");
}

#[test]
fn a_profile_names_the_architectures_that_it_is_for() {
    let rules = r#""defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
        {"names": ["write"], "action": "SCMP_ACT_ALLOW",
         "args": [{"index": 0, "value": 18446744073709551615, "op": "SCMP_CMP_NE"}]},
        {"names": ["exit"], "action": "SCMP_ACT_ALLOW"}]"#;
    for (arches, both) in [
        ("", false),
        (r#""architectures": ["SCMP_ARCH_X86_64"],"#, false),
        (r#""architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],"#, true),
        (r#""archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],"#, true),
        (r#""archMap": [{"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_X86"]}],"#, false),
    ] {
        let filter = profile::filter(format!("{{{arches}{rules}}}").as_bytes(), &Caps::default()).unwrap();
        let allowed = if both { ALLOW } else { ENOSYS };
        assert_eq!(call(&filter, "write", [1, 0, 0, 0, 0, 0]), ALLOW, "{arches}");
        assert_eq!(call_32(&filter, "write", [1, 0, 0, 0, 0, 0]), allowed, "{arches}");
        assert_eq!(call_32(&filter, "exit", [0; 6]), allowed, "{arches}");
        if both {
            let minus_one = [u64::from(u32::MAX), 0, 0, 0, 0, 0];
            assert_eq!(call_32(&filter, "write", minus_one), EPERM, "arguments have 32 bits there");
            assert_eq!(call(&filter, "write", minus_one), ALLOW, "and 64 here");
        }
    }
}

#[test]
fn operators_compare_the_lower_32_bits_of_narrow_arguments() {
    for (operator, value, holds, fails) in [
        (Operator::Equal, 5, vec![5], vec![4, 6]),
        (Operator::NotEqual, 5, vec![4, 6], vec![5]),
        (Operator::Less, 5, vec![4], vec![5, 6]),
        (Operator::LessOrEqual, 5, vec![4, 5], vec![6]),
        (Operator::Greater, 5, vec![6], vec![4, 5]),
        (Operator::GreaterOrEqual, 5, vec![5, 6], vec![4]),
        (Operator::MaskedEqual(0xf_0000_0003), 1, vec![1, 5], vec![2, 3]),
    ] {
        let rule =
            Rule { syscall: 7, conditions: vec![Condition { index: 5, operator, value }], action: Action::KillProcess };
        let filter = compile(&[(Arch::X86, vec![rule])], Action::Allow, 0).unwrap();
        for (args, expected) in [(holds, 0x8000_0000), (fails, ALLOW)] {
            for arg in args {
                let got = run(&filter, X86, 7, [0, 0, 0, 0, 0, arg]);
                assert_eq!(got, expected, "{operator:?} {value:#x} with {arg:#x}");
            }
        }
    }
}

#[test]
fn flags_are_known_by_name() {
    let json = |flags: &str| format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW"{flags}}}"#);
    for (flags, text) in [
        ("", "flags 0x4"),
        (r#", "flags": []"#, "flags 0x0"),
        (r#", "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]"#, "flags 0x2"),
    ] {
        let filter = profile::filter(json(flags).as_bytes(), &Caps::default()).unwrap();
        assert!(format!("{filter:?}").contains(text), "{flags}: {filter:?}");
    }
}

#[test]
fn a_profile_of_the_specification() {
    let json = br#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [
          {"names": ["read", "no_such_call"], "action": "SCMP_ACT_ALLOW"},
          {"names": ["personality"], "action": "SCMP_ACT_ALLOW",
           "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 9, "op": "SCMP_CMP_EQ"}]},
          {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13},
          {"names": ["chmod"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_CHOWN"]}},
          {"names": ["clone"], "action": "SCMP_ACT_ALLOW",
           "args": [{"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]}]}"#;
    let with = profile::filter(json, &caps(&["CAP_CHOWN"])).unwrap();
    let without = profile::filter(json, &caps(&[])).unwrap();
    assert_eq!(call(&with, "read", [0; 6]), ALLOW);
    assert_eq!(call(&with, "write", [0; 6]), ENOSYS);
    assert_eq!(call(&with, "mkdir", [0; 6]), 0x0005_000d);
    assert_eq!(call(&with, "chmod", [0; 6]), ALLOW);
    assert_eq!(call(&without, "chmod", [0; 6]), ENOSYS);
    for (value, expected) in [(8, ALLOW), (9, ALLOW), (10, ENOSYS)] {
        assert_eq!(call(&with, "personality", [value, 0, 0, 0, 0, 0]), expected);
    }
    assert_eq!(call(&with, "clone", [0x11, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(call(&with, "clone", [0x1000_0000, 0, 0, 0, 0, 0]), ENOSYS);
}

#[test]
fn profiles_that_cannot_be_enforced_are_refused() {
    for json in [
        "",
        "{}",
        r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#,
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x"}"#,
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_AARCH64"]}"#,
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_NONSENSE"]}"#,
        r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 60000}"#,
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_KILL",
            "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}]}"#,
    ] {
        assert!(profile::filter(json.as_bytes(), &Caps::default()).is_err(), "{json}");
    }
}
