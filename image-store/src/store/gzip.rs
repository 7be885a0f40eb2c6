//! Gzip as GNU gzip reads it: any number of members (RFC 1952, 2.2), and padding behind the last
//! one.

use std::io::{self, BufRead, ErrorKind, Read};

use flate2::bufread::GzDecoder;

/// The first two bytes of a member.
pub(crate) const MAGIC: [u8; 2] = [0x1f, 0x8b];

/// The members' content, one behind the other, and zeros behind the last, with which GNU tar and
/// others fill up their blocks. Anything else there is an error: nobody knows what it was to be.
pub(crate) struct Members<R> {
    current: Option<GzDecoder<R>>,
}

impl<R: BufRead> Members<R> {
    pub(crate) fn new(reader: R) -> Self {
        Self { current: Some(GzDecoder::new(reader)) }
    }
}

impl<R: BufRead> Read for Members<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while !buffer.is_empty()
            && let Some(mut member) = self.current.take()
        {
            let length = member.read(buffer)?;
            if length > 0 {
                self.current = Some(member);
                return Ok(length);
            }
            let mut rest = member.into_inner();
            match rest.fill_buf()?.first() {
                Some(byte) if *byte == MAGIC[0] => self.current = Some(GzDecoder::new(rest)),
                _ => padding(rest)?,
            }
        }
        Ok(0)
    }
}

fn padding(mut rest: impl BufRead) -> io::Result<()> {
    loop {
        let bytes = rest.fill_buf()?;
        if bytes.iter().any(|byte| *byte != 0) {
            let reason = "what follows its last gzip member is neither gzip nor padding with zeros";
            return Err(io::Error::new(ErrorKind::InvalidData, reason));
        }
        match bytes.len() {
            0 => return Ok(()),
            length => rest.consume(length),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn member(content: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    /// Gives one byte at a time, as a slow network does.
    fn read(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        let mut members = Members::new(io::BufReader::with_capacity(1, bytes));
        members.read_to_end(&mut content)?;
        assert!(members.current.is_none());
        Ok(content)
    }

    #[test]
    fn members_follow_each_other() {
        let bytes = [member(b"one"), member(b""), member(&[b'x'; 100_000]), member(b"two")].concat();
        let expected = [&b"one"[..], &[b'x'; 100_000], b"two"].concat();
        assert_eq!(read(&bytes).unwrap(), expected);
    }

    #[test]
    fn only_zeros_may_follow() {
        for length in [1, 512, 100_000] {
            let bytes = [member(b"one"), member(b"two"), vec![0; length]].concat();
            assert_eq!(read(&bytes).unwrap(), b"onetwo", "{length}");
        }
        for rubbish in [&b"rubbish"[..], b"\0\0rubbish", &MAGIC[..1], &MAGIC, b"\x1frubbish that goes on and on"] {
            let bytes = [&member(b"one")[..], &member(b"two"), rubbish].concat();
            assert!(read(&bytes).is_err(), "{rubbish:x?}");
        }
    }

    #[test]
    fn a_broken_stream_is_not_padding() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(ErrorKind::UnexpectedEof.into())
            }
        }
        for sent in [member(b"one"), [&member(b"one")[..], &MAGIC].concat()] {
            let mut members = Members::new(io::BufReader::new(sent.chain(Broken)));
            assert!(members.read_to_end(&mut Vec::new()).is_err());
        }
    }

    #[test]
    fn damage_is_not_padding() {
        let whole = member(&[b'x'; 10_000]);
        assert!(read(b"\0\0garbage").is_err(), "no member at all");
        assert!(read(&whole[..whole.len() - 3]).is_err(), "the first is cut off");
        let mut damaged = whole.clone();
        damaged[20] ^= 0xff;
        assert!(read(&damaged).is_err());
        assert!(read(&[&member(b"one")[..], &damaged].concat()).is_err());
    }
}
