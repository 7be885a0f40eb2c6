use std::io::Write;

use super::*;

const LOAD_AT: u64 = 0x100_0000;

/// A minimal ELF image: one PT_LOAD of `code` with `bss` more bytes of memory, and a PVH note if `entry` is given.
fn elf(code: &[u8], bss: u64, entry: Option<u32>) -> Vec<u8> {
    let note: Vec<u8> = entry
        .map(|entry| {
            let head: Vec<u8> = [4_u32, 4, 18].iter().flat_map(|word| word.to_le_bytes()).collect();
            [&head[..], b"Xen\0", &entry.to_le_bytes()].concat()
        })
        .unwrap_or_default();
    let headers = 64 + 2 * 56;
    let program = |kind: u32, offset: u64, address: u64, file: u64, memory: u64| -> Vec<u8> {
        let mut bytes = [kind, 7].iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        for word in [offset, address, address, file, memory, 8] {
            bytes.extend(word.to_le_bytes());
        }
        bytes
    };
    let mut image = b"\x7fELF\x02\x01\x01".to_vec();
    image.resize(16, 0);
    image.extend(2_u16.to_le_bytes());
    image.extend(62_u16.to_le_bytes());
    image.extend(1_u32.to_le_bytes());
    for word in [LOAD_AT, 64, 0] {
        image.extend(word.to_le_bytes());
    }
    image.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, 2, 0, 0, 0] {
        image.extend(half.to_le_bytes());
    }
    image.extend(program(1, headers, LOAD_AT, code.len() as u64, code.len() as u64 + bss));
    let kind = if note.is_empty() { 0 } else { 4 };
    image.extend(program(kind, headers + code.len() as u64, 0, note.len() as u64, note.len() as u64));
    image.extend(code);
    image.extend(note);
    image
}

fn file(bytes: &[u8]) -> OwnedFd {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.into()
}

fn word(memory: &GuestMemoryMmap, address: u64) -> u64 {
    memory.read_obj(GuestAddress(address)).unwrap()
}

#[test]
fn everything_is_where_the_start_info_says() {
    let memory = crate::memory::map(64).unwrap();
    let entry = load(&memory, file(&elf(b"code", 0, Some(0x100_0010))), file(b"initrd!"), "a=b", 2).unwrap();
    assert_eq!(entry, Entry { address: 0x100_0010, start_info: 0x6000 });
    let mut code = [0; 4];
    memory.read_slice(&mut code, GuestAddress(LOAD_AT)).unwrap();
    assert_eq!(&code, b"code");
    assert_eq!(word(&memory, entry.start_info) as u32, START_INFO_MAGIC);
    let modules = word(&memory, entry.start_info + 16);
    assert_eq!(word(&memory, modules + 8), 7, "size of the initramfs");
    let mut initrd = [0; 7];
    memory.read_slice(&mut initrd, GuestAddress(word(&memory, modules))).unwrap();
    assert_eq!(&initrd, b"initrd!");
    let mut cmdline = [0xff; 4];
    memory.read_slice(&mut cmdline, GuestAddress(word(&memory, entry.start_info + 24))).unwrap();
    assert_eq!(&cmdline, b"a=b\0");
    assert_eq!(word(&memory, entry.start_info + 48), 3, "entries of the memory map");
}

#[test]
fn what_cannot_boot_is_refused_with_the_reason() {
    let memory = crate::memory::map(32).unwrap();
    let good = || file(&elf(b"code", 0, Some(1)));
    let refused = |kernel, initrd, cmdline: &str| load(&memory, kernel, initrd, cmdline, 1).unwrap_err().to_string();
    assert!(refused(file(b"not an ELF image"), file(b""), "").contains("vmlinux"));
    assert!(refused(file(&elf(b"code", 0, None)), file(b""), "").contains("CONFIG_PVH"));
    assert!(refused(good(), file(b""), &"x".repeat(MAX_CMDLINE + 1)).contains("2048 bytes"));
    let whole_memory = file(&vec![0; 32 << 20]);
    assert!(refused(good(), whole_memory, "").contains("does not fit"));
    let large_bss = file(&elf(b"code", 1 << 40, Some(1)));
    assert!(refused(large_bss, file(b"x"), "").contains("does not fit"));
}
