//! PAX extended headers: `<length> <key>=<value>\n`, over and over.

use super::sparse::Extent;

/// What one extended header says about the next entry.
#[derive(Debug, Default)]
pub(crate) struct Pax {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<i64>,
    pub(crate) gid: Option<i64>,
    pub(crate) mtime: Option<(i64, u32)>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) sparse: PaxSparse,
}

/// GNU tar's three ways to put a sparse map into PAX.
#[derive(Debug, Default)]
pub(crate) struct PaxSparse {
    /// The file's real name (formats 0.1 and 1.0).
    pub(crate) name: Option<Vec<u8>>,
    pub(crate) real_size: Option<u64>,
    /// Format 1.0: the map is at the head of the data.
    pub(crate) map_in_data: bool,
    /// Formats 0.0 and 0.1.
    pub(crate) extents: Vec<Extent>,
    pending_offset: Option<u64>,
}

impl PaxSparse {
    pub(crate) fn is_sparse(&self) -> bool {
        self.map_in_data || !self.extents.is_empty() || self.real_size.is_some()
    }
}

/// Bounds come from the caller: `data` is at most a header's limit long.
pub(crate) fn parse(data: &[u8], max_extents: usize) -> Result<Pax, &'static str> {
    let mut pax = Pax::default();
    let mut rest = data;
    // Some writers pad with NULs.
    while rest.first().is_some_and(|b| *b != 0) {
        let space = rest.iter().take(20).position(|b| *b == b' ').ok_or("PAX record has no length")?;
        let length = decimal(&rest[..space]).ok_or("PAX record's length is not a number")?;
        let length = usize::try_from(length).map_err(|_| "PAX record's length is too large")?;
        if length <= space + 1 || length > rest.len() || rest[length - 1] != b'\n' {
            return Err("PAX record's length is wrong");
        }
        let record = &rest[space + 1..length - 1];
        let equals = record.iter().position(|b| *b == b'=').ok_or("PAX record has no =")?;
        apply(&mut pax, &record[..equals], &record[equals + 1..], max_extents)?;
        rest = &rest[length..];
    }
    if pax.sparse.pending_offset.is_some() {
        return Err("PAX sparse offset without a length");
    }
    Ok(pax)
}

fn apply(pax: &mut Pax, key: &[u8], value: &[u8], max_extents: usize) -> Result<(), &'static str> {
    let number = || decimal(value).ok_or("PAX number is not one");
    if value.is_empty() && unset(pax, key) {
        return Ok(());
    }
    match key {
        b"path" => pax.path = Some(value.to_vec()),
        b"linkpath" => pax.link = Some(value.to_vec()),
        b"size" => pax.size = Some(number()?),
        b"uid" => pax.uid = Some(signed(value).ok_or("PAX number is not one")?),
        b"gid" => pax.gid = Some(signed(value).ok_or("PAX number is not one")?),
        b"mtime" => pax.mtime = Some(time(value).ok_or("PAX mtime is not a time")?),
        b"GNU.sparse.name" => pax.sparse.name = Some(value.to_vec()),
        b"GNU.sparse.realsize" | b"GNU.sparse.size" => pax.sparse.real_size = Some(number()?),
        b"GNU.sparse.major" => pax.sparse.map_in_data = value == b"1",
        b"GNU.sparse.map" => pax.sparse.extents = map(value, max_extents)?,
        b"GNU.sparse.offset" => {
            if pax.sparse.pending_offset.replace(number()?).is_some() {
                return Err("PAX sparse offset without a length");
            }
        }
        b"GNU.sparse.numbytes" => {
            let offset = pax.sparse.pending_offset.take().ok_or("PAX sparse length without an offset")?;
            if pax.sparse.extents.len() >= max_extents {
                return Err("too many sparse extents");
            }
            pax.sparse.extents.push(Extent { offset, length: number()? });
        }
        _ => {
            if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                pax.xattrs.retain(|(known, _)| known != name);
                if pax.xattrs.len() >= 1024 {
                    return Err("too many extended attributes");
                }
                pax.xattrs.push((name.to_vec(), value.to_vec()));
            }
        }
    }
    Ok(())
}

