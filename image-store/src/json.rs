//! JSON documents read as Go's `encoding/json` reads them into a struct, since that is what their
//! writers have tried them with: a key matches whatever its case, the last of equal keys counts,
//! `null` is the default, unknown keys are skipped, and text that is not Unicode is repaired.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Reads a whole document.
pub(crate) fn read<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, serde_json::Error> {
    let text = String::from_utf8_lossy(bytes);
    serde_json::from_str(&without_lone_surrogates(&text))
}

/// Go takes half of an escaped surrogate pair for U+FFFD; `serde_json` refuses it.
fn without_lone_surrogates(text: &str) -> Cow<'_, str> {
    if !text.contains("\\ud") && !text.contains("\\uD") {
        return Cow::Borrowed(text);
    }
    let unit = |rest: &str| u16::from_str_radix(rest.strip_prefix("\\u")?.get(..4)?, 16).ok();
    let mut fixed = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        fixed.push_str(&rest[..at]);
        rest = &rest[at..];
        let length = match (unit(rest), rest.get(6..).and_then(unit)) {
            (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => 12,
            (Some(0xd800..=0xdfff), _) => {
                fixed.push('\u{fffd}');
                rest = &rest[6..];
                continue;
            }
            // The backslash and what it escapes: one character, whatever its length.
            _ => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
        };
        fixed.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    fixed.push_str(rest);
    Cow::Owned(fixed)
}

/// Declares a struct and how it is read: `field: Type = "key"`.
macro_rules! go_struct {
    ($(#[$meta:meta])* struct $name:ident { $($field:ident: $type:ty = $key:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Default)]
        struct $name { $($field: $type,)* }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Reader;
                impl<'de> serde::de::Visitor<'de> for Reader {
                    type Value = $name;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str("an object")
                    }

                    fn visit_unit<E>(self) -> Result<$name, E> {
                        Ok($name::default())
                    }

                    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<$name, A::Error> {
                        let mut value = $name::default();
                        while let Some(key) = map.next_key::<String>()? {
                            $(if key.eq_ignore_ascii_case($key) {
                                // A null leaves what an equal key has said before.
                                if let Some(read) = map.next_value::<Option<$type>>()? {
                                    value.$field = read;
                                }
                                continue;
                            })*
                            map.next_value::<serde::de::IgnoredAny>()?;
                        }
                        Ok(value)
                    }
                }
                deserializer.deserialize_any(Reader)
            }
        }
    };
}
pub(crate) use go_struct;

/// A value inside of a list or map, where `null` is the default as well.
#[derive(Debug, Default)]
pub(crate) struct Item<T>(pub(crate) T);

impl<'de, T: Deserialize<'de> + Default> Deserialize<'de> for Item<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(Option::deserialize(deserializer)?.unwrap_or_default()))
    }
}

/// A field that is taken when it is text or a whole number, and empty when it is of any other type:
/// for what only matters if it is used.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Loose {
    pub(crate) text: String,
    pub(crate) number: Option<i64>,
}

impl<'de> Deserialize<'de> for Loose {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Loose;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }

            fn visit_str<E>(self, text: &str) -> Result<Loose, E> {
                Ok(Loose { text: text.into(), number: None })
            }

            fn visit_i64<E>(self, number: i64) -> Result<Loose, E> {
                Ok(Loose { text: String::new(), number: Some(number) })
            }

            fn visit_u64<E>(self, number: u64) -> Result<Loose, E> {
                Ok(Loose { text: String::new(), number: i64::try_from(number).ok() })
            }

            fn visit_f64<E>(self, _: f64) -> Result<Loose, E> {
                Ok(Loose::default())
            }

            fn visit_bool<E>(self, _: bool) -> Result<Loose, E> {
                Ok(Loose::default())
            }

            fn visit_unit<E>(self) -> Result<Loose, E> {
                Ok(Loose::default())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Loose, A::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Loose::default())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Loose, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Loose::default())
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    go_struct! {
        #[derive(PartialEq)]
        struct Inner {
            name: String = "name",
        }
    }

    go_struct! {
        struct Outer {
            inner: Inner = "inner",
            words: Vec<Item<String>> = "Words",
            loose: Loose = "loose",
        }
    }

    fn outer(text: &str) -> Outer {
        read(text.as_bytes()).unwrap()
    }

    #[test]
    fn keys_and_nulls_are_as_in_go() {
        let read = outer(r#"{"INNER": {"Name": "a", "x": [{}]}, "words": ["a", null], "loose": "l", "y": null}"#);
        assert_eq!(read.inner.name, "a");
        assert_eq!(read.words.iter().map(|w| w.0.as_str()).collect::<Vec<_>>(), ["a", ""]);
        assert_eq!(read.loose.text, "l");
        let read = outer(r#"{"inner": null, "words": null, "loose": null}"#);
        assert!(read.inner == Inner::default() && read.words.is_empty() && read.loose == Loose::default());
        assert_eq!(outer(r#"{"inner": {"name": "a", "Name": "b", "NAME": null}}"#).inner.name, "b");
        for other in ["7.5", "true", "[1, {}]", r#"{"a": {"b": 1}}"#, "18446744073709551615"] {
            assert_eq!(outer(&format!(r#"{{"loose": {other}}}"#)).loose, Loose::default(), "{other}");
        }
        assert_eq!(outer(r#"{"loose": -7}"#).loose.number, Some(-7));
        for bad in [r#"{"words": "a"}"#, r#"{"inner": 1}"#, "[]", "{} {}", "{"] {
            assert!(super::read::<Outer>(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn text_is_repaired() {
        let name = |text: &[u8]| super::read::<Inner>(text).unwrap().name;
        assert_eq!(name(b"{\"name\": \"a\xffb\"}"), "a\u{fffd}b");
        assert_eq!(name(br#"{"name": "a\ud83db"}"#), "a\u{fffd}b");
        assert_eq!(name(br#"{"name": "\ud83d\ude00"}"#), "\u{1f600}");
        assert_eq!(name(br#"{"name": "\\ud83d"}"#), "\\ud83d");
        assert_eq!(name(br#"{"name": "\uDE00\u00e4\"\ud83d"}"#), "\u{fffd}\u{e4}\"\u{fffd}");
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "[\\\\ud83cDe0\"{}:\u{e4}]{0,40}") {
            let _ = without_lone_surrogates(&text);
        }
    }
}
