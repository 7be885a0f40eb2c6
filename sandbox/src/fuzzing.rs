//! What the targets of `fuzz/` reach of the sandbox. Behind the feature `fuzzing`, so the product
//! has none of it.

use crate::cni::config::NetworkList;
use crate::cni::result;
use crate::mountinfo;

/// Reads what a CNI plugin answers.
pub fn cni_result(bytes: &[u8]) {
    if let Ok(value) = serde_json::from_slice(bytes) {
        let _ = result::status(&value);
    }
}

/// Reads a CNI configuration.
pub fn cni_config(text: &str) {
    if let Ok(list) = NetworkList::parse(text) {
        let _ = list.at_least(1, 1);
    }
}

/// Reads lines of `/proc/PID/mountinfo`, which names directories as pods called them.
pub fn mountinfo(text: &str) {
    text.lines().for_each(|line| drop(mountinfo::parse(line)));
}
