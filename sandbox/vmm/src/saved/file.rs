//! The state file: a head, the serialized state, a checksum over both.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::seal;

/// Version of the file; what is in it has versions of its own. Another one is refused.
const VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"CFDMSTAT";
/// Magic, version, length of the body.
const HEAD: usize = MAGIC.len() + 4 + 4;
const SUM: usize = 32;
/// Longest body. A vCPU takes some 16 KiB, more with large vector registers.
const MAX_BODY: usize = 4 << 20;

/// Why a state is not read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    /// The descriptor does not read or write.
    #[error("the state file does not {0}")]
    Io(&'static str, #[source] io::Error),
    /// It holds something else.
    #[error("the state file is not one: it does not begin with the name of the format")]
    NoState,
    /// Another monitor wrote it.
    #[error("the state file has format version {0}, and this monitor reads version {VERSION}")]
    Version(u32),
    /// It is cut, or something follows.
    #[error("the state file has {size} bytes and should have {expected}")]
    Size {
        /// What it has.
        size: u64,
        /// By what it says of itself.
        expected: u64,
    },
    /// More than any VM has.
    #[error("the state file says that it has {0} bytes of state: at most {MAX_BODY} are read")]
    TooLarge(usize),
    /// A bit changed.
    #[error("the checksum of the state file is wrong: it was damaged or changed")]
    Checksum,
    /// It cannot be taken apart, which only a bug can cause.
    #[error("the state in the file is malformed")]
    Malformed(#[source] postcard::Error),
}

/// Writes `state` to `file`, from its beginning, and seals it.
pub(crate) fn write<T: Serialize>(file: &File, state: &T) -> Result<(), FileError> {
    let bytes = encode(state)?;
    file.set_len(bytes.len() as u64).map_err(|error| FileError::Io("take its size", error))?;
    file.write_all_at(&bytes, 0).map_err(|error| FileError::Io("take the state", error))?;
    seal(file).map_err(|error| FileError::Io("let itself be sealed: it must be a memfd that allows it", error))
}

/// Reads the state in `file`.
pub(crate) fn read<T: DeserializeOwned>(file: &File) -> Result<T, FileError> {
    let failed = |error| FileError::Io("give its content", error);
    let size = file.metadata().map_err(failed)?.len();
    // Not one byte more than the largest state has is ever read, whatever the file says.
    let mut bytes = vec![0; size.min((HEAD + MAX_BODY + SUM) as u64) as usize];
    file.read_exact_at(&mut bytes, 0).map_err(failed)?;
    decode(&bytes, size)
}

fn encode<T: Serialize>(state: &T) -> Result<Vec<u8>, FileError> {
    framed(&postcard::to_allocvec(state).map_err(FileError::Malformed)?)
}

/// `body` with its head and its checksum.
pub(super) fn framed(body: &[u8]) -> Result<Vec<u8>, FileError> {
    let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= MAX_BODY);
    let Some(length) = length else { return Err(FileError::TooLarge(body.len())) };
    let mut bytes = [&MAGIC[..], &VERSION.to_le_bytes(), &length.to_le_bytes(), body].concat();
    let sum = Sha256::digest(&bytes);
    bytes.extend_from_slice(&sum);
    Ok(bytes)
}

