//! OpenMetrics' text format, read strictly: what a scraper would stumble over is an error here.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::failure::{Doing, Failure, Outcome, ensure};

/// Where the node's configuration has the daemon's own metrics.
pub(crate) const ADDRESS: &str = "127.0.0.1:9090";

/// Sends a request line; the status line with the headers, and the body.
pub(crate) fn ask(line: &str) -> Outcome<(String, String)> {
    let mut stream = TcpStream::connect(ADDRESS).doing(&format!("connect to metrics.listen at {ADDRESS}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(120))).doing("set a time-out")?;
    write!(stream, "{line} HTTP/1.1\r\nHost: {ADDRESS}\r\n\r\n").doing("ask for metrics")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).doing("read the metrics")?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(format!("no HTTP answer: {answer:?}"))?;
    Ok((head.to_owned(), body.to_owned()))
}

/// The daemon's own metrics now.
pub(crate) fn scrape() -> Outcome<Exposition> {
    let (head, body) = ask("GET /metrics")?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "GET /metrics: {head}");
    let kind = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8";
    ensure!(head.to_lowercase().contains(kind), "the answer does not say that it is OpenMetrics: {head}");
    Exposition::parse(&body).map_err(|failure| Failure(format!("{failure}; in\n{body}")))
}

/// Names and values of a series' labels, sorted.
type Labels = BTreeMap<String, String>;

/// All that one answer says.
#[derive(Debug, Default)]
pub(crate) struct Exposition {
    families: BTreeMap<String, Family>,
    samples: Vec<Sample>,
}

#[derive(Debug, Default)]
struct Family {
    kind: String,
    unit: String,
    help: String,
}

#[derive(Debug, Clone, PartialEq)]
struct Sample {
    name: String,
    labels: Labels,
    value: f64,
}

impl Exposition {
    /// Reads an answer.
    pub(crate) fn parse(text: &str) -> Outcome<Self> {
        let lines = text.strip_suffix("# EOF\n").ok_or("the metrics do not end with # EOF")?;
        let mut read = Self::default();
        // Whose lines are being read: those of one family stand together.
        let mut open = String::new();
        for line in lines.lines() {
            let family = match line.strip_prefix("# ") {
                Some(said) => read.metadata(said)?,
                None => read.sample(line)?,
            };
            if family != open {
                let news = line.starts_with("# ") && !read.samples.iter().any(|s| read.belongs(&s.name, &family));
                ensure!(news, "the lines of {family} do not stand together: {line}");
                open = family;
            }
        }
        read.check()?;
        Ok(read)
    }

