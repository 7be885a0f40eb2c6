//! Several channels in one WebSocket: a message begins with the number of its channel.
//!
//! ```text
//! binary   number (a byte), bytes
//! Base64   number (a digit), bytes in Base64; a text message, for browsers of old
//! ```

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use tokio_tungstenite::tungstenite::Message;

/// How bytes are put into messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Binary,
    Base64,
}

impl Encoding {
    /// A message of `channel`, which is a digit where bytes are in Base64.
    pub(super) fn message(self, channel: u8, bytes: &[u8]) -> Message {
        match self {
            Self::Binary => {
                let mut message = BytesMut::with_capacity(1 + bytes.len());
                message.put_u8(channel);
                message.extend_from_slice(bytes);
                Message::Binary(message.freeze())
            }
            Self::Base64 => {
                let mut text = String::with_capacity(1 + bytes.len().div_ceil(3) * 4);
                text.push(char::from(b'0'.saturating_add(channel)));
                STANDARD.encode_string(bytes, &mut text);
                Message::text(text)
            }
        }
    }

    /// Channel and bytes of a message, be it text or binary; nothing without a channel.
    ///
    /// # Errors
    /// When what should be Base64 is not.
    pub(super) fn read(self, message: &Bytes) -> Result<Option<(u8, Bytes)>, base64::DecodeError> {
        let Some(first) = message.first() else { return Ok(None) };
        let rest = message.slice(1..);
        match self {
            Self::Binary => Ok(Some((*first, rest))),
            Self::Base64 => match first.checked_sub(b'0') {
                Some(channel) => Ok(Some((channel, STANDARD.decode(&rest)?.into()))),
                None => Ok(None),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn payload(message: Message) -> Bytes {
        message.into_data()
    }

    #[test]
    fn messages_are_as_others_write_them() {
        assert_eq!(payload(Encoding::Binary.message(1, b"hi")), &b"\x01hi"[..]);
        assert_eq!(Encoding::Base64.message(1, b"hi"), Message::text("1aGk="));
        assert_eq!(Encoding::Base64.message(3, b""), Message::text("3"));
        let read = |encoding: Encoding, bytes: &'static [u8]| encoding.read(&Bytes::from_static(bytes));
        assert_eq!(read(Encoding::Base64, b"0aGk=").unwrap(), Some((0, Bytes::from_static(b"hi"))));
        assert_eq!(read(Encoding::Binary, b"").unwrap(), None);
        assert_eq!(read(Encoding::Base64, b"!").unwrap(), None);
        assert!(read(Encoding::Base64, b"0?").is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(channel in 0..5u8, bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            for encoding in [Encoding::Binary, Encoding::Base64] {
                let message = payload(encoding.message(channel, &bytes));
                prop_assert_eq!(encoding.read(&message).unwrap(), Some((channel, bytes.clone().into())));
            }
        }

        #[test]
        fn no_message_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            for encoding in [Encoding::Binary, Encoding::Base64] {
                let _ = encoding.read(&bytes.clone().into());
            }
        }
    }
}
