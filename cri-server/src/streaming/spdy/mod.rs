//! A SPDY/3.1 server connection, as far as Kubernetes' clients use it.

mod frame;
mod headers;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};

use frame::{Control, FLAG_FIN, Header, MAX_CONTROL};

/// Payload bytes handed on at a time.
const CHUNK: usize = 32 * 1024;

/// What the peer did.
#[derive(Debug)]
pub(super) enum Event {
    /// It opens a stream of its own; answer with [`Writer::accept`] or [`Writer::refuse`].
    Opened { stream: u32, headers: Vec<(String, String)>, fin: bool },
    /// Bytes on a stream, possibly none; `fin` ends its direction and comes without bytes.
    Data { stream: u32, bytes: Bytes, fin: bool },
    /// It gives a stream up.
    Reset { stream: u32 },
    /// Answer with [`Writer::pong`].
    Ping { id: u32 },
    /// It will close the connection.
    GoAway,
}

/// Why a connection ended badly.
#[derive(Debug, thiserror::Error)]
pub(super) enum SpdyError {
    #[error("the connection failed")]
    Io(#[from] std::io::Error),
    #[error("the peer does not speak SPDY/3.1")]
    Frame(#[from] frame::FrameError),
    #[error("the peer's headers cannot be read")]
    Headers(#[from] headers::HeaderError),
}

/// The value of a header of a stream that the peer opened; names are lower case in SPDY.
pub(super) fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

/// The peer's frames, as events.
pub(super) struct Reader<T> {
    io: ReadHalf<T>,
    headers: headers::Decoder,
    data: Option<(u32, bool, usize)>,
}

/// Our frames.
pub(super) struct Writer<T> {
    io: WriteHalf<T>,
    headers: headers::Encoder,
    unsent: BytesMut,
    last: u32,
}

/// Takes an upgraded connection apart.
pub(super) fn split<T: AsyncRead + AsyncWrite>(io: T) -> (Reader<T>, Writer<T>) {
    let (read, write) = tokio::io::split(io);
    (
        Reader { io: read, headers: headers::Decoder::new(), data: None },
        Writer { io: write, headers: headers::Encoder::new(), unsent: BytesMut::new(), last: 0 },
    )
}

impl<T: AsyncRead + AsyncWrite> Reader<T> {
    /// The next event; `None` when the peer has closed the connection between frames. Not cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Option<Event>, SpdyError> {
        loop {
            if let Some((stream, fin, left)) = self.data.take() {
                return self.payload(stream, fin, left).await.map(Some);
            }
            let mut head = [0u8; 8];
            if self.io.read(&mut head[..1]).await? == 0 {
                return Ok(None);
            }
            self.io.read_exact(&mut head[1..]).await?;
            match Header::parse(head)? {
                Header::Data { stream, flags, length } => self.data = Some((stream, flags & FLAG_FIN != 0, length)),
                Header::Control { kind, flags, length } => {
                    debug_assert!(length <= MAX_CONTROL);
                    let mut payload = vec![0; length];
                    self.io.read_exact(&mut payload).await?;
                    if let Some(event) = self.control(kind, flags, &payload)? {
                        return Ok(Some(event));
                    }
                }
            }
        }
    }

    async fn payload(&mut self, stream: u32, fin: bool, left: usize) -> Result<Event, SpdyError> {
        let mut bytes = BytesMut::zeroed(left.min(CHUNK));
        self.io.read_exact(&mut bytes).await?;
        let left = left - bytes.len();
        let last = fin && left == 0 && bytes.is_empty();
        if left > 0 || (fin && !last) {
            self.data = Some((stream, fin, left));
        }
        Ok(Event::Data { stream, bytes: bytes.freeze(), fin: last })
    }

    fn control(&mut self, kind: u16, flags: u8, payload: &[u8]) -> Result<Option<Event>, SpdyError> {
        Ok(match Control::parse(kind, flags, payload)? {
            Control::SynStream { stream, fin, headers } => {
                Some(Event::Opened { stream, headers: self.headers.decode(headers)?, fin })
            }
            Control::RstStream { stream } => Some(Event::Reset { stream }),
            Control::Ping { id } => Some(Event::Ping { id }),
            Control::GoAway => Some(Event::GoAway),
            Control::Ignored => None,
        })
    }
}

impl<T: AsyncRead + AsyncWrite> Writer<T> {
    /// Accepts a stream that the peer opened.
    pub(super) async fn accept(&mut self, stream: u32) -> std::io::Result<()> {
        self.last = self.last.max(stream);
        self.flush().await?;
        let block = self.headers.empty_block();
        self.send(&[&frame::syn_reply(stream, &block)]).await
    }

    /// Refuses a stream that the peer opened.
    pub(super) async fn refuse(&mut self, stream: u32) -> std::io::Result<()> {
        self.send(&[&frame::rst_stream(stream)]).await
    }

    /// Answers a ping.
    pub(super) async fn pong(&mut self, id: u32) -> std::io::Result<()> {
        self.send(&[&frame::ping(id)]).await
    }

    /// Sends bytes; `fin` ends our direction of the stream.
    pub(super) async fn data(&mut self, stream: u32, bytes: &[u8], fin: bool) -> std::io::Result<()> {
        let mut chunks = bytes.chunks(CHUNK).peekable();
        if chunks.peek().is_none() && fin {
            return self.send(&[&frame::data_header(stream, FLAG_FIN, 0)]).await;
        }
        while let Some(chunk) = chunks.next() {
            let flags = if fin && chunks.peek().is_none() { FLAG_FIN } else { 0 };
            self.send(&[&frame::data_header(stream, flags, chunk.len()), chunk]).await?;
        }
        Ok(())
    }

    /// Says good-bye and closes our half of the connection.
    pub(super) async fn close(&mut self) -> std::io::Result<()> {
        self.send(&[&frame::go_away(self.last)]).await?;
        self.io.shutdown().await
    }

    /// Sends one frame. A caller that gives up in the middle leaves the rest to the next one, so frames are always whole.
    async fn send(&mut self, parts: &[&[u8]]) -> std::io::Result<()> {
        self.flush().await?;
        for part in parts {
            self.unsent.extend_from_slice(part);
        }
        self.flush().await
    }

    async fn flush(&mut self) -> std::io::Result<()> {
        while !self.unsent.is_empty() {
            if self.io.write_buf(&mut self.unsent).await? == 0 {
                return Err(std::io::ErrorKind::WriteZero.into());
            }
        }
        self.io.flush().await
    }
}
