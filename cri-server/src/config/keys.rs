//! Which keys there are, and the one that was meant.

use toml::{Table, Value};

use super::Settings;

/// Stands for the name of a registry.
pub(crate) const ANY: &str = "*";

/// Every key, dotted and sorted; a registry's name is [`ANY`].
pub(crate) fn known() -> Vec<String> {
    let mut settings = Settings::default();
    settings.registries.insert(ANY.into(), super::settings::Registry::default());
    let table = Table::try_from(settings).unwrap_or_default();
    let mut keys: Vec<String> = leaves(&table).into_iter().map(|path| path.join(".")).collect();
    keys.sort_unstable();
    keys
}

/// Paths of all values of a table.
pub(super) fn leaves(table: &Table) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for (key, value) in table {
        match value {
            Value::Table(inner) => {
                let below = leaves(inner);
                if below.is_empty() {
                    found.push(vec![key.clone()]);
                }
                for mut path in below {
                    path.insert(0, key.clone());
                    found.push(path);
                }
            }
            _ => found.push(vec![key.clone()]),
        }
    }
    found
}

/// The first key of `table` that is not known, with the known one nearest to it.
pub(super) fn unknown(table: &Table) -> Option<(String, String)> {
    let known = known();
    for path in leaves(table) {
        let mut general = path.clone();
        if general.first().is_some_and(|k| k == "registries") && general.len() > 1 {
            general[1] = ANY.into();
        }
        let dotted = general.join(".");
        // An empty table: `[vm]` alone is fine.
        let prefix = format!("{dotted}.");
        if !known.iter().any(|k| *k == dotted || k.starts_with(&prefix)) {
            let nearest = known.iter().min_by_key(|k| distance(k, &dotted)).cloned().unwrap_or_default();
            return Some((path.join("."), nearest));
        }
    }
    None
}

/// Edits between two words (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = corner + usize::from(x != *y);
            corner = row[j + 1];
            row[j + 1] = replaced.min(corner + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
