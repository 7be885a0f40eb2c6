//! A registry with one image of one layer, which wants a password.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use cofferdam_image_store::{Digest, RegistryConfig};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

type Content = HashMap<String, (&'static str, Bytes)>;

/// Ends with the test's runtime.
pub(super) struct Registry {
    pub(super) address: String,
    layer: Bytes,
}

impl Registry {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let layer = layer();
        let content = Arc::new(content(&layer));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let content = content.clone();
                let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                    let response = answer(&content, &request);
                    async move { Ok::<_, Infallible>(response) }
                });
                let http = hyper::server::conn::http1::Builder::new();
                tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { address, layer }
    }

    /// Its image's reference.
    pub(super) fn image(&self) -> String {
        format!("{}/a/image:1", self.address)
    }

    pub(super) fn layer_bytes(&self) -> usize {
        self.layer.len()
    }

    pub(super) fn plain_http(&self) -> RegistryConfig {
        RegistryConfig { plain_http: true, ..RegistryConfig::default() }
    }
}

fn layer() -> Bytes {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o644);
    tar.append_data(&mut header, "hello", &b"hello"[..]).unwrap();
    tar.into_inner().unwrap().into()
}

fn content(layer: &Bytes) -> Content {
    let digest = |bytes: &Bytes| Digest::of(bytes).to_string();
    let config = Bytes::from(
        serde_json::json!({
            "architecture": "amd64", "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": [digest(layer)]},
        })
        .to_string(),
    );
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": manifest_type,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(&config), "size": config.len()},
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest(layer), "size": layer.len()
        }],
    });
    let blob = "application/octet-stream";
    HashMap::from([
        ("/v2/a/image/manifests/1".to_owned(), (manifest_type, manifest.to_string().into())),
        (format!("/v2/a/image/blobs/{}", digest(&config)), (blob, config)),
        (format!("/v2/a/image/blobs/{}", digest(layer)), (blob, layer.clone())),
    ])
}

fn answer(content: &Content, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let respond = Response::builder();
    if !request.headers().contains_key("authorization") {
        let respond = respond.status(StatusCode::UNAUTHORIZED).header("www-authenticate", "Basic realm=\"here\"");
        return respond.body(Full::default()).unwrap();
    }
    match content.get(request.uri().path()) {
        Some((kind, bytes)) => respond.header("content-type", *kind).body(Full::from(bytes.clone())).unwrap(),
        None => respond.status(StatusCode::NOT_FOUND).body(Full::default()).unwrap(),
    }
}
