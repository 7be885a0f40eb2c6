//! CRI v1 of Kubernetes 1.37. Defined in `proto/cri.proto`.

mod generated {
    #![allow(missing_docs, clippy::all)]
    tonic::include_proto!("runtime.v1");
}
pub use generated::*;
