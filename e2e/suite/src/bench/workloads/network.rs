//! The servers on the node that the pods talk to, and what the kernels say of the network's health.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::ops::{AddAssign, Sub};

use crate::failure::{Doing, Failure, Outcome};

/// MiB that go over the network each way.
pub(super) const SENT_MIB: usize = 64;

/// Ports of the node, on all its addresses. The servers end with the program.
pub(super) struct Servers {
    /// Reads to the end, then writes one byte.
    pub(super) sink: u16,
    /// Writes [`SENT_MIB`].
    pub(super) source: u16,
    /// Writes what it reads, a byte at a time.
    pub(super) echo: u16,
}

impl Servers {
    pub(super) fn start() -> Outcome<Self> {
        Ok(Self { sink: serve(sink)?, source: serve(source)?, echo: serve(echo)? })
    }
}

/// Serves one connection after the other; answers the port.
fn serve(connection: fn(TcpStream) -> std::io::Result<()>) -> Outcome<u16> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).doing("listen for the pods")?;
    let port = listener.local_addr().doing("learn a server's port")?.port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            if let Err(error) = stream.and_then(connection) {
                println!("bench: a connection of a pod's: {error}");
            }
        }
    });
    Ok(port)
}

fn sink(mut stream: TcpStream) -> std::io::Result<()> {
    let mut block = vec![0; 256 << 10];
    while stream.read(&mut block)? > 0 {}
    stream.write_all(&[1])
}

fn source(mut stream: TcpStream) -> std::io::Result<()> {
    let block = vec![0; 1 << 20];
    for _ in 0..SENT_MIB {
        stream.write_all(&block)?;
    }
    stream.shutdown(Shutdown::Write)
}

fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut byte = [0];
    while stream.read(&mut byte)? > 0 {
        stream.write_all(&byte)?;
    }
    Ok(())
}

/// What went wrong on a network.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub(super) struct Errors {
    /// Segments that TCP sent again, by the node or by the pod.
    pub(super) retransmitted: u64,
    /// Packets that the pod's network card had errors with or dropped on their way in.
    pub(super) not_received: u64,
}

impl AddAssign for Errors {
    fn add_assign(&mut self, more: Self) {
        self.retransmitted += more.retransmitted;
        self.not_received += more.not_received;
    }
}

impl Sub for Errors {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            retransmitted: self.retransmitted.saturating_sub(earlier.retransmitted),
            not_received: self.not_received.saturating_sub(earlier.not_received),
        }
    }
}

impl Errors {
    /// From `/proc/net/snmp` of the node and of a pod, and the pod's `/proc/net/dev`.
    pub(super) fn read(node_snmp: &str, pod_snmp: &str, dev: &str) -> Outcome<Self> {
        Ok(Self {
            retransmitted: retransmitted(node_snmp)? + retransmitted(pod_snmp)?,
            not_received: not_received(dev)?,
        })
    }
}

/// RetransSegs of `/proc/net/snmp`: a line of names, and one of values.
fn retransmitted(snmp: &str) -> Outcome<u64> {
    let mut lines = snmp.lines().filter_map(|line| line.strip_prefix("Tcp:")).map(str::split_whitespace);
    let value = lines
        .next()
        .zip(lines.next())
        .and_then(|(mut names, mut values)| values.nth(names.position(|name| name == "RetransSegs")?)?.parse().ok());
    value.ok_or_else(|| Failure(format!("there are no RetransSegs in {snmp}")))
}

/// Errors and drops of eth0 on the way in (`/proc/net/dev`, fields 3 and 4 of a card's line).
fn not_received(dev: &str) -> Outcome<u64> {
    let card = dev.lines().find_map(|line| line.trim().strip_prefix("eth0:"));
    let fields: Vec<u64> = card.unwrap_or("").split_whitespace().filter_map(|field| field.parse().ok()).collect();
    match fields[..] {
        [_, _, errors, drops, ..] => Ok(errors + drops),
        _ => Err(Failure(format!("there is no eth0 in {dev}"))),
    }
}

/// The gateway of the default route, of `/proc/net/route` (numbers of the machine's byte order).
pub(super) fn default_gateway(route: &str) -> Outcome<Ipv4Addr> {
    let gateway = route.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let number = |field: usize| u32::from_str_radix(fields.get(field)?, 16).ok();
        let (destination, gateway, mask) = (number(1)?, number(2)?, number(7)?);
        (destination == 0 && mask == 0 && gateway != 0).then(|| Ipv4Addr::from(gateway.to_ne_bytes()))
    });
    gateway.ok_or_else(|| Failure(format!("there is no default gateway in {route}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTE: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
        eth0\t00000000\t0100580A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
        eth0\t0000580A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n";
    const SNMP: &str = "Ip: Forwarding\nIp: 1\n\
        Tcp: RtoAlgorithm MaxConn InSegs OutSegs RetransSegs InErrs\nTcp: 1 -1 30 40 7 0\n";
    const DEV: &str = "Inter-|   Receive                                                |  Transmit\n\
        \x20face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs\n\
        \x20   lo: 0 0 9 9 0 0 0 0 0 0 0 0 0 0 0 0\n\
        \x20 eth0: 1000 20 1 2 0 0 0 0 3000 40 5 6 0 0 0 0\n";

    #[test]
    fn the_default_gateway_is_found() {
        assert_eq!(default_gateway(ROUTE).unwrap(), Ipv4Addr::new(10, 88, 0, 1));
        assert!(default_gateway("Iface\tDestination\n").is_err());
    }

    #[test]
    fn errors_are_read_and_subtracted() {
        let errors = Errors::read(SNMP, SNMP, DEV).unwrap();
        assert_eq!(errors, Errors { retransmitted: 14, not_received: 3 });
        assert_eq!(errors - errors, Errors::default());
        assert!(Errors::read("Tcp:", SNMP, DEV).is_err());
        assert!(Errors::read(SNMP, SNMP, "lo: 0 0 0 0").is_err());
    }

    #[test]
    fn the_servers_answer() {
        let servers = Servers::start().unwrap();
        let connect = |port| TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        let mut echo = connect(servers.echo);
        let mut byte = [0];
        echo.write_all(&[7]).unwrap();
        echo.read_exact(&mut byte).unwrap();
        assert_eq!(byte, [7]);
        let mut sink = connect(servers.sink);
        sink.write_all(&[0; 1000]).unwrap();
        sink.shutdown(Shutdown::Write).unwrap();
        sink.read_exact(&mut byte).unwrap();
        assert_eq!(std::io::copy(&mut connect(servers.source), &mut std::io::sink()).unwrap(), (SENT_MIB as u64) << 20);
    }
}
