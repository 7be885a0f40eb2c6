//! Templates of microVMs, which the daemon makes in the background.

use std::time::{Duration, Instant};

use crate::openmetrics::scrape;

/// A template is made in seconds, and given up after a minute, in an emulated node.
const LIMIT: Duration = Duration::from_secs(180);

/// Waits until no template is in the making. Without a daemon none is.
pub(crate) fn settle() {
    let began = Instant::now();
    while began.elapsed() < LIMIT {
        let Ok(metrics) = scrape() else { return };
        if metrics.value("cofferdam_vm_templates_pending", &[]).is_none_or(|pending| pending == 0.0) {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
