//! The last word: the exit report, and errors as one line.

use std::error::Error;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{SystemTime, UNIX_EPOCH};

use cofferdam_proto::monitor::ExitReport;

use crate::ending::End;

/// Writes the report of `end` to `file`, durably enough to outlive this process.
pub(crate) fn write(file: &File, end: &End) -> io::Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let report = ExitReport {
        reason: end.reason,
        detail: end.detail.clone(),
        at_unix_nanos: i64::try_from(now.as_nanos()).unwrap_or(i64::MAX),
    };
    let bytes = serde_json::to_vec(&report).map_err(io::Error::other)?;
    file.set_len(0)?;
    file.write_all_at(&bytes, 0)
}

/// `error` and its causes, each once.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.ends_with(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use cofferdam_proto::monitor::ExitReason;

    use super::*;

    #[test]
    fn the_report_replaces_what_was_there() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all_at(&[b'x'; 4096], 0).unwrap();
        let end = End { reason: ExitReason::TripleFault, detail: "why".into() };
        write(&file, &end).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        let report: ExitReport = serde_json::from_str(&text).unwrap();
        assert_eq!((report.reason, report.detail.as_str()), (end.reason, "why"));
        assert!(report.at_unix_nanos > 1_700_000_000_000_000_000);
    }

    #[test]
    fn causes_follow_each_once() {
        let inner = io::Error::other("disk on fire");
        let outer = crate::vm::VmError::Io { step: "open the pod's disk", source: inner };
        assert_eq!(chain(&outer), "cannot open the pod's disk: disk on fire");
    }
}
