//! Which protocol a client and this server speak: by the headers of its request.

use http::header::{CONNECTION, HeaderName, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::{HeaderMap, Method, Request};

use super::Session;
use super::channels::Encoding;
use super::remote_command::Version;

/// Names the protocols that a SPDY client offers, and the chosen one.
pub(super) const PROTOCOL_HEADER: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// Connections to a pod's ports.
const PORT_FORWARD: &str = "portforward.k8s.io";
/// The same, in a WebSocket whose messages carry the bytes of a SPDY connection.
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// Remote command protocols over SPDY, as Kubernetes numbers them.
const SPDY_COMMANDS: [(&str, Version); 4] = [
    ("v4.channel.k8s.io", Version::Status),
    ("v3.channel.k8s.io", Version::Resize),
    ("v2.channel.k8s.io", Version::Plain),
    ("channel.k8s.io", Version::Plain),
];
/// The same over WebSocket. The version 5 can close stdin; clients in browsers like Base64.
const WEBSOCKET_COMMANDS: [(&str, Encoding, Version); 5] = [
    ("v5.channel.k8s.io", Encoding::Binary, Version::Status),
    ("v4.channel.k8s.io", Encoding::Binary, Version::Status),
    ("v4.base64.channel.k8s.io", Encoding::Base64, Version::Status),
    ("channel.k8s.io", Encoding::Binary, Version::Plain),
    ("base64.channel.k8s.io", Encoding::Base64, Version::Plain),
];
/// Connections to a pod's ports over the channels of a WebSocket.
const WEBSOCKET_PORTS: [(&str, Encoding); 2] =
    [("v4.channel.k8s.io", Encoding::Binary), ("v4.base64.channel.k8s.io", Encoding::Base64)];

/// What is spoken.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(super) enum Wire {
    /// A remote command over SPDY.
    SpdyCommand(Version),
    /// A port-forward over SPDY.
    SpdyPorts,
    /// A remote command over WebSocket.
    WebSocketCommand(Encoding, Version),
    /// A port-forward over the channels of a WebSocket.
    WebSocketPorts(Encoding),
    /// A port-forward over SPDY over WebSocket.
    TunnelledPorts,
}

/// The choice: what is spoken, and its name as the client offered it (empty for a client of old that offers none).
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) wire: Wire,
    pub(super) protocol: &'static str,
}

/// What is spoken on one kind of transport: the answer to a client that offers nothing of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The request asks for no upgrade that is known.
    NoUpgrade,
    /// The offered protocols are not spoken; these are.
    NoProtocol(String),
}

/// Chooses for `session`.
pub(super) fn choose<T>(request: &Request<T>, session: &Session) -> Result<Choice, Refusal> {
    let headers = request.headers();
    if !has_token(headers, &CONNECTION, "upgrade") {
        return Err(Refusal::NoUpgrade);
    }
    let ports = matches!(session, Session::PortForward(_));
    if has_token(headers, &UPGRADE, "spdy/3.1") {
        return if ports { spdy_ports(headers) } else { spdy_command(headers) };
    }
    let known = tokens(headers, &SEC_WEBSOCKET_VERSION).any(|v| v == "13") && request.method() == Method::GET;
    if has_token(headers, &UPGRADE, "websocket") && known {
        return websocket(headers, ports);
    }
    Err(Refusal::NoUpgrade)
}

fn spdy_command(headers: &HeaderMap) -> Result<Choice, Refusal> {
    let mut offers = tokens(headers, &PROTOCOL_HEADER).peekable();
    if offers.peek().is_none() {
        return Ok(Choice { wire: Wire::SpdyCommand(Version::Plain), protocol: "" });
    }
    let chosen = offers.find_map(|offer| SPDY_COMMANDS.iter().find(|(name, _)| *name == offer));
    match chosen {
        Some((protocol, version)) => Ok(Choice { wire: Wire::SpdyCommand(*version), protocol }),
        None => Err(no_protocol(&SPDY_COMMANDS.map(|(name, _)| name))),
    }
}

fn spdy_ports(headers: &HeaderMap) -> Result<Choice, Refusal> {
    if !has_token(headers, &PROTOCOL_HEADER, PORT_FORWARD) {
        return Err(no_protocol(&[PORT_FORWARD]));
    }
    Ok(Choice { wire: Wire::SpdyPorts, protocol: PORT_FORWARD })
}

fn websocket(headers: &HeaderMap, ports: bool) -> Result<Choice, Refusal> {
    let spoken = |name: &str| -> Option<Choice> {
        if !ports {
            let (protocol, encoding, version) = WEBSOCKET_COMMANDS.into_iter().find(|(known, ..)| *known == name)?;
            return Some(Choice { wire: Wire::WebSocketCommand(encoding, version), protocol });
        }
        if name == TUNNEL {
            return Some(Choice { wire: Wire::TunnelledPorts, protocol: TUNNEL });
        }
        let (protocol, encoding) = WEBSOCKET_PORTS.into_iter().find(|(known, _)| *known == name)?;
        Some(Choice { wire: Wire::WebSocketPorts(encoding), protocol })
    };
    let mut offers = tokens(headers, &SEC_WEBSOCKET_PROTOCOL).peekable();
    if offers.peek().is_none() {
        let plain = Wire::WebSocketCommand(Encoding::Binary, Version::Plain);
        return Ok(Choice { wire: if ports { Wire::WebSocketPorts(Encoding::Binary) } else { plain }, protocol: "" });
    }
    offers.find_map(spoken).ok_or_else(|| match ports {
        true => no_protocol(&[TUNNEL, WEBSOCKET_PORTS[0].0, WEBSOCKET_PORTS[1].0]),
        false => no_protocol(&WEBSOCKET_COMMANDS.map(|(name, ..)| name)),
    })
}

fn no_protocol(spoken: &[&str]) -> Refusal {
    Refusal::NoProtocol(spoken.join(", "))
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> + use<'a> {
    let values = headers.get_all(name).into_iter();
    values.filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(',')).map(str::trim).filter(|t| !t.is_empty())
}

fn has_token(headers: &HeaderMap, name: &HeaderName, wanted: &str) -> bool {
    tokens(headers, name).any(|token| token.eq_ignore_ascii_case(wanted))
}

#[cfg(test)]
mod tests;
