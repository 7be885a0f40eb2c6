//! Port-forward: a connection to a TCP port of the pod's loopback.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use cofferdam_proto::agent::port_forward_input::Kind as In;
use cofferdam_proto::agent::port_forward_output::Kind as Out;
use cofferdam_proto::agent::{PortForwardInput, PortForwardOutput};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use crate::error::{Error, Kind, Result};

/// Where a program of the pod may listen, in the order in which it is tried.
const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
/// How long a program with a full queue may take to accept.
const CONNECT: Duration = Duration::from_secs(10);
/// Most that is read at once.
const CHUNK: usize = 32 * 1024;

type Output = mpsc::Sender<Result<PortForwardOutput, Status>>;

/// Connects to a port.
///
/// # Errors
/// When nothing answers on it.
pub async fn dial(port: u32) -> Result<TcpStream> {
    let number = u16::try_from(port).ok().filter(|p| *p != 0);
    let number = number.ok_or_else(|| Error::invalid(format!("there is no TCP port {port}")))?;
    let mut first = None;
    for address in LOOPBACK {
        let connecting = tokio::time::timeout(CONNECT, TcpStream::connect(SocketAddr::new(address, number)));
        match connecting.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(stream) => {
                // Small pieces are a user's typing as often as not.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Err(error) => first = first.or(Some(error)),
        }
    }
    Err(match first {
        Some(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            Error::precondition(format!("connection refused to port {port}: nothing listens on 127.0.0.1 or ::1"))
        }
        Some(e) => Error::precondition(format!("cannot connect to port {port} of 127.0.0.1 or ::1: {e}")),
        None => Error::new(Kind::Internal, "there is no loopback address"),
    })
}

/// Carries bytes both ways until both directions have ended or the caller has gone.
pub async fn serve(stream: TcpStream, port: u32, input: Streaming<PortForwardInput>, output: Output) {
    let (read, write) = stream.into_split();
    let both = async {
        let up = async { if up(input, write).await { Ok(()) } else { Err(()) } };
        let down = async {
            if let Err(error) = down(read, &output).await {
                let why = format!("the connection to port {port} broke: {error}");
                let _ = output.send(Err(Error::precondition(why).into())).await;
                return Err(());
            }
            Ok(())
        };
        let _ = tokio::try_join!(up, down);
    };
    tokio::select! {
        () = both => {}
        () = output.closed() => {}
    }
}

/// What the caller sends; false when it has gone.
async fn up(mut input: Streaming<PortForwardInput>, mut to: OwnedWriteHalf) -> bool {
    let mut open = true;
    loop {
        match input.message().await {
            Ok(Some(PortForwardInput { kind: Some(In::Data(bytes)) })) => {
                // The program may have stopped to read and still have something to say.
                open = open && to.write_all(&bytes).await.is_ok();
            }
            Ok(Some(_)) => {}
            Ok(None) => {
                let _ = to.shutdown().await;
                return true;
            }
            Err(_) => return false,
        }
    }
}

async fn down(mut from: OwnedReadHalf, output: &Output) -> io::Result<()> {
    loop {
        let mut buffer = vec![0u8; CHUNK];
        let n = from.read(&mut buffer).await?;
        buffer.truncate(n);
        buffer.shrink_to_fit();
        let kind = if n == 0 { Out::Closed(true) } else { Out::Data(buffer) };
        if output.send(Ok(PortForwardOutput { kind: Some(kind) })).await.is_err() || n == 0 {
            return Ok(());
        }
    }
}
