//! CRI v1 of Kubernetes 1.38. Defined in `proto/cri.proto`.

use prost::Message;
use prost::bytes::Bytes;

mod generated {
    #![allow(missing_docs, clippy::all)]
    tonic::include_proto!("runtime.v1");
}
mod servers {
    #![allow(missing_docs, clippy::all)]
    include!(concat!(env!("OUT_DIR"), "/servers/runtime.v1.rs"));
}
pub use generated::*;
pub use servers::*;

/// A list of pods or containers as a server sends it, whole or a piece of it: each item is a [`PodSandbox`] or [`Container`] that was
/// encoded before. On the wire it is the message that it stands for (`LISTS` in `build.rs`): nested messages and bytes look alike.
#[derive(Clone, PartialEq, Message)]
pub struct EncodedList {
    /// The encoded messages.
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub items: Vec<Bytes>,
}

/// Bytes that are text as a rule, as JSON: the value of an environment variable.
mod as_text {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&String::from_utf8_lossy(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        String::deserialize(deserializer).map(String::into_bytes)
    }
}

/// An item of an [`EncodedList`].
pub fn encoded(item: &impl Message) -> Bytes {
    item.encode_to_vec().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every field is named here, so that a new one in a message that is sent as an [`EncodedList`] is noticed.
    #[test]
    fn an_encoded_list_is_read_as_what_it_stands_for() {
        let pods = vec![PodSandbox { id: "p".into(), created_at: -1, ..Default::default() }, PodSandbox::default()];
        let sent = EncodedList { items: pods.iter().map(encoded).collect() }.encode_to_vec();
        assert_eq!(ListPodSandboxResponse::decode(&*sent).unwrap(), ListPodSandboxResponse { items: pods.clone() });
        let piece = StreamPodSandboxesResponse { pod_sandboxes: pods };
        assert_eq!(StreamPodSandboxesResponse::decode(&*sent).unwrap(), piece);

        let containers = vec![Container { id: "c".into(), ..Default::default() }, Container::default()];
        let sent = EncodedList { items: containers.iter().map(encoded).collect() }.encode_to_vec();
        let whole = ListContainersResponse { containers: containers.clone() };
        assert_eq!(ListContainersResponse::decode(&*sent).unwrap(), whole);
        assert_eq!(StreamContainersResponse::decode(&*sent).unwrap(), StreamContainersResponse { containers });
        assert_eq!(ListContainersResponse::decode(&*EncodedList::default().encode_to_vec()).unwrap().containers, []);
    }
}