/// An empty value takes back what an earlier record of the same key said, so that the header's own
/// field counts (POSIX pax, "pax Extended Header Keyword/Value Pairs"). False for keys where an
/// empty value is a value.
fn unset(pax: &mut Pax, key: &[u8]) -> bool {
    match key {
        b"path" => pax.path = None,
        b"linkpath" => pax.link = None,
        b"size" => pax.size = None,
        b"uid" => pax.uid = None,
        b"gid" => pax.gid = None,
        b"mtime" => pax.mtime = None,
        b"GNU.sparse.name" => pax.sparse.name = None,
        b"GNU.sparse.realsize" | b"GNU.sparse.size" => pax.sparse.real_size = None,
        b"GNU.sparse.major" => pax.sparse.map_in_data = false,
        b"GNU.sparse.map" => pax.sparse.extents.clear(),
        _ => return false,
    }
    true
}

fn map(value: &[u8], max_extents: usize) -> Result<Vec<Extent>, &'static str> {
    let mut extents = Vec::new();
    let mut numbers = value.split(|b| *b == b',');
    while let Some(offset) = numbers.next() {
        if extents.len() >= max_extents {
            return Err("too many sparse extents");
        }
        let length = numbers.next().ok_or("PAX sparse map has an odd number of fields")?;
        let (Some(offset), Some(length)) = (decimal(offset), decimal(length)) else {
            return Err("PAX sparse map is not numbers");
        };
        extents.push(Extent { offset, length });
    }
    Ok(extents)
}

pub(crate) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 20 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Ids of other systems may be negative (macOS's "nobody" is -2).
fn signed(value: &[u8]) -> Option<i64> {
    match value.strip_prefix(b"-") {
        Some(digits) => i64::try_from(decimal(digits)?).ok().map(|n| -n),
        None => i64::try_from(decimal(value)?).ok(),
    }
}

/// `[-]seconds[.fraction]`.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let mut parts = value.splitn(2, |b| *b == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let mut nanos = 0u32;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    for i in 0..9 {
        nanos = nanos * 10 + fraction.get(i).map_or(0, |b| u32::from(b - b'0'));
    }
    match (negative, nanos) {
        (false, _) => Some((seconds, nanos)),
        (true, 0) => Some((-seconds, 0)),
        (true, _) => Some((-seconds - 1, 1_000_000_000 - nanos)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_records() {
        let pax = parse(b"12 path=a\nb\n20 mtime=-1.5000000\n13 size=1234\n26 SCHILY.xattr.user.a=\0=\n", 8);
        // The first record's length includes its inner newline.
        let pax = match pax {
            Ok(pax) => pax,
            Err(e) => panic!("{e}"),
        };
        assert_eq!(pax.path.as_deref(), Some(&b"a\nb"[..]));
        assert_eq!(pax.mtime, Some((-2, 500_000_000)));
        assert_eq!(pax.size, Some(1234));
        assert_eq!(pax.xattrs, [(b"user.a".to_vec(), b"\0=".to_vec())]);
    }

    #[test]
    fn an_empty_value_takes_a_record_back() {
        let said = ["path=a", "path=", "linkpath=", "mtime=", "mtime=1", "uid=", "gid=", "uid=-2", "size="];
        let records: String = said
            .into_iter()
            .chain(["GNU.sparse.name=", "SCHILY.xattr.user.a="])
            // One digit or two, and the blank and the line's end.
            .map(|record| format!("{} {record}\n", record.len() + if record.len() < 7 { 3 } else { 4 }))
            .collect();
        let pax = parse(records.as_bytes(), 8).unwrap();
        assert!(pax.path.is_none() && pax.link.is_none() && pax.size.is_none() && pax.gid.is_none());
        assert!(!pax.sparse.is_sparse() && pax.sparse.name.is_none());
        assert_eq!((pax.mtime, pax.uid), (Some((1, 0)), Some(-2)));
        assert_eq!(pax.xattrs, [(b"user.a".to_vec(), Vec::new())], "an empty attribute is an attribute");
    }

    #[test]
    fn refuses() {
        for bad in [
            &b"path=a\n"[..],
            b"0 path=a\n",
            b"3 a\n",
            b"99 path=a\n",
            b"8 path=a\n",
            b"-9 path=a\n",
            b"99999999999999999999999 path=a\n",
            b"11 size=-1\n",
            b"11 size=ab\n",
            b"23 GNU.sparse.offset=1\n",
            b"24 GNU.sparse.map=1,2,3\n",
        ] {
            assert!(parse(bad, 8).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes, 8);
        }
    }
}
