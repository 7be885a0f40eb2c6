//! A record beside what lists show of it.

use std::sync::OnceLock;

use bytes::Bytes;

/// A record, and its item in lists: encoded when a list wants it first, and anew after a change. The kubelet lists each second, and
/// hardly a record changes meanwhile.
pub(super) struct Listed<R> {
    record: R,
    /// Nothing in it: the record is not to be seen.
    item: OnceLock<Option<Bytes>>,
}

impl<R> Listed<R> {
    pub(super) fn new(record: R) -> Self {
        Self { record, item: OnceLock::new() }
    }

    pub(super) fn record(&self) -> &R {
        &self.record
    }

    /// The record, for a change.
    pub(super) fn change(&mut self) -> &mut R {
        self.item.take();
        &mut self.record
    }

    /// The encoded item, which `encode` makes of the record.
    pub(super) fn item(&self, encode: impl FnOnce(&R) -> Option<Bytes>) -> Option<Bytes> {
        self.item.get_or_init(|| encode(&self.record)).clone()
    }
}