/// Takes a file of `size` bytes apart, of which `bytes` are the first.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8], size: u64) -> Result<T, FileError> {
    let number = |at: usize| bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map(u32::from_le_bytes);
    if !bytes.starts_with(&MAGIC) {
        return Err(FileError::NoState);
    }
    let cut = FileError::Size { size, expected: (HEAD + SUM) as u64 };
    let (Some(version), Some(length)) = (number(MAGIC.len()), number(MAGIC.len() + 4)) else { return Err(cut) };
    if version != VERSION {
        return Err(FileError::Version(version));
    }
    let length = length as usize;
    if length > MAX_BODY {
        return Err(FileError::TooLarge(length));
    }
    let expected = (HEAD + length + SUM) as u64;
    if size != expected || bytes.len() as u64 != size {
        return Err(FileError::Size { size, expected });
    }
    let (content, sum) = bytes.split_at(HEAD + length);
    if Sha256::digest(content)[..] != *sum {
        return Err(FileError::Checksum);
    }
    let (state, rest) = postcard::take_from_bytes(&content[HEAD..]).map_err(FileError::Malformed)?;
    if rest.is_empty() { Ok(state) } else { Err(FileError::Malformed(postcard::Error::DeserializeUnexpectedEnd)) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Clone, Serialize, Deserialize)]
    struct Sample {
        number: u64,
        text: String,
        list: Vec<Option<u16>>,
    }

    fn sample() -> Sample {
        Sample { number: 7 << 40, text: "state".into(), list: vec![None, Some(3)] }
    }

    fn refused(bytes: &[u8]) -> String {
        decode::<Sample>(bytes, bytes.len() as u64).unwrap_err().to_string()
    }

    #[test]
    fn every_truncation_and_every_addition_is_refused() {
        let bytes = encode(&sample()).unwrap();
        assert_eq!(decode::<Sample>(&bytes, bytes.len() as u64).unwrap(), sample());
        for length in 0..bytes.len() {
            let why = refused(&bytes[..length]);
            assert!(why.contains("does not begin") == (length < MAGIC.len()), "{length}: {why}");
            assert!(length < MAGIC.len() || why.contains(&format!("has {length} bytes")), "{length}: {why}");
        }
        let why = refused(&[&bytes[..], &[0]].concat());
        assert!(why.contains("should have"), "{why}");
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        let bytes = encode(&sample()).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let why = refused(&changed);
            let expected = match bit / 8 {
                0..8 => "does not begin",
                8..12 => "format version",
                12..16 => "bytes",
                _ => "checksum",
            };
            assert!(why.contains(expected), "bit {bit}: {why}");
        }
    }

    #[test]
    fn other_files_are_refused_by_what_they_are() {
        let head = |version: u32, length: u32| [&MAGIC[..], &version.to_le_bytes(), &length.to_le_bytes()].concat();
        for (bytes, expected) in [
            (b"#!/bin/sh\nexit 0 and more and more".to_vec(), "does not begin"),
            (head(2, 0), "format version 2, and this monitor reads version 1"),
            (head(1, u32::MAX), "4294967295 bytes of state"),
            (head(1, MAX_BODY as u32), "should have 4194352"),
        ] {
            let why = refused(&bytes);
            assert!(why.contains(expected), "{why}");
        }
        // A sum that is right does not make a state of what is none.
        let mut bytes = head(1, 3);
        bytes.extend_from_slice(&[0x80, 0x80, 0x80]);
        bytes.extend_from_slice(&Sha256::digest(&bytes));
        assert!(refused(&bytes).contains("malformed"));
    }

    #[test]
    fn a_file_larger_than_any_state_is_not_read_whole() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&encode(&sample()).unwrap(), 0).unwrap();
        file.set_len(1 << 40).unwrap();
        let error = read::<Sample>(&file).unwrap_err();
        assert!(matches!(error, FileError::Size { size, .. } if size == 1 << 40), "{error}");
    }

    proptest! {
        #[test]
        fn a_state_survives(number in any::<u64>(), text in ".*", list in prop::collection::vec(any::<Option<u16>>(), 0..99)) {
            let sample = Sample { number, text, list };
            let bytes = encode(&sample).unwrap();
            prop_assert_eq!(decode::<Sample>(&bytes, bytes.len() as u64).unwrap(), sample);
        }

        #[test]
        fn no_bytes_break_the_parser(bytes in prop::collection::vec(any::<u8>(), 0..300), size in any::<u64>()) {
            let _ = decode::<Sample>(&bytes, size);
            let _ = decode::<Sample>(&[&encode(&sample()).unwrap()[..HEAD], &bytes].concat(), size);
            let mut body = [&MAGIC[..], &VERSION.to_le_bytes(), &(bytes.len() as u32).to_le_bytes(), &bytes].concat();
            body.extend_from_slice(&Sha256::digest(&body));
            let _ = decode::<super::super::State>(&body, body.len() as u64);
        }
    }
}
