//! Sparse maps: which parts of a file the archive's data holds.

/// A piece of a file that has data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// Checks that the extents ascend, stay below `real_size`, and hold exactly `data_size` bytes.
pub(crate) fn check(extents: &[Extent], real_size: u64, data_size: u64) -> Result<(), &'static str> {
    let (mut end, mut sum) = (0u64, 0u64);
    for extent in extents {
        if extent.offset < end {
            return Err("sparse extents overlap");
        }
        end = extent.offset.checked_add(extent.length).ok_or("sparse extent wraps")?;
        sum += extent.length; // No overflow: extents are disjoint below u64::MAX.
    }
    if end > real_size {
        return Err("sparse extent beyond the file's size");
    }
    if sum != data_size {
        return Err("sparse extents are not the entry's data");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks() {
        let e = |offset, length| Extent { offset, length };
        assert!(check(&[], 10, 0).is_ok());
        assert!(check(&[e(0, 1), e(5, 5), e(10, 0)], 10, 6).is_ok());
        assert!(check(&[e(0, 2), e(1, 1)], 10, 3).is_err());
        assert!(check(&[e(9, 2)], 10, 2).is_err());
        assert!(check(&[e(0, 2)], 10, 3).is_err());
        assert!(check(&[e(u64::MAX, 2)], u64::MAX, 2).is_err());
    }
}
