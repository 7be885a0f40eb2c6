use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use tonic::Status;

use super::super::{CommandSession, CommandTarget, PortConnection, PortSession, PortTarget, Stdio};
use super::*;

struct Nothing;

impl CommandTarget for Nothing {
    fn start(&self) -> BoxFuture<'static, Result<Stdio, Status>> {
        async { Err(Status::internal("nothing")) }.boxed()
    }
}

impl PortTarget for Nothing {
    fn dial(&self, _: u16) -> BoxFuture<'static, Result<PortConnection, Status>> {
        async { Err(Status::internal("nothing")) }.boxed()
    }
    fn ended(&self) -> BoxFuture<'static, ()> {
        std::future::pending().boxed()
    }
}

fn exec() -> Session {
    Session::Exec(CommandSession {
        container_id: "c".into(),
        tty: false,
        stdin: false,
        stdout: true,
        stderr: false,
        target: Arc::new(Nothing),
    })
}

fn ports() -> Session {
    Session::PortForward(PortSession { pod_id: "p".into(), ports: vec![80], target: Arc::new(Nothing) })
}

fn request(headers: &[(&str, &str)]) -> Request<()> {
    let mut builder = Request::get("/");
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(()).unwrap()
}

const SPDY: [(&str, &str); 2] = [("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1")];
const WEBSOCKET: [(&str, &str); 3] =
    [("Connection", "keep-alive, Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")];

fn spdy(offers: &[&str], session: &Session) -> Result<Choice, Refusal> {
    let mut headers = SPDY.to_vec();
    headers.extend(offers.iter().map(|offer| ("X-Stream-Protocol-Version", *offer)));
    choose(&request(&headers), session)
}

fn websocket(offer: &str, session: &Session) -> Result<Choice, Refusal> {
    let mut headers = WEBSOCKET.to_vec();
    headers.push(("Sec-WebSocket-Protocol", offer));
    choose(&request(&headers), session)
}

#[test]
fn the_client_s_first_known_offer_is_taken() {
    let command = |version, protocol| Ok(Choice { wire: Wire::SpdyCommand(version), protocol });
    let kubectl =
        ["v5.channel.k8s.io", "v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];
    assert_eq!(spdy(&kubectl, &exec()), command(Version::Status, "v4.channel.k8s.io"));
    assert_eq!(spdy(&["v3.channel.k8s.io, v4.channel.k8s.io"], &exec()), command(Version::Resize, "v3.channel.k8s.io"));
    assert_eq!(spdy(&["channel.k8s.io"], &exec()), command(Version::Plain, "channel.k8s.io"));
    assert_eq!(spdy(&[], &exec()), command(Version::Plain, ""));
    let tunnel = Choice { wire: Wire::TunnelledPorts, protocol: TUNNEL };
    assert_eq!(websocket("SPDY/3.1+portforward.k8s.io", &ports()), Ok(tunnel));
    assert_eq!(spdy(&["portforward.k8s.io"], &ports()), Ok(Choice { wire: Wire::SpdyPorts, protocol: PORT_FORWARD }));
    let over = |encoding, version, protocol| Ok(Choice { wire: Wire::WebSocketCommand(encoding, version), protocol });
    let v5 = over(Encoding::Binary, Version::Status, "v5.channel.k8s.io");
    assert_eq!(websocket("x, v5.channel.k8s.io,v4.channel.k8s.io", &exec()), v5);
    let browser = over(Encoding::Base64, Version::Status, "v4.base64.channel.k8s.io");
    assert_eq!(websocket("v4.base64.channel.k8s.io", &exec()), browser);
    let old = over(Encoding::Base64, Version::Plain, "base64.channel.k8s.io");
    assert_eq!(websocket("base64.channel.k8s.io", &exec()), old);
    assert_eq!(websocket("channel.k8s.io", &exec()), over(Encoding::Binary, Version::Plain, "channel.k8s.io"));
    assert_eq!(choose(&request(&WEBSOCKET), &exec()), over(Encoding::Binary, Version::Plain, ""));
    let python = Choice { wire: Wire::WebSocketPorts(Encoding::Binary), protocol: "v4.channel.k8s.io" };
    assert_eq!(websocket("v4.channel.k8s.io", &ports()), Ok(python));
}

#[test]
fn others_are_told_what_is_spoken() {
    for refused in [spdy(&["v9"], &exec()), spdy(&["v4.channel.k8s.io"], &ports()), websocket("v1", &exec())] {
        assert!(matches!(&refused, Err(Refusal::NoProtocol(spoken)) if spoken.contains("k8s.io")), "{refused:?}");
    }
    assert_eq!(choose(&request(&[]), &exec()), Err(Refusal::NoUpgrade));
    assert_eq!(choose(&request(&[("Connection", "Upgrade"), ("Upgrade", "h2c")]), &exec()), Err(Refusal::NoUpgrade));
    assert_eq!(choose(&request(&WEBSOCKET[..2]), &exec()), Err(Refusal::NoUpgrade));
}
