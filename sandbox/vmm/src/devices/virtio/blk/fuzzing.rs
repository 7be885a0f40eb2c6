//! The disk without its thread, for the fuzz targets.

use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, memfd_create};

use super::request::Disk;
use super::state::{self, BlkState, STATE_VERSION};
use super::{F_DISCARD, F_FLUSH, F_WRITE_ZEROES, ID, QUEUE_SIZES, SECTOR};
use crate::devices::virtio::test_guest::Guest;
use crate::devices::virtio::{Activation, Buffers, VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC, VIRTIO_F_VERSION_1};
use crate::fuzzing::Step;

const SECTORS: u64 = 256;
const CONTENT: u8 = 0x5a;

/// A disk in memory and its driver.
pub(crate) struct OneThread {
    guest: Guest,
    active: Activation,
    file: File,
    state: BlkState,
    features: u64,
}

impl OneThread {
    pub(crate) fn new(read_only: bool, features: u64) -> Self {
        let file = File::from(memfd_create("disk", MemfdFlags::CLOEXEC).expect("a memfd"));
        file.write_all_at(&[CONTENT; (SECTORS * SECTOR) as usize], 0).expect("memory for it");
        let offered = VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC | F_FLUSH | F_DISCARD | F_WRITE_ZEROES;
        let features = features & offered | VIRTIO_F_VERSION_1;
        let guest = Guest::new(&QUEUE_SIZES);
        let active = guest.activation(features);
        let (version, id) = (STATE_VERSION, state::id(ID));
        let state = BlkState { version, capacity: SECTORS, block_size: 512, read_only, id, features };
        Self { guest, active, file, state, features }
    }

    /// Has the driver do `steps`.
    ///
    /// # Panics
    /// When the disk grew, or one that is to be read was written.
    pub(crate) fn play(mut self, steps: &[(u8, Step)]) {
        for (_, step) in steps {
            if crate::fuzzing::carry_out(&mut self.guest, 0, QUEUE_SIZES[0], step) {
                continue;
            }
            match step {
                Step::Restart => {
                    self.guest = Guest::new(&QUEUE_SIZES);
                    self.active = self.guest.activation(self.features);
                }
                _ => self.serve(),
            }
        }
        let length = self.file.metadata().expect("it is open").len();
        assert_eq!(length, SECTORS * SECTOR, "the disk has another size");
        if self.state.read_only {
            let mut bytes = vec![0; length as usize];
            self.file.read_exact_at(&mut bytes, 0).expect("it is open");
            assert!(bytes.iter().all(|byte| *byte == CONTENT), "a disk that is to be read was written");
        }
    }

    fn serve(&mut self) {
        let disk = Disk::new(&self.file, &self.state, true);
        let Activation { memory, queues, interrupt, .. } = &mut self.active;
        queues[0].take_kick();
        let serve = |chain| Buffers::new(memory, chain).map_or(0, |buffers| disk.serve(buffers));
        queues[0].serve_chains(memory, interrupt, serve);
    }
}
