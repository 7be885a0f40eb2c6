//! SPDY/3 header blocks: name/value pairs, deflated with a preset dictionary.
//!
//! All header blocks of one direction share one zlib context.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};

/// Longest inflated header block, bytes.
const MAX_BLOCK: usize = 16 * 1024;

/// Header names whose length-prefixed forms begin the dictionary (SPDY draft 3, §2.6.10.1).
const NAMES: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges \
    age allow authorization cache-control connection content-base content-encoding content-language content-length \
    content-location content-md5 content-range content-type date etag expect expires from host if-match if-modified-since \
    if-none-match if-range if-unmodified-since last-modified location max-forwards pragma proxy-authenticate \
    proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade user-agent vary via warning \
    www-authenticate method get status";
const MORE_NAMES: [&str; 8] = ["200 OK", "version", "HTTP/1.1", "url", "public", "set-cookie", "keep-alive", "origin"];
const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
    203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden\
    404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable\
    Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT\
    chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,\
    publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

fn dictionary() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1423);
    for name in NAMES.split_whitespace().chain(MORE_NAMES) {
        bytes.extend_from_slice(&u32::try_from(name.len()).unwrap_or(0).to_be_bytes());
        bytes.extend_from_slice(name.as_bytes());
    }
    bytes.extend_from_slice(TAIL.as_bytes());
    bytes
}

/// Why a header block cannot be read.
#[derive(Debug, thiserror::Error)]
pub(in crate::streaming) enum HeaderError {
    #[error("header block is not a deflate stream with the SPDY/3 dictionary")]
    Inflate(#[source] flate2::DecompressError),
    #[error("header block inflates to more than {MAX_BLOCK} bytes")]
    TooLong,
    #[error("header block is cut off or not text")]
    Malformed,
}

/// Inflates the peer's header blocks, in order.
pub(super) struct Decoder {
    inflate: Decompress,
    dictionary: Vec<u8>,
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self { inflate: Decompress::new(true), dictionary: dictionary() }
    }

    /// Name/value pairs of one block.
    pub(super) fn decode(&mut self, block: &[u8]) -> Result<Vec<(String, String)>, HeaderError> {
        pairs(&self.inflate(block)?).ok_or(HeaderError::Malformed)
    }

    fn inflate(&mut self, block: &[u8]) -> Result<Vec<u8>, HeaderError> {
        let start = self.inflate.total_in();
        let mut out = Vec::with_capacity(1024);
        loop {
            let used = usize::try_from(self.inflate.total_in() - start).map_err(|_| HeaderError::TooLong)?;
            let before = (used, out.len());
            let rest = block.get(used..).unwrap_or_default();
            if let Err(error) = self.inflate.decompress_vec(rest, &mut out, FlushDecompress::Sync) {
                if error.needs_dictionary().is_none() {
                    return Err(HeaderError::Inflate(error));
                }
                self.inflate.set_dictionary(&self.dictionary).map_err(HeaderError::Inflate)?;
                continue;
            }
            let used = usize::try_from(self.inflate.total_in() - start).map_err(|_| HeaderError::TooLong)?;
            if out.len() > MAX_BLOCK {
                return Err(HeaderError::TooLong);
            }
            let full = out.len() == out.capacity();
            if used >= block.len() && !full {
                return Ok(out);
            }
            if !full && before == (used, out.len()) {
                return Err(HeaderError::Malformed);
            }
            out.reserve(1024);
        }
    }
}

fn pairs(mut block: &[u8]) -> Option<Vec<(String, String)>> {
    fn word(block: &mut &[u8]) -> Option<usize> {
        let (head, rest) = block.split_first_chunk::<4>()?;
        *block = rest;
        usize::try_from(u32::from_be_bytes(*head)).ok()
    }
    fn text(block: &mut &[u8]) -> Option<String> {
        let length = word(block)?;
        let (head, rest) = block.split_at_checked(length)?;
        *block = rest;
        String::from_utf8(head.to_vec()).ok()
    }
    let count = word(&mut block)?;
    let mut found = Vec::new();
    for _ in 0..count {
        found.push((text(&mut block)?, text(&mut block)?));
    }
    Some(found)
}

/// Deflates our header blocks.
pub(super) struct Encoder {
    deflate: Compress,
}

impl Encoder {
    pub(super) fn new() -> Self {
        let mut deflate = Compress::new(Compression::fast(), true);
        // Without the dictionary the stream is still valid zlib, which every inflater takes.
        let _ = deflate.set_dictionary(&dictionary());
        Self { deflate }
    }

    /// A block without any header.
    pub(super) fn empty_block(&mut self) -> Vec<u8> {
        self.encode(&[])
    }

    fn encode(&mut self, headers: &[(&str, &str)]) -> Vec<u8> {
        let mut plain = u32::try_from(headers.len()).unwrap_or(0).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend_from_slice(&u32::try_from(text.len()).unwrap_or(0).to_be_bytes());
            plain.extend_from_slice(text.as_bytes());
        }
        let mut out = Vec::with_capacity(plain.len() + 64);
        // Room for all of it was reserved, so one call flushes it.
        let _ = self.deflate.compress_vec(&plain, &mut out, FlushCompress::Sync);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_dictionary_is_the_specification_s() {
        let bytes = dictionary();
        assert_eq!(bytes.len(), 1423);
        let (mut a, mut b) = (1u32, 0u32);
        for byte in bytes {
            a = (a + u32::from(byte)) % 65521;
            b = (b + a) % 65521;
        }
        assert_eq!(b << 16 | a, 0xe3c6_a7c2);
    }

    #[test]
    fn blocks_share_one_context() {
        let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
        for name in ["error", "stdin", "stdout"] {
            let block = encoder.encode(&[("streamtype", name)]);
            assert_eq!(decoder.decode(&block).unwrap(), [("streamtype".to_owned(), name.to_owned())]);
        }
        assert!(decoder.decode(&encoder.empty_block()).unwrap().is_empty());
    }

    #[test]
    fn a_bomb_is_refused() {
        let big = "x".repeat(MAX_BLOCK * 4);
        let mut deflate = Compress::new(Compression::best(), true);
        deflate.set_dictionary(&dictionary()).unwrap();
        let mut out = Vec::with_capacity(MAX_BLOCK);
        deflate.compress_vec(big.as_bytes(), &mut out, FlushCompress::Sync).unwrap();
        assert!(matches!(Decoder::new().decode(&out), Err(HeaderError::TooLong)));
    }

    proptest! {
        #[test]
        fn no_block_panics(block in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = Decoder::new().decode(&block);
            let _ = pairs(&block);
        }
    }
}
