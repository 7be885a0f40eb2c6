//! The registry v2 client, on reqwest: every read has a bound, credentials belong to one pull and
//! one server, and a blob that was cut off goes on where it stopped. (oci-client reads manifests of
//! any size, keeps the first credentials of a host for ever and never retries.)
//!
//! ```text
//!  [registries] ─┐                    ┌► resolve ► document  manifests, configs, HEAD ─┐
//!  hosts.toml   ─┴► place ► session ──┴► blob  layers, checked meanwhile ──────────────┴► request
//! ```
//!
//! `request` is one request with its redirects, and with a login for each server on the way.

mod blob;
mod certs_dir;
pub(crate) mod challenge;
mod credentials;
mod document;
mod fault;
pub(crate) mod hosts_file;
mod login;
pub(crate) mod manifest;
pub(crate) mod message;
mod node_login;
mod parts;
pub(crate) mod place;
mod receiver;
mod request;
mod resolve;
mod retry;
mod session;
mod signatures;
mod tls;

pub use self::credentials::Auth;
pub(crate) use self::manifest::{Descriptor, Layer, Manifest, printable};
pub use self::place::without_login;
pub(crate) use self::receiver::Download;
pub(crate) use self::session::{Registries, Session};
pub(crate) use self::signatures::SignatureBlob;
