//! What a guest may remember, and for how long.

use std::time::{Duration, Instant};

use libc::{ENOENT, O_RDONLY};

use super::*;

/// `FOPEN_KEEP_CACHE`.
const KEEP_CACHE: u8 = 2;
/// Seconds that a name and attributes are valid, in the reply to LOOKUP.
const NAME_VALID: usize = 16;
const ATTRIBUTES_VALID: usize = 24;
/// A volume that is its pod's alone, by its name in the share.
const OWN: &str = "1-2-rw-e0";
const DAY: u64 = 24 * 3600;

/// Whether the guest keeps what it has cached of the file, which it opens and closes.
fn keeps(client: &mut Client, file: u64) -> bool {
    let opened = client.call(op::OPEN, file, &fields(&[O_RDONLY as u32, 0])).unwrap();
    let release = [&opened[..8], &fields(&[0; 4])].concat();
    client.call(op::RELEASE, file, &release).unwrap();
    opened[8] & KEEP_CACHE != 0
}

#[test]
fn only_of_a_layer_is_it_remembered_that_a_name_is_not_there() {
    let Some(mut client) = Client::new() else { return };
    let (layer, volume) = (client.find("layer0"), client.find("volume"));
    let absent = client.call(op::LOOKUP, layer, &name("absent")).unwrap();
    assert_eq!((number(&absent), number(&absent[NAME_VALID..])), (0, DAY));
    assert_eq!(client.call(op::LOOKUP, volume, &name("absent")), Err(ENOENT));
    // It is no file that the guest knows.
    assert_eq!(client.fs.share.counts().0, 2);
}

#[test]
fn attributes_are_valid_for_as_long_as_nobody_else_changes_them() {
    let Some(mut client) = Client::new() else { return };
    mount(client.dir.path(), "volume/dir", OWN, false);
    std::fs::write(client.path("volume/dir/file"), "content").unwrap();
    for (top, valid) in [("volume", 1), (OWN, 60), ("layer0", DAY)] {
        let folder = client.find(top);
        let entry = client.call(op::LOOKUP, folder, &name("file")).unwrap();
        assert_eq!([number(&entry[NAME_VALID..]), number(&entry[ATTRIBUTES_VALID..])], [valid; 2], "{top}");
    }
    assert_eq!(client.find("volume/dir/file"), client.find(&format!("{OWN}/file")), "one file by two ways");
}

#[test]
fn a_file_that_has_not_changed_is_not_read_again() {
    let Some(mut client) = Client::new() else { return };
    let (layer, file) = (client.find("layer0/file"), client.find("volume/file"));
    assert!(keeps(&mut client, layer));
    let until_kept = |client: &mut Client| {
        let began = Instant::now();
        while !keeps(client, file) {
            assert!(began.elapsed() < Duration::from_secs(20), "never kept");
            std::thread::sleep(Duration::from_millis(100));
        }
        began.elapsed()
    };
    let waited = until_kept(&mut client);
    assert!(waited > Duration::from_secs(1), "a change within the same tick would not show; kept after {waited:?}");
    assert!(keeps(&mut client, file));
    // The same length, and a time that a program has set back.
    let path = client.path("volume/file");
    let modified = path.metadata().unwrap().modified().unwrap();
    std::fs::write(&path, "CONTENT").unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
    assert!(!keeps(&mut client, file));
    assert!(!keeps(&mut client, file), "changed just now");
    until_kept(&mut client);
}
