//! The exit report, and errors as one line.

use std::error::Error;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use cofferdam_proto::monitor::{ExitReason, ExitReport};

use crate::devices::serial::SerialPort;
use crate::ending::End;
use crate::event_loop::lock;
use crate::timeline::Timeline;

/// Console output in a crash's report.
const LAST_WORDS: usize = 2048;

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

/// Who writes the exit report: once, by whichever thread comes first.
pub(crate) struct Reporter {
    file: File,
    serial: Arc<Mutex<SerialPort>>,
    timeline: Arc<Timeline>,
    /// Whether it was written, once that was tried.
    written: Mutex<Option<bool>>,
}

impl Reporter {
    /// Will write to `file`; of a crash also how far the guest came by `timeline`, and the last lines of the console `serial`.
    pub(crate) fn new(file: File, serial: Arc<Mutex<SerialPort>>, timeline: Arc<Timeline>) -> Self {
        Self { file, serial, timeline, written: Mutex::new(None) }
    }

    /// Writes the report unless that was done; false if it could not be written.
    pub(crate) fn tell(&self, end: &End) -> bool {
        let mut written = lock(&self.written);
        *written.get_or_insert_with(|| {
            let end = self.with_history(end.clone());
            let result = write(&self.file, &end);
            // Not by `eprintln`, which panics when standard error takes nothing.
            let mut stderr = io::stderr();
            if end.reason != ExitReason::PowerOff {
                let _ = writeln!(stderr, "the VM ended: {:?}: {}", end.reason, end.detail);
            }
            if let Err(error) = &result {
                let _ = writeln!(stderr, "cannot write the exit report: {error}");
            }
            result.is_ok()
        })
    }

    fn with_history(&self, mut end: End) -> End {
        if matches!(end.reason, ExitReason::GuestReset | ExitReason::TripleFault | ExitReason::MonitorError) {
            end.detail = format!("{}; {}", end.detail, self.timeline.summary());
            let words = lock(&self.serial).tail(LAST_WORDS);
            if !words.trim().is_empty() {
                end.detail = format!("{}; console:\n{}", end.detail, words.trim_end());
            }
        }
        end
    }
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
    fn the_first_to_tell_writes_the_report() {
        let mut file = tempfile::tempfile().unwrap();
        let serial = Arc::new(Mutex::new(SerialPort::new().unwrap()));
        let reporter = Reporter::new(file.try_clone().unwrap(), serial.clone(), Arc::new(Timeline::new()));
        b"Oops".iter().for_each(|byte| lock(&serial).write(0, *byte));
        assert!(reporter.tell(&End { reason: ExitReason::GuestReset, detail: "one".into() }));
        assert!(reporter.tell(&End { reason: ExitReason::Killed, detail: "two".into() }));
        let mut text = String::new();
        std::io::Seek::rewind(&mut file).unwrap();
        file.read_to_string(&mut text).unwrap();
        let report: ExitReport = serde_json::from_str(&text).unwrap();
        assert_eq!(report.reason, ExitReason::GuestReset);
        assert!(report.detail.starts_with("one; the vCPUs started never, "), "{}", report.detail);
        assert!(report.detail.ends_with("; console:\nOops"), "{}", report.detail);
    }

    #[test]
    fn causes_follow_each_once() {
        let inner = io::Error::other("disk on fire");
        let outer = crate::vm::VmError::Io { step: "open the pod's disk", source: inner };
        assert_eq!(chain(&outer), "cannot open the pod's disk: disk on fire");
    }
}
