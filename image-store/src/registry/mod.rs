//! The registry v2 client, on reqwest: every read has a bound, credentials belong to one pull, and a blob that was
//! cut off goes on where it stopped. (oci-client reads manifests of any size, keeps the first credentials of a
//! host for ever and never retries.)

mod blob;
mod challenge;
mod client;
mod credentials;
mod manifest;

pub(crate) use self::blob::Download;
pub(crate) use self::client::{Registries, Session};
pub use self::credentials::Auth;
pub(crate) use self::manifest::{Compression, Descriptor, Manifest};
