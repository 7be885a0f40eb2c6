//! A registry that misbehaves on purpose, on 127.0.0.1:5001, in front of the real one on port 5000.
//!
//! The first path component of a repository says how: `corrupt/` flips a byte of each layer, `cut/` hangs up in the
//! middle of one, `climb/` serves an image whose layer climbs out of its root. What lies behind it is the real registry.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::failure::{Doing, Outcome};

/// Where it listens.
pub(crate) const ADDRESS: &str = "127.0.0.1:5001";
const REAL: &str = "127.0.0.1:5000";

/// Starts it for the rest of the process.
pub(crate) fn start() -> Outcome {
    let listener = TcpListener::bind(ADDRESS).doing("listen on 127.0.0.1:5001")?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                // A client that hangs up is part of the tests.
                let _ = serve(stream);
            });
        }
    });
    Ok(())
}

fn serve(mut client: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut accept = String::new();
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header)? == 0 || header == "\r\n" {
            break;
        }
        if header.to_ascii_lowercase().starts_with("accept:") {
            accept.push_str(&header);
        }
    }
    let mut words = request.split_whitespace();
    let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let Some((mode, rest)) = path.strip_prefix("/v2/").and_then(|p| p.split_once('/')) else {
        return client.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}");
    };
    if mode == "climb" {
        return climb(&mut client, method, rest);
    }
    let mut real = TcpStream::connect(REAL)?;
    write!(real, "{method} /v2/{rest} HTTP/1.0\r\nHost: {REAL}\r\n{accept}\r\n")?;
    let mut answer = Vec::new();
    real.read_to_end(&mut answer)?;
    let body = answer.windows(4).position(|w| w == b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
    let is_layer = rest.contains("/blobs/") && answer.len() - body > 4096;
    if mode == "cut" && is_layer {
        answer.truncate(body + (answer.len() - body) / 2);
    }
    if mode == "corrupt" && is_layer {
        let last = answer.len() - 1;
        answer[last] ^= 0x55;
    }
    client.write_all(&answer)
}

/// A tar of one file with this name.
fn tar(name: &str, text: &[u8]) -> Vec<u8> {
    let mut header = [0u8; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..108].copy_from_slice(b"0000644\0");
    header[108..116].copy_from_slice(b"0000000\0");
    header[116..124].copy_from_slice(b"0000000\0");
    header[124..136].copy_from_slice(format!("{:011o}\0", text.len()).as_bytes());
    header[136..148].copy_from_slice(b"00000000000\0");
    header[148..156].copy_from_slice(b"        ");
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut tar = header.to_vec();
    tar.extend_from_slice(text);
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    tar
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

fn climb(client: &mut TcpStream, method: &str, path: &str) -> std::io::Result<()> {
    let layer = tar("../../../../../../../../climbed-out", b"I am out\n");
    let config = json!({"architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]}})
    .to_string()
    .into_bytes();
    let part = |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len()});
    let media = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({"schemaVersion": 2, "mediaType": media,
        "config": part("application/vnd.oci.image.config.v1+json", &config),
        "layers": [part("application/vnd.oci.image.layer.v1.tar", &layer)]})
    .to_string()
    .into_bytes();
    let (body, kind) = match path {
        _ if path.ends_with(&digest(&layer)) => (layer, "application/octet-stream"),
        _ if path.ends_with(&digest(&config)) => (config, "application/octet-stream"),
        _ if path.contains("/manifests/") => (manifest, media),
        _ => (Vec::new(), "text/plain"),
    };
    let status = if body.is_empty() { "404 Not Found" } else { "200 OK" };
    write!(
        client,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nDocker-Content-Digest: {}\r\nConnection: close\r\n\r\n",
        body.len(),
        digest(&body)
    )?;
    if method == "HEAD" { Ok(()) } else { client.write_all(&body) }
}
