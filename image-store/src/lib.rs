//! An image reference in, verified read-only layer directories out.
//!
//! ```text
//!  reference ──► registry ──► manifest ──► layers, side by side:
//!                (mirrors,                  download ─► sha256 ─► queue ─► gunzip/zstd ─┬─► extract
//!                 tokens)                   └─── async task ───┘                        └─► sha256
//!                                                                   └─ threads of the store's own ─┘
//!
//!  <root>/                      0700
//!  ├── images.redb              what there is (see `store::db`): the last thing written by a pull
//!  ├── layers/<chain id>/fs/    one unpacked layer in overlayfs form (whiteouts are char devices 0:0,
//!  │                            opaque directories carry `user.overlay.opaque=y`)
//!  ├── layers/<chain id>/seal   the digest of the tree as it came (see `store::verify`)
//!  ├── layers/<chain id>/record what it is, for a daemon whose database does not know it (`store::staging`)
//!  ├── empty/fs/                the lower directory of an image without layers
//!  └── tmp/                     half-done work; opening the store deletes it, but for whole layers
//! ```
//!
//! A layer appears below `layers/` by one rename, after both of its digests were checked. When an
//! image's layers are all there, the image is recorded; a layer that no record names is kept for an
//! hour, since its pull may be tried again. No pull waits for the disk: layers are synced
//! afterwards, and until then their records hold for the running boot of the machine only. So a
//! kill at any moment leaves whole images, and so does a power cut, which may take along an image
//! that was pulled seconds before.
//!
//! The store knows no pods: who needs layers to stay takes a lease ([`Store::lease`]) under a name.

mod archive;
mod config;
mod digest;
mod error;
mod extract;
mod flow;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod image;
mod json;
mod lock;
mod pinned;
mod platform;
mod progress;
mod reference;
mod registry;
mod signature;
mod step;
mod store;

pub use cofferdam_ledger::Failing;
pub use config::{Config, Limits, Platform, RegistryConfig, Timeouts};
pub use digest::Digest;
pub use error::{StoreError, StoreResult};
pub use image::{Image, ImageConfig};
pub use progress::{LayerProgress, PullProgress};
pub use reference::{Reference, ReferenceError};
pub use registry::{Auth, without_login};
pub use store::{ExportPart, FsUsage, ImageId, Imported, LayerState, Layers, Store, VerifiedLayer};

/// The extractor alone, for fuzzing and for tests.
#[doc(hidden)]
pub mod testing {
    pub use crate::extract::{ExtractError, Extracted, complete, extract};
}
