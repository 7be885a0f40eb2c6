//! The annotations that limit a pod's traffic, `kubernetes.io/ingress-bandwidth` and `kubernetes.io/egress-bandwidth`.

use std::collections::HashMap;

use cofferdam_sandbox::Bandwidth;

use crate::error::CriError;
use crate::node::shorten;

/// Kubernetes takes nothing below a kilobit per second or above a petabit.
const RANGE: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;
/// Longest quantity.
const MAX_TEXT: usize = 64;

/// The limits that a pod's annotations ask for, if they ask for any.
pub(crate) fn of_pod(annotations: &HashMap<String, String>) -> Result<Option<Bandwidth>, CriError> {
    let rate = |name: &str| annotations.get(name).map(|text| bits(name, text)).transpose();
    let (ingress, egress) = (rate("kubernetes.io/ingress-bandwidth")?, rate("kubernetes.io/egress-bandwidth")?);
    Ok((ingress.is_some() || egress.is_some()).then_some(Bandwidth { ingress, egress }))
}

fn bits(name: &str, text: &str) -> Result<u64, CriError> {
    let quantity = quantity(text).ok_or_else(|| {
        CriError::invalid(format!("annotation {name}: {:?} is not a quantity such as 10M or 1.5Gi", shorten(text)))
    })?;
    u64::try_from(quantity).ok().filter(|rate| RANGE.contains(rate)).ok_or_else(|| {
        CriError::invalid(format!("annotation {name}: {:?} is not within 1k and 1P bits per second", shorten(text)))
    })
}

/// A quantity of Kubernetes (number, then a suffix or a decimal exponent), rounded up; negative ones are 0, and those that
/// are too large to count are the largest number.
fn quantity(text: &str) -> Option<u128> {
    if text.len() > MAX_TEXT || !text.is_ascii() {
        return None;
    }
    let (negative, text) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
        return None;
    }
    let (binary, decimal) = suffix_of(suffix)?;
    let digits = format!("{whole}{fraction}");
    let digits = digits.trim_start_matches('0');
    if negative || digits.is_empty() {
        return Some(0);
    }
    let power = decimal - i32::try_from(fraction.len()).ok()?;
    Some(scaled(digits, binary, power).unwrap_or(u128::MAX))
}

/// `digits` times `binary` times 10 to the power of `power`, rounded up; nothing when that overflows.
fn scaled(digits: &str, binary: u128, power: i32) -> Option<u128> {
    let value = digits.parse::<u128>().ok()?.checked_mul(binary)?;
    match 10_u128.checked_pow(power.unsigned_abs()) {
        Some(factor) if power >= 0 => value.checked_mul(factor),
        Some(divisor) => Some(value.div_ceil(divisor)),
        None if power >= 0 => None,
        None => Some(1), // less than one of anything
    }
}

/// What a suffix multiplies by: a power of 1024, and a power of ten.
fn suffix_of(suffix: &str) -> Option<(u128, i32)> {
    let binary = |power: u32| Some((1_u128 << (10 * power), 0));
    match suffix {
        "n" => Some((1, -9)),
        "u" => Some((1, -6)),
        "m" => Some((1, -3)),
        "" => Some((1, 0)),
        "k" => Some((1, 3)),
        "M" => Some((1, 6)),
        "G" => Some((1, 9)),
        "T" => Some((1, 12)),
        "P" => Some((1, 15)),
        "E" => Some((1, 18)),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        other => {
            let exponent: i32 = other.strip_prefix(['e', 'E'])?.parse().ok()?;
            (-1000..=1000).contains(&exponent).then_some((1, exponent))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn asked(ingress: Option<&str>, egress: Option<&str>) -> Result<Option<Bandwidth>, String> {
        let pairs = [("kubernetes.io/ingress-bandwidth", ingress), ("kubernetes.io/egress-bandwidth", egress)];
        let annotations = pairs.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())));
        of_pod(&annotations.collect()).map_err(|error| error.to_string())
    }

    #[test]
    fn annotations_become_bits_per_second() {
        assert_eq!(asked(None, None), Ok(None));
        assert_eq!(asked(Some("10M"), None), Ok(Some(Bandwidth { ingress: Some(10_000_000), egress: None })));
        let both = Bandwidth { ingress: Some(1_610_612_736), egress: Some(1_000) };
        assert_eq!(asked(Some("1.5Gi"), Some("1e3")), Ok(Some(both)));
    }

    #[test]
    fn what_is_no_rate_is_refused_by_name() {
        for text in ["", "M", "fast", "1.2.3", "10 M", "10m3", "1kk", "0x10", "10Mbit", "1e99999", "٣M"] {
            let error = asked(None, Some(text)).unwrap_err();
            assert!(error.contains("kubernetes.io/egress-bandwidth") && error.contains("no"), "{text}: {error}");
        }
        for text in
            ["0", "999", "-1M", "998001m", "1.1P", "2Pi", "1E", "1e40", "99999999999999999999999999999999999999999"]
        {
            let error = asked(Some(text), None).unwrap_err();
            assert!(error.contains("ingress-bandwidth") && error.contains("within 1k and 1P"), "{text}: {error}");
        }
        for (text, rate) in [("1k", 1_000), ("999000001m", 999_001), ("1P", 1_000_000_000_000_000), ("+1.M", 1_000_000)]
        {
            assert_eq!(asked(Some(text), None), Ok(Some(Bandwidth { ingress: Some(rate), egress: None })), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_taken_or_refused(text in "\\PC{0,70}|[-+]?[0-9.]{0,50}[numkMGTPEi]{0,2}|[0-9]{1,4}[eE]-?[0-9]{1,5}") {
            if let Ok(Some(limits)) = asked(Some(&text), None) {
                prop_assert!(RANGE.contains(&limits.ingress.unwrap()));
            }
        }
    }
}
