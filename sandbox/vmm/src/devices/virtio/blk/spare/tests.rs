use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use super::super::{F_DISCARD, F_RO, F_WRITE_ZEROES, source, state};
use super::*;
use crate::devices::virtio::VIRTIO_F_VERSION_1;
use crate::devices::virtio::test_guest::{DATA, Guest, WRITE};

/// A disk as a block device gives one; tests have none, and take a regular file.
pub(crate) fn volume(file: OwnedFd, serial: &str, read_only: bool) -> Blk {
    Blk::over(source::file(File::from(file)).unwrap(), state::id(serial), read_only)
}

fn file() -> OwnedFd {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    file.into()
}

#[test]
fn an_empty_place_is_no_device_and_cannot_be_started() {
    let mut spare = Spare::default();
    assert_eq!((spare.device_type(), spare.features()), (0, 0));
    let mut config = [7; 8];
    spare.read_config(0, &mut config);
    assert_eq!(config, [7; 8], "left as the transport cleared it");
    assert!(spare.activate(Guest::new(&QUEUE_SIZES).activation(VIRTIO_F_VERSION_1)).is_err());
    assert!(spare.reset_now());
    spare.reset();
}

#[test]
fn a_disk_comes_and_goes() {
    let mut guest = Guest::new(&QUEUE_SIZES);
    let mut spare = Spare::default();
    spare.fill(volume(file(), "b7.0w", false));
    assert_eq!(spare.device_type(), 2);
    assert_eq!(spare.features() & (F_RO | F_DISCARD | F_WRITE_ZEROES), F_DISCARD | F_WRITE_ZEROES);
    spare.activate(guest.activation(VIRTIO_F_VERSION_1)).unwrap();
    guest.write(DATA, &[&8_u32.to_le_bytes()[..], &[0; 12]].concat());
    guest.chain(0, &[(DATA, 16, 0), (DATA + 64, 20, WRITE), (DATA + 128, 1, WRITE)]);
    guest.kick(0);
    guest.wait_used(0, 1);
    assert_eq!(guest.read(DATA + 64, 20), state::id("b7.0w"));
    // Its thread ends by itself; nobody waits for it.
    let limit = Instant::now() + Duration::from_secs(10);
    while !spare.reset_now() {
        assert!(Instant::now() < limit, "the thread does not end");
        std::thread::sleep(Duration::from_millis(1));
    }
    spare.empty();
    assert_eq!(spare.device_type(), 0);
}

#[test]
fn a_read_only_descriptor_makes_a_read_only_disk() {
    let mut spare = Spare::default();
    spare.fill(volume(file(), "b7.0r", true));
    assert_eq!(spare.features() & (F_RO | F_DISCARD | F_WRITE_ZEROES), F_RO);
    let file = file();
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file.as_fd()));
    assert!(!source::file(File::open(path).unwrap()).unwrap().writable);
    assert!(source::file(File::from(file)).unwrap().writable);
}

#[test]
fn only_a_block_device_is_a_volume() {
    let error = Blk::volume(file(), "x", false).err().unwrap();
    assert!(error.to_string().contains("block device"), "{error}");
}
