//! What a pod or container was asked to be, for people who inspect it. Nothing is decided by it.

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};

/// Longest text that is kept; of a larger one nothing is.
const MAX: usize = 256 << 10;

/// `{"config": …, "runtimeSpec": …}` as JSON; empty: not kept, or of a record that an older version wrote.
///
/// Values of environment variables, among which are Secrets, are in memory only: what is written to the disk has the names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Info(Arc<str>);

impl Info {
    /// Keeps `value`, if it is not too long.
    pub(crate) fn new(value: &Value) -> Self {
        let text = value.to_string();
        if text.len() > MAX || text == "{}" { Self::default() } else { Self(text.into()) }
    }

    /// An object: empty if nothing was kept.
    pub(crate) fn value(&self) -> Value {
        serde_json::from_str(&self.0).ok().filter(Value::is_object).unwrap_or_else(|| json!({}))
    }
}

impl Serialize for Info {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut value = self.value();
        for variable in value.pointer_mut("/config/envs").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(variable) = variable.as_object_mut() {
                variable.remove("value");
            }
        }
        for entry in value.pointer_mut("/runtimeSpec/process/env").and_then(Value::as_array_mut).into_iter().flatten() {
            let name = entry.as_str().map(|entry| entry.split('=').next().unwrap_or_default().to_owned());
            *entry = json!(name);
        }
        value.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Info {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::new(&Value::deserialize(deserializer)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_variables_are_not_written() {
        let value = json!({
            "config": {"envs": [{"key": "TOKEN", "value": "hush"}], "metadata": {"name": "app"}},
            "runtimeSpec": {"process": {"env": ["TOKEN=hush", "A=b=c"], "args": ["sh"]}},
        });
        let info = Info::new(&value);
        assert_eq!(info.value(), value);
        let written = serde_json::to_string(&info).unwrap();
        assert!(!written.contains("hush") && !written.contains("b=c"), "{written}");
        let again: Info = serde_json::from_str(&written).unwrap();
        assert_eq!(again.value().pointer("/config/envs/0/key"), Some(&json!("TOKEN")));
        assert_eq!(again.value().pointer("/runtimeSpec/process/env"), Some(&json!(["TOKEN", "A"])));
        assert_eq!(again.value().pointer("/runtimeSpec/process/args/0"), Some(&json!("sh")));
    }

    #[test]
    fn what_is_too_long_is_left_out() {
        assert_eq!(Info::new(&json!({"config": "x".repeat(MAX)})), Info::default());
        assert_eq!(Info::default().value(), json!({}));
        assert_eq!(serde_json::to_string(&Info::default()).unwrap(), "{}");
        assert_eq!(serde_json::from_str::<Info>("{}").unwrap().value(), json!({}));
    }
}
