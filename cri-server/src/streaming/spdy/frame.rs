//! SPDY/3.1 frames: the eight-byte header, and the payloads that Kubernetes' clients use.
//!
//! ```text
//! control: 1 | version (15) | type (16) | flags (8) | length (24) | payload
//! data:    0 | stream id (31)           | flags (8) | length (24) | payload
//! ```
//! Specification: draft-mbelshe-httpbis-spdy-00 §2.2, with SPDY/3.1's window rules left aside as the Kubernetes
//! clients leave them: they never send WINDOW_UPDATE, so a sender that heeds windows would stop for ever after 64 KiB.
//! TCP is the only back-pressure.

/// Longest control frame that is read, bytes; header blocks of remote commands are under 200.
pub(super) const MAX_CONTROL: usize = 16 * 1024;
/// Flag of the last frame of one direction of a stream.
pub(super) const FLAG_FIN: u8 = 1;

const VERSION: u16 = 3;
const TYPE_SYN_STREAM: u16 = 1;
const TYPE_SYN_REPLY: u16 = 2;
const TYPE_RST_STREAM: u16 = 3;
const TYPE_PING: u16 = 6;
const TYPE_GOAWAY: u16 = 7;

/// A frame's first eight bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Header {
    Data { stream: u32, flags: u8, length: usize },
    Control { kind: u16, flags: u8, length: usize },
}

/// What a control frame means here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Control<'a> {
    SynStream {
        stream: u32,
        fin: bool,
        headers: &'a [u8],
    },
    RstStream {
        stream: u32,
    },
    Ping {
        id: u32,
    },
    GoAway,
    /// SETTINGS, WINDOW_UPDATE, HEADERS and SYN_REPLY carry nothing that a remote command needs.
    Ignored,
}

/// Why bytes are not SPDY.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(in crate::streaming) enum FrameError {
    #[error("control frame of SPDY version {0}, only version 3 is spoken")]
    Version(u16),
    #[error("control frame of {0} bytes, at most {MAX_CONTROL} are read")]
    TooLong(usize),
    #[error("control frame of type {0} is too short")]
    Short(u16),
    #[error("stream id 0")]
    StreamZero,
}

impl Header {
    /// Reads a header.
    pub(super) fn parse(bytes: [u8; 8]) -> Result<Self, FrameError> {
        let [a, b, c, d, flags, l0, l1, l2] = bytes;
        let length = usize::from(l0) << 16 | usize::from(l1) << 8 | usize::from(l2);
        if a & 0x80 == 0 {
            return Ok(Self::Data { stream: u32::from_be_bytes([a, b, c, d]), flags, length });
        }
        let version = u16::from_be_bytes([a & 0x7f, b]);
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        if length > MAX_CONTROL {
            return Err(FrameError::TooLong(length));
        }
        Ok(Self::Control { kind: u16::from_be_bytes([c, d]), flags, length })
    }
}

fn word(payload: &[u8], at: usize, kind: u16) -> Result<u32, FrameError> {
    let bytes = payload.get(at..at + 4).and_then(|b| <[u8; 4]>::try_from(b).ok());
    bytes.map(u32::from_be_bytes).ok_or(FrameError::Short(kind))
}

impl<'a> Control<'a> {
    /// Reads a control frame's payload.
    pub(super) fn parse(kind: u16, flags: u8, payload: &'a [u8]) -> Result<Self, FrameError> {
        let stream = || match word(payload, 0, kind)? & 0x7fff_ffff {
            0 => Err(FrameError::StreamZero),
            id => Ok(id),
        };
        Ok(match kind {
            // stream id, associated stream id, priority and slot, then the header block
            TYPE_SYN_STREAM => Self::SynStream {
                stream: stream()?,
                fin: flags & FLAG_FIN != 0,
                headers: payload.get(10..).ok_or(FrameError::Short(kind))?,
            },
            TYPE_RST_STREAM => Self::RstStream { stream: stream()? },
            TYPE_PING => Self::Ping { id: word(payload, 0, kind)? },
            TYPE_GOAWAY => Self::GoAway,
            _ => Self::Ignored,
        })
    }
}

fn control(kind: u16, flags: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|p| p.len()).sum();
    let mut frame = Vec::with_capacity(8 + length);
    frame.extend_from_slice(&(0x8000 | VERSION).to_be_bytes());
    frame.extend_from_slice(&kind.to_be_bytes());
    push_length(&mut frame, flags, length);
    for part in parts {
        frame.extend_from_slice(part);
    }
    frame
}

fn push_length(frame: &mut Vec<u8>, flags: u8, length: usize) {
    let [_, l0, l1, l2] = u32::try_from(length).unwrap_or(0).to_be_bytes();
    frame.extend_from_slice(&[flags, l0, l1, l2]);
}

/// Accepts a stream.
pub(super) fn syn_reply(stream: u32, headers: &[u8]) -> Vec<u8> {
    control(TYPE_SYN_REPLY, 0, &[&stream.to_be_bytes(), headers])
}

/// Refuses a stream (status 3, REFUSED_STREAM).
pub(super) fn rst_stream(stream: u32) -> Vec<u8> {
    control(TYPE_RST_STREAM, 0, &[&stream.to_be_bytes(), &3u32.to_be_bytes()])
}

/// Answers a ping.
pub(super) fn ping(id: u32) -> Vec<u8> {
    control(TYPE_PING, 0, &[&id.to_be_bytes()])
}

/// Says that no more streams are accepted (status 0, OK).
pub(super) fn go_away(last: u32) -> Vec<u8> {
    control(TYPE_GOAWAY, 0, &[&last.to_be_bytes(), &0u32.to_be_bytes()])
}

/// The header of a data frame of `length` bytes, under 16 MiB.
pub(super) fn data_header(stream: u32, flags: u8, length: usize) -> Vec<u8> {
    let mut frame = Vec::with_capacity(8);
    frame.extend_from_slice(&stream.to_be_bytes());
    push_length(&mut frame, flags, length);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn own_frames_are_read_back() {
        let frame = ping(7);
        let header = Header::parse(frame[..8].try_into().unwrap()).unwrap();
        assert_eq!(header, Header::Control { kind: TYPE_PING, flags: 0, length: 4 });
        assert_eq!(Control::parse(TYPE_PING, 0, &frame[8..]), Ok(Control::Ping { id: 7 }));
        let data = data_header(5, FLAG_FIN, 0x01_02_03);
        assert_eq!(
            Header::parse(data.try_into().unwrap()).unwrap(),
            Header::Data { stream: 5, flags: FLAG_FIN, length: 0x01_02_03 }
        );
    }

    #[test]
    fn other_versions_and_long_frames_are_refused() {
        assert_eq!(Header::parse([0x80, 2, 0, 1, 0, 0, 0, 0]), Err(FrameError::Version(2)));
        assert_eq!(Header::parse([0x80, 3, 0, 1, 0, 1, 0, 0]), Err(FrameError::TooLong(65536)));
        assert_eq!(Control::parse(TYPE_SYN_STREAM, 0, &[0, 0, 0, 1]), Err(FrameError::Short(TYPE_SYN_STREAM)));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(head in any::<[u8; 8]>(), payload in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(Header::Control { kind, flags, .. }) = Header::parse(head) {
                let _ = Control::parse(kind, flags, &payload);
            }
        }
    }
}
