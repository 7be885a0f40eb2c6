//! Entry names as paths inside the layer.

use super::ExtractError;
use super::reader::lossy;

/// The longest name that a file system takes.
const MAX_COMPONENT: usize = 255;

/// A directory's path and a name in it.
pub(crate) type Place = (Vec<u8>, Vec<u8>);

/// Splits an entry's name into its directory and last component; `None` is the root itself.
///
/// The name is cleaned in its text, as containerd and moby do: it is relative to the layer's root
/// whether it begins with a slash or not, `..` takes away the component before it, and nothing is
/// above the root. Links are followed later, in the directory's path only.
///
/// # Errors
/// A component is longer than 255 bytes, or there are more than `depth` directories.
pub(crate) fn split(name: &[u8], depth: usize) -> Result<Option<Place>, ExtractError> {
    let mut components: Vec<&[u8]> = Vec::new();
    for component in name.split(|b| *b == b'/') {
        match component {
            b"" | b"." => {}
            b".." => drop(components.pop()),
            long if long.len() > MAX_COMPONENT => {
                return Err(ExtractError::malformed(&lossy(name), "name has a component of more than 255 bytes"));
            }
            component => components.push(component),
        }
    }
    let Some(last) = components.pop() else {
        return Ok(None);
    };
    if components.len() >= depth {
        return Err(ExtractError::too_large(&lossy(name), format!("{depth} directories deep")));
    }
    Ok(Some((components.join(&b'/'), last.to_vec())))
}

/// The path of a name in a directory; the root directory is empty.
pub(crate) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

/// The opposite of [`join`].
pub(crate) fn cut(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_cleaned() {
        let place = |dir: &str, name: &str| Some((dir.as_bytes().to_vec(), name.as_bytes().to_vec()));
        for (name, expected) in [
            ("/ko-app/app", place("ko-app", "app")),
            ("//var//run/./ko", place("var/run", "ko")),
            ("a/../b", place("", "b")),
            ("a/b/../../c/d", place("c", "d")),
            ("../victim", place("", "victim")),
            ("a/../../../victim/x", place("victim", "x")),
            ("a/", place("", "a")),
            ("./.wh.x", place("", ".wh.x")),
            ("", None),
            ("/", None),
            ("..", None),
            ("a/..", None),
        ] {
            assert_eq!(split(name.as_bytes(), 8).unwrap(), expected, "{name}");
        }
        assert!(matches!(split(b"a/b/c/d", 3), Err(ExtractError::TooLarge { .. })));
        assert!(matches!(split(&[b'n'; 256], 8), Err(ExtractError::Malformed { .. })));
    }

    proptest! {
        #[test]
        fn no_dots_are_left(name in "[a./]{0,40}") {
            if let Some((dir, last)) = split(name.as_bytes(), 64).unwrap() {
                let path = join(&dir, &last);
                prop_assert!(path.split(|b| *b == b'/').all(|c| !matches!(c, b"" | b"." | b"..")));
                prop_assert_eq!(cut(&path), (&dir[..], &last[..]));
            }
        }
    }
}
