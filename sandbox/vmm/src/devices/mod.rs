//! What the guest sees: virtio devices and the serial port.

pub(crate) mod serial;
pub(crate) mod virtio;
