//! What a guest may ask the node's kernel to do with a frame that it sends.

use super::{F_CSUM, F_HOST_ECN, F_HOST_TSO4, F_HOST_TSO6};

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
const NEEDS_CHECKSUM: u8 = 1;
/// Kinds of segmentation, and the bit that goes with them.
const TCP4: u8 = 1;
const TCP6: u8 = 4;
const ECN: u8 = 0x80;

/// Whether a header with these `flags` and this `gso_type` asks only for what the driver has negotiated (virtio 1.3
/// section 5.1.6.2). The tap would take more.
pub(super) fn is_negotiated(flags: u8, gso_type: u8, features: u64) -> bool {
    let has = |feature: u64| features & feature != 0;
    let checksum = flags & NEEDS_CHECKSUM == 0 || has(F_CSUM);
    let congestion = gso_type & ECN == 0 || has(F_HOST_ECN);
    let kind = match gso_type & !ECN {
        0 => true,
        TCP4 => has(F_HOST_TSO4),
        TCP6 => has(F_HOST_TSO6),
        _ => false,
    };
    checksum && congestion && kind
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_negotiated_passes() {
        let all = F_CSUM | F_HOST_TSO4 | F_HOST_TSO6 | F_HOST_ECN;
        for (flags, gso_type, wanted) in [
            (0, 0, 0),
            (1, 0, F_CSUM),
            (1, TCP4, F_CSUM | F_HOST_TSO4),
            (1, TCP6, F_CSUM | F_HOST_TSO6),
            (1, TCP4 | ECN, F_CSUM | F_HOST_TSO4 | F_HOST_ECN),
        ] {
            for features in 0..1 << 16 {
                let features = features & all;
                assert_eq!(is_negotiated(flags, gso_type, features), features & wanted == wanted);
            }
        }
        for gso_type in [2, 3, 5, 6, 0x7f, 0xff] {
            assert!(!is_negotiated(0, gso_type, u64::MAX), "{gso_type}");
        }
    }
}
