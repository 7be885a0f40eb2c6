//! The names of CDI: `vendor/class=device`.

/// Longest of each part.
const MAX: usize = 253;

/// Splits a qualified name into its kind (`vendor/class`) and its device.
pub(super) fn split(qualified: &str) -> Option<(&str, &str)> {
    let (kind, device) = qualified.split_once('=')?;
    (is_kind(kind) && is_device(device)).then_some((kind, device))
}

/// Whether it is `vendor/class`.
pub(super) fn is_kind(kind: &str) -> bool {
    let Some((vendor, class)) = kind.split_once('/') else { return false };
    let letter = |c: char| c.is_ascii_alphabetic();
    word(vendor, letter, "_-.") && word(class, letter, "_-")
}

/// Whether a device may be called so.
pub(super) fn is_device(name: &str) -> bool {
    word(name, |c| c.is_ascii_alphanumeric(), "_-.:")
}

/// Starts with what `first` takes, ends with a letter or digit, and has `others` in between as well.
fn word(text: &str, first: impl Fn(char) -> bool, others: &str) -> bool {
    text.len() <= MAX
        && text.starts_with(first)
        && text.ends_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || others.contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_by_the_grammar() {
        for good in ["vendor.com/net=1", "a/b=c", "nvidia.com/gpu=GPU-8f:0", "vendor_x/class-y=0.1_b-c"] {
            assert!(split(good).is_some(), "{good}");
        }
        let long = format!("a/b={}", "c".repeat(300));
        for bad in [
            "",
            "a",
            "a/b",
            "a/b=",
            "a=b",
            "/b=c",
            "a/=c",
            "1a/b=c",
            "a/1b=c",
            "a/b.c=d",
            "a./b=c",
            "a/b/c=d",
            "a/b=..",
            "a/b=../c",
            "../etc/b=c",
            "a/b=c/d",
            "a/b=c=d",
            "a/b=c\n",
            "a/b=\0",
            "a/b=c ",
            "a/b=é",
            "a/b=-",
            &long,
        ] {
            assert_eq!(split(bad), None, "{bad:?}");
        }
    }
}
