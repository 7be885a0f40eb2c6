//! One 512-byte tar header: ustar, GNU and old v7, with octal and base-256 numbers.

/// The size of every tar record.
pub(crate) const BLOCK: usize = 512;

/// The raw fields of a header whose checksum is right.
#[derive(Debug)]
pub(crate) struct RawHeader {
    pub(crate) name: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: u8,
    pub(crate) mode: u32,
    pub(crate) uid: i64,
    pub(crate) gid: i64,
    pub(crate) size: i64,
    pub(crate) mtime: i64,
    pub(crate) major: i64,
    pub(crate) minor: i64,
}

/// Parses a header; the error says which field is bad.
pub(crate) fn parse(block: &[u8; BLOCK]) -> Result<RawHeader, &'static str> {
    let sum = number(&block[148..156]).ok_or("header checksum is not a number")?;
    let mut unsigned = 8 * i64::from(b' ');
    let mut signed = unsigned;
    for (i, byte) in block.iter().enumerate() {
        if !(148..156).contains(&i) {
            unsigned += i64::from(*byte);
            signed += i64::from(*byte as i8);
        }
    }
    if sum != unsigned && sum != signed {
        return Err("header checksum is wrong");
    }
    let posix = &block[257..263] == b"ustar\0";
    let gnu = &block[257..265] == b"ustar  \0";
    let mut name = text(&block[0..100]).to_vec();
    if posix && block[345] != 0 {
        let prefix = text(&block[345..500]);
        name = [prefix, b"/", &name].concat();
    }
    let (major, minor) = match block[156] {
        b'3' | b'4' if posix || gnu => (
            number(&block[329..337]).ok_or("device major is not a number")?,
            number(&block[337..345]).ok_or("device minor is not a number")?,
        ),
        _ => (0, 0),
    };
    Ok(RawHeader {
        name,
        link: text(&block[157..257]).to_vec(),
        kind: block[156],
        mode: (number(&block[100..108]).ok_or("mode is not a number")? & 0o7777) as u32,
        uid: number(&block[108..116]).ok_or("uid is not a number")?,
        gid: number(&block[116..124]).ok_or("gid is not a number")?,
        size: number(&block[124..136]).ok_or("size is not a number")?,
        mtime: number(&block[136..148]).ok_or("mtime is not a number")?,
        major,
        minor,
    })
}

/// Up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
    &field[..end]
}

/// Octal between spaces and NULs, or base-256 two's complement when the first bit is set. Empty is 0.
pub(crate) fn number(field: &[u8]) -> Option<i64> {
    if field[0] & 0x80 != 0 {
        return base256(field);
    }
    let start = field.iter().position(|b| *b != b' ').unwrap_or(field.len());
    let field = &field[start..];
    let end = field.iter().position(|b| *b == 0 || *b == b' ').unwrap_or(field.len());
    let mut value = 0i64;
    for digit in &field[..end] {
        if !(b'0'..=b'7').contains(digit) {
            return None;
        }
        value = value.checked_mul(8)?.checked_add(i64::from(digit - b'0'))?;
    }
    Some(value)
}

fn base256(field: &[u8]) -> Option<i64> {
    // The first bit only marks the encoding; the second is the sign.
    let negative = field[0] & 0x40 != 0;
    let first = if negative { field[0] } else { field[0] & 0x7f };
    let mut value: i128 = if negative { -1 } else { 0 };
    for byte in std::iter::once(first).chain(field[1..].iter().copied()) {
        value = value << 8 | i128::from(byte);
        if i64::try_from(value).is_err() {
            return None;
        }
    }
    i64::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_numbers() {
        let table: &[(&[u8], Option<i64>)] = &[
            (b"0000644\0", Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"644     ", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"77777777", Some(0o77777777)),
            (b"0000648\0", None),
            (b"-000001\0", None),
            (b"0x12\0\0\0\0", None),
            (&[0x80, 0, 0, 0, 0, 0, 1, 0], Some(256)),
            (&[0xff; 8], Some(-1)),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe], Some(-2)),
            (&[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], Some(i64::MAX)),
            (&[0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0], None),
            (&[0xbf; 12], None),
        ];
        for (field, expected) in table {
            assert_eq!(number(field), *expected, "{field:x?}");
        }
    }
}
