//! One log file.

use std::fs::{File, Metadata};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

/// Device number of /dev/null (1:3), where output of a container without a log goes.
const NULL: u64 = 0x103;

/// A file that takes whole records.
pub(super) struct LogFile {
    file: File,
    /// The last write stopped inside a record.
    torn: bool,
    /// The last write failed; said once until one succeeds.
    failing: bool,
}

impl LogFile {
    /// Takes `fd` over if it is a regular file or the null device; what else there is could block
    /// for ever.
    pub(super) fn new(fd: OwnedFd) -> Option<Self> {
        let file = File::from(fd);
        let never_blocks = |m: Metadata| m.is_file() || (m.file_type().is_char_device() && m.rdev() == NULL);
        let fit = file.metadata().is_ok_and(never_blocks);
        fit.then_some(Self { file, torn: false, failing: false })
    }

    /// Takes `fd` over whatever it is.
    #[cfg(test)]
    pub(super) fn unchecked(fd: OwnedFd) -> Self {
        Self { file: File::from(fd), torn: false, failing: false }
    }

    /// Appends whole records. What the disk does not take is lost, and said on the monitor's standard error: a container must
    /// not stand still because a disk is full.
    pub(super) fn append(&mut self, container: &str, records: &[u8]) {
        match self.try_append(records) {
            Ok(()) => self.failing = false,
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    complain!("log: lost output of container {container}: cannot write its log: {error}");
                }
            }
        }
    }

    fn try_append(&mut self, mut records: &[u8]) -> io::Result<()> {
        if self.torn && !records.is_empty() {
            self.file.write_all(b"\n")?;
            self.torn = false;
        }
        let whole = records.len();
        while !records.is_empty() {
            match self.file.write(records) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => records = &records[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let written = whole - records.len();
                    self.torn = written > 0;
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}
