//! What a registry, a token service or a proxy says in an answer that is an error, in one line.

use serde_json::Value;

/// Characters of the line.
const MAX: usize = 300;

/// The message of an error answer's body: of JSON in the forms that registries use, or text, or an
/// HTML page without its markup. `None` when it says nothing.
pub(crate) fn message(body: &[u8], content_type: &str) -> Option<String> {
    let text = String::from_utf8_lossy(body);
    let found = match serde_json::from_slice::<Value>(body) {
        Ok(value) => of_json(&value),
        Err(_) => None,
    };
    let is_html = content_type.contains("html") || text.trim_start().starts_with('<');
    let line = match found {
        Some(found) => found,
        None if is_html => without_markup(&text),
        // Cut off, or JSON of another kind: better than nothing.
        None => text.into_owned(),
    };
    let line: Vec<&str> = line.split(|c: char| c.is_whitespace() || c.is_control()).filter(|w| !w.is_empty()).collect();
    let line: String = line.join(" ").chars().take(MAX).collect();
    Some(line).filter(|line| !line.is_empty() && line != "{}" && line != "null")
}

/// `{"errors": [{"code", "message", "detail"}]}` of the distribution specification, `{"error",
/// "error_description"}` of OAuth2, and `message`, `details`, `msg`, `title` of others.
fn of_json(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(entries) => {
            let lines: Vec<String> = entries.iter().take(3).filter_map(of_json).collect();
            Some(lines.join("; ")).filter(|line| !line.is_empty())
        }
        Value::Object(object) => {
            if let Some(line) = object.get("errors").and_then(of_json).filter(|line| !line.is_empty()) {
                return Some(line);
            }
            let text = |key: &str| match object.get(key) {
                Some(Value::String(text)) if !text.is_empty() => Some(text.clone()),
                Some(Value::Number(number)) => Some(number.to_string()),
                Some(nested @ (Value::Object(_) | Value::Array(_))) => of_json(nested),
                _ => None,
            };
            let kind = text("code").or_else(|| text("error"));
            let words = ["message", "error_description", "msg", "details", "detail", "title"];
            let words = words.into_iter().find_map(text);
            match (kind, words) {
                (Some(kind), Some(words)) if kind != words => Some(format!("{kind} {words}")),
                (kind, words) => words.or(kind),
            }
        }
        _ => None,
    }
}

/// The text of an HTML page, less its scripts and styles. The title comes first in pages.
fn without_markup(page: &str) -> String {
    let mut text = String::new();
    let mut rest = page;
    while let Some((before, tag)) = rest.split_once('<') {
        text.push_str(before);
        text.push(' ');
        let closing = ["script", "style"]
            .iter()
            .find(|name| tag.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name)));
        let hidden = closing.and_then(|name| tag.to_ascii_lowercase().find(&format!("</{name}")));
        let tag = hidden.map_or(tag, |at| &tag[at + 1..]);
        rest = tag.split_once('>').map_or("", |(_, after)| after);
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_words() {
        let table = [
            (r#"{"errors":[{"code":"DENIED","message":"no access"}]}"#, Some("DENIED no access")),
            (r#"{"errors":[{"code":"A","message":"b"},{"code":"C"}]}"#, Some("A b; C")),
            (r#"{"errors":[{"message":"only words"}]}"#, Some("only words")),
            (r#"{"errors":[{"code":"X","message":"","detail":{"message":"deep"}}]}"#, Some("X deep")),
            (r#"{"errors":"plain"}"#, Some("plain")),
            (r#"{"errors":[]}"#, Some(r#"{"errors":[]}"#)),
            (r#"{"errors":null,"message":"m"}"#, Some("m")),
            (r#"{"message":"rate limited"}"#, Some("rate limited")),
            (r#"{"details":"incorrect username or password"}"#, Some("incorrect username or password")),
            (r#"{"error":"invalid_grant","error_description":"expired"}"#, Some("invalid_grant expired")),
            (r#"{"error":{"code":403,"message":"quota"}}"#, Some("403 quota")),
            ("plain\n\twords\x07 ", Some("plain words")),
            (
                "<html><head><title>502 Bad</title><style>p{}</style></head><body><h1>Gateway</h1></body>",
                Some("502 Bad Gateway"),
            ),
            ("<script>x</script>", None),
            ("", None),
            ("{}", None),
            ("<", None),
        ];
        for (body, words) in table {
            assert_eq!(message(body.as_bytes(), "").as_deref(), words, "{body}");
        }
        assert_eq!(message("a".repeat(10_000).as_bytes(), "").map(|m| m.len()), Some(MAX));
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "[<>a/script \\{\\}\":\u{130}]{0,60}") {
            let _ = message(text.as_bytes(), "text/html");
        }
    }
}
