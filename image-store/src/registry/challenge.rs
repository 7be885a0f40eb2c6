//! `WWW-Authenticate`, as registries send it (RFC 9110, section 11.6.1).

use std::collections::BTreeMap;

/// Challenges of one answer that are looked at.
const MAX_CHALLENGES: usize = 16;
/// Bytes of one header that are looked at.
const MAX_HEADER: usize = 16 << 10;

/// A way to log in that a registry offers and that is known here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// One challenge as it is spelled.
#[derive(Debug)]
struct Raw<'a> {
    scheme: &'a str,
    parameters: BTreeMap<String, String>,
}

impl Challenge {
    /// The challenges of all headers that can be answered, in their order. Several may be in one
    /// header, in any order; schemes that are not known are skipped.
    pub(crate) fn parse<'a>(headers: impl IntoIterator<Item = &'a str>) -> Vec<Self> {
        let raw = headers.into_iter().flat_map(raw).take(MAX_CHALLENGES);
        raw.filter_map(Self::known).collect()
    }

    fn known(mut raw: Raw<'_>) -> Option<Self> {
        if raw.scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !raw.scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        Some(Self::Bearer {
            realm: raw.parameters.remove("realm").filter(|realm| !realm.is_empty())?,
            service: raw.parameters.remove("service"),
            scope: raw.parameters.remove("scope"),
        })
    }
}

/// Splits a header into challenges. A name before `=` is a parameter of the challenge before it;
/// any other begins a challenge.
fn raw(header: &str) -> Vec<Raw<'_>> {
    let mut found: Vec<Raw<'_>> = Vec::new();
    let end = header.floor_char_boundary(MAX_HEADER);
    let mut rest = &header[..end];
    while found.len() <= MAX_CHALLENGES {
        rest = rest.trim_start_matches([',', ' ', '\t']);
        if rest.is_empty() {
            break;
        }
        let (name, after) = split_while(rest, is_token);
        if name.is_empty() {
            // Not of the grammar: leave out what it is, up to the next comma.
            rest = rest.split_once(',').map_or("", |(_, after)| after);
            continue;
        }
        match after.trim_start().strip_prefix('=') {
            Some(value) => {
                let Some((value, after)) = value_of(value.trim_start()) else {
                    break;
                };
                if let Some(challenge) = found.last_mut() {
                    challenge.parameters.entry(name.to_ascii_lowercase()).or_insert(value);
                }
                rest = after;
            }
            None => {
                found.push(Raw { scheme: name, parameters: BTreeMap::new() });
                rest = skip_token68(after);
            }
        }
    }
    found
}

/// A parameter's value, in quotes or up to the next comma, and what follows it.
fn value_of(text: &str) -> Option<(String, &str)> {
    if let Some(quoted) = text.strip_prefix('"') {
        return unquote(quoted);
    }
    let end = text.find(',').unwrap_or(text.len());
    Some((text[..end].trim().to_owned(), &text[end..]))
}

/// The text up to the closing quote, and what follows it.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

/// Leaves out the one word without a name that a scheme may have in place of parameters.
fn skip_token68(text: &str) -> &str {
    let trimmed = text.trim_start_matches([' ', '\t']);
    if trimmed.len() == text.len() {
        return text;
    }
    let (word, after) = split_while(trimmed, |c| c.is_ascii_alphanumeric() || "-._~+/".contains(c));
    let after = after.trim_start_matches('=').trim_start_matches([' ', '\t']);
    if !word.is_empty() && (after.is_empty() || after.starts_with(',')) { after } else { trimmed }
}

fn split_while(text: &str, wanted: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !wanted(c)).unwrap_or(text.len()))
}

/// `tchar` of RFC 9110, section 5.6.2.
fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer { realm: realm.into(), service: service.map(Into::into), scope: scope.map(Into::into) }
    }

    #[test]
    fn reads_challenges() {
        let table: [(&[&str], Vec<Challenge>); 17] = [
            (&["Basic realm=\"x\""], vec![Challenge::Basic]),
            (&["basic"], vec![Challenge::Basic]),
            (
                &[
                    "Bearer realm=\"https://auth.docker.io/token\",service=\"registry.docker.io\",scope=\"repository:a/b:pull,push\"",
                ],
                vec![bearer(
                    "https://auth.docker.io/token",
                    Some("registry.docker.io"),
                    Some("repository:a/b:pull,push"),
                )],
            ),
            (&["bearer Realm=http://a , service=s"], vec![bearer("http://a", Some("s"), None)]),
            (&[r#"Bearer realm="a\"b""#], vec![bearer("a\"b", None, None)]),
            (&["Bearer realm=\"unclosed"], vec![]),
            (&["Bearer service=\"s\""], vec![]),
            (&["Negotiate"], vec![]),
            (&[""], vec![]),
            // Several in one header, and one in each of several.
            (
                &["Basic realm=\"x\", Bearer realm=\"http://a\",service=\"s\""],
                vec![Challenge::Basic, bearer("http://a", Some("s"), None)],
            ),
            (
                &["BEARER realm=\"http://a\", scope=\"x\", basic Realm=\"y\""],
                vec![bearer("http://a", None, Some("x")), Challenge::Basic],
            ),
            (&["Negotiate", "NTLM, Basic realm=x"], vec![Challenge::Basic]),
            (&["Negotiate YII/+a==, Bearer realm=\"http://a\""], vec![bearer("http://a", None, None)]),
            (&["Digest realm=\"a, Basic realm=b\", qop=\"auth\", Basic"], vec![Challenge::Basic]),
            (&["Basic realm=\"a, Bearer realm=\\\"b\\\"\""], vec![Challenge::Basic]),
            (&[",, ,Bearer  realm = \"http://a\" ,, service=s,"], vec![bearer("http://a", Some("s"), None)]),
            (&["\u{fc}x, ;, Basic"], vec![Challenge::Basic]),
        ];
        for (headers, expected) in table {
            assert_eq!(Challenge::parse(headers.iter().copied()), expected, "{headers:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in ".{0,80}") {
            let _ = Challenge::parse([format!("Bearer {text}").as_str(), &text]);
        }

        #[test]
        fn ends_on_words_of_the_grammar(
            words in proptest::collection::vec(proptest::sample::select(vec![
                "Basic", "Bearer", " ", ",", "=", "\"", "\\", "realm", "a==", "\t", "\u{e9}",
            ]), 0..40)
        ) {
            let _ = Challenge::parse([words.concat().as_str()]);
        }
    }
}
