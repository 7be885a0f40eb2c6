//! What the guest sees: virtio devices, the serial port and the power button.

pub(crate) mod virtio;
