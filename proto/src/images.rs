//! What `cofferdam images` asks the daemon for and CRI has no call for. Documented in
//! `proto/images.proto`.

mod generated {
    #![allow(missing_docs, clippy::all)]
    tonic::include_proto!("cofferdam.v1");
}
pub use generated::*;