    /// A series' value; `labels` are all that it has.
    pub(crate) fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels: Labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        self.samples.iter().find(|s| s.name == name && s.labels == labels).map(|s| s.value)
    }

    /// Every value that a label has in the series of a name.
    pub(crate) fn label_values(&self, name: &str, label: &str) -> BTreeSet<&str> {
        let of = self.samples.iter().filter(|s| s.name == name);
        of.filter_map(|s| s.labels.get(label).map(String::as_str)).collect()
    }

    fn metadata(&mut self, said: &str) -> Outcome<String> {
        let mut words = said.splitn(3, ' ');
        let (Some(what), Some(name), Some(text)) = (words.next(), words.next(), words.next()) else {
            return Err(format!("there is no such line as # {said}").into());
        };
        ensure!(is_name(name, true), "{name:?} is no name of a metric");
        let family = self.families.entry(name.to_owned()).or_default();
        let field = match what {
            "TYPE" => &mut family.kind,
            "UNIT" => &mut family.unit,
            "HELP" => &mut family.help,
            _ => return Err(format!("there is no such line as # {said}").into()),
        };
        ensure!(field.is_empty() && !text.is_empty(), "# {what} of {name} is said twice, or says nothing");
        text.clone_into(field);
        Ok(name.to_owned())
    }

    fn sample(&mut self, line: &str) -> Outcome<String> {
        let end = line.find(['{', ' ']).ok_or(format!("neither labels nor a value: {line}"))?;
        let (name, rest) = line.split_at(end);
        ensure!(is_name(name, true), "{name:?} is no name of a metric: {line}");
        let (labels, rest) = match rest.strip_prefix('{') {
            Some(rest) => labels(rest).ok_or(format!("labels that cannot be read: {line}"))?,
            None => (Labels::new(), rest),
        };
        let value = rest.strip_prefix(' ').ok_or(format!("no space before the value: {line}"))?;
        let value: f64 = value.parse().doing(&format!("read the value of {line}"))?;
        let family = self.families.keys().find(|family| self.belongs(name, family)).cloned();
        let family = family.ok_or(format!("no # TYPE fits this: {line}"))?;
        let sample = Sample { name: name.to_owned(), labels, value };
        let twice = self.samples.iter().any(|s| s.name == sample.name && s.labels == sample.labels);
        ensure!(!twice, "a series is there twice: {line}");
        self.samples.push(sample);
        Ok(family)
    }

    /// Whether samples of a family of this type are named so.
    fn belongs(&self, name: &str, family: &str) -> bool {
        let (Some(suffix), Some(found)) = (name.strip_prefix(family), self.families.get(family)) else {
            return false;
        };
        match found.kind.as_str() {
            "counter" => ["_total", "_created"].contains(&suffix),
            "histogram" => ["_bucket", "_sum", "_count", "_created"].contains(&suffix),
            "gauge" => suffix.is_empty(),
            _ => false,
        }
    }

    fn check(&self) -> Outcome {
        for (name, family) in &self.families {
            ensure!(!family.kind.is_empty() && !family.help.is_empty(), "{name} has no type or no help");
            let unit = format!("_{}", family.unit);
            ensure!(family.unit.is_empty() || name.ends_with(&unit), "{name} has the unit {unit} and not in its name");
        }
        for sample in &self.samples {
            let counts = ["_total", "_bucket", "_count"].iter().any(|suffix| sample.name.ends_with(suffix));
            ensure!(!(counts && sample.value.is_sign_negative()), "a count below nothing: {sample:?}");
            if let Some(family) = sample.name.strip_suffix("_count") {
                self.check_buckets(family, sample)?;
            }
        }
        Ok(())
    }

    /// Buckets hold what the ones before them hold, and the last one holds all.
    fn check_buckets(&self, family: &str, count: &Sample) -> Outcome {
        let name = format!("{family}_bucket");
        let mut buckets = Vec::new();
        for bucket in self.samples.iter().filter(|s| s.name == name) {
            let mut labels = bucket.labels.clone();
            let bound = labels.remove("le").ok_or(format!("a bucket without a bound: {bucket:?}"))?;
            if labels == count.labels {
                let bound: f64 = bound.parse().doing(&format!("read the bound of {bucket:?}"))?;
                buckets.push((bound, bucket.value));
            }
        }
        let rising = buckets.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1);
        ensure!(rising, "the buckets of {count:?} do not rise: {buckets:?}");
        let all = buckets.last().is_some_and(|(bound, n)| bound.is_infinite() && (n - count.value).abs() < 0.5);
        ensure!(all, "the last bucket of {count:?} does not hold all: {buckets:?}");
        let sum = self.samples.iter().any(|s| s.name == format!("{family}_sum") && s.labels == count.labels);
        ensure!(sum, "{count:?} has no sum");
        Ok(())
    }
}

fn is_name(text: &str, colons: bool) -> bool {
    let letter = |c: char| c.is_ascii_alphabetic() || c == '_' || (colons && c == ':');
    text.starts_with(letter) && text.chars().all(|c| letter(c) || c.is_ascii_digit())
}

