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
            match down(read, &output).await {
                Ok(End::Closed) => Ok(()),
                // Nothing can be sent to it any more either.
                Ok(End::Reset) => Err(()),
                Err(error) => {
                    let why = format!("the connection to port {port} broke: {error}");
                    let _ = output.send(Err(Error::precondition(why).into())).await;
                    Err(())
                }
            }
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

/// How a program ended a connection.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// It has nothing more to say.
    Closed,
    /// It closed without reading all that it was sent, or cut the connection off: an end like the other one to the caller. Clients of
    /// port-forward take an error of one connection for the end of all of them.
    Reset,
}

/// What the program says, and that it has ended.
async fn down(mut from: OwnedReadHalf, output: &Output) -> io::Result<End> {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
    loop {
        let mut buffer = vec![0u8; CHUNK];
        let (n, end) = match from.read(&mut buffer).await {
            Ok(n) => (n, End::Closed),
            Err(e) if matches!(e.kind(), ConnectionReset | ConnectionAborted | BrokenPipe) => (0, End::Reset),
            Err(e) => return Err(e),
        };
        buffer.truncate(n);
        buffer.shrink_to_fit();
        let kind = if n == 0 { Out::Closed(true) } else { Out::Data(buffer) };
        if output.send(Ok(PortForwardOutput { kind: Some(kind) })).await.is_err() || n == 0 {
            return Ok(end);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// What `down` says of a connection on which the program did `act`.
    async fn said(act: impl FnOnce(&TcpStream)) -> (io::Result<End>, Vec<PortForwardOutput>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut program, _) = listener.accept().await.unwrap();
        program.write_all(b"said").await.unwrap();
        act(&program);
        drop(program);
        let (output, mut sent) = mpsc::channel(8);
        let (read, _write) = ours.into_split();
        let end = down(read, &output).await;
        drop(output);
        let mut all = Vec::new();
        while let Some(message) = sent.recv().await {
            all.push(message.unwrap());
        }
        (end, all)
    }

    #[tokio::test]
    async fn a_reset_is_an_end_and_no_error() {
        let kinds = |all: &[PortForwardOutput]| -> Vec<Out> { all.iter().filter_map(|m| m.kind.clone()).collect() };
        let (end, all) = said(|_| {}).await;
        assert_eq!(end.unwrap(), End::Closed);
        assert_eq!(kinds(&all), [Out::Data(b"said".to_vec()), Out::Closed(true)]);
        // Without lingering, closing sends a reset, which may overtake what was said.
        let (end, all) = said(|program| {
            rustix::net::sockopt::set_socket_linger(program, Some(Duration::ZERO)).unwrap();
        })
        .await;
        assert_eq!(end.unwrap(), End::Reset);
        assert_eq!(kinds(&all).last(), Some(&Out::Closed(true)));
    }
}
