//! Templates of microVMs, which the daemon makes in the background.

use std::time::Duration;

use crate::crictl::wait_within;
use crate::openmetrics::scrape;

/// A template is made in seconds, and given up after a minute, in an emulated node.
const LIMIT: Duration = Duration::from_secs(180);

/// Waits until no template is in the making. Without a daemon none is.
pub(crate) fn settle() {
    let is_settled = || {
        let Ok(metrics) = scrape() else { return Ok(true) };
        Ok(metrics.value("cofferdam_vm_templates_pending", &[]).is_none_or(|pending| pending == 0.0))
    };
    if let Err(failure) = wait_within(LIMIT, Duration::from_millis(100), "templates to be made", is_settled) {
        println!("{failure}");
    }
}