/// `a="b",c="d"}` and what follows.
fn labels(text: &str) -> Option<(Labels, &str)> {
    let mut labels = Labels::new();
    let mut rest = text;
    loop {
        let (name, after) = rest.split_once("=\"")?;
        let (value, after) = value(after)?;
        if !is_name(name, false) || labels.insert(name.to_owned(), value).is_some() {
            return None;
        }
        match after.strip_prefix(',') {
            Some(more) => rest = more,
            None => return Some((labels, after.strip_prefix('}')?)),
        }
    }
}

/// A value up to its quote, and what follows the quote.
fn value(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    loop {
        match characters.next()? {
            (at, '"') => return Some((value, text.get(at + 1..)?)),
            (_, '\\') => value.push(match characters.next()?.1 {
                'n' => '\n',
                c @ ('\\' | '"') => c,
                _ => return None,
            }),
            (_, c) => value.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "# HELP a_seconds How long.\n# TYPE a_seconds histogram\n# UNIT a_seconds seconds\n\
        a_seconds_sum{m=\"x\"} 0.5\na_seconds_count{m=\"x\"} 2\n\
        a_seconds_bucket{le=\"0.1\",m=\"x\"} 1\na_seconds_bucket{le=\"+Inf\",m=\"x\"} 2\n\
        # HELP b Some.\n# TYPE b counter\nb_total 3\n\
        # HELP c \"So\" many.\n# TYPE c gauge\nc{of=\"a\\\"b\\\\\"} 1\nc{of=\"\"} -1\n# EOF\n";

    #[test]
    fn what_is_good_is_read() {
        let read = Exposition::parse(GOOD).unwrap();
        assert_eq!(read.value("b_total", &[]), Some(3.0));
        assert_eq!(read.value("c", &[("of", "a\"b\\")]), Some(1.0));
        assert_eq!(read.value("c", &[]), None);
        assert_eq!(read.label_values("c", "of"), BTreeSet::from(["", "a\"b\\"]));
        assert_eq!(read.value("a_seconds_bucket", &[("le", "+Inf"), ("m", "x")]), Some(2.0));
    }

    #[test]
    fn what_is_not_is_refused() {
        for (what, from, to) in [
            ("no end", "# EOF\n", ""),
            ("something behind it", "# EOF\n", "# EOF\nb_total 4\n"),
            ("no type", "# TYPE b counter\n", ""),
            ("two types", "# TYPE b counter\n", "# TYPE b counter\n# TYPE b gauge\n"),
            ("no help", "# HELP b Some.\n", ""),
            ("a counter without its suffix", "b_total 3", "b 3"),
            ("a gauge with one", "c{of=\"\"} -1", "c_total{of=\"\"} -1"),
            ("a series twice", "b_total 3\n", "b_total 3\nb_total 4\n"),
            ("a unit that the name has not", "UNIT a_seconds seconds", "UNIT a_seconds bytes"),
            ("a value that is none", "b_total 3", "b_total three"),
            ("a negative count", "b_total 3", "b_total -3"),
            ("an open label", "of=\"\"", "of=\""),
            ("a label twice", "of=\"\"", "of=\"\",of=\"\""),
            ("a wrong escape", "a\\\"b", "a\\tb"),
            ("no last bucket", "a_seconds_bucket{le=\"+Inf\",m=\"x\"} 2\n", ""),
            ("a last bucket that lacks some", "+Inf\",m=\"x\"} 2", "+Inf\",m=\"x\"} 1"),
            ("buckets that fall", "le=\"0.1\",m=\"x\"} 1", "le=\"0.1\",m=\"x\"} 3"),
            ("no sum", "a_seconds_sum{m=\"x\"} 0.5\n", ""),
            ("a family in two places", "# EOF", "a_seconds_count{m=\"y\"} 0\n# EOF"),
            ("a comment", "# HELP b", "#HELP b"),
        ] {
            let bad = GOOD.replacen(from, to, 1);
            assert_ne!(bad, GOOD, "{what}");
            assert!(Exposition::parse(&bad).is_err(), "{what} is taken for good");
        }
    }
}
