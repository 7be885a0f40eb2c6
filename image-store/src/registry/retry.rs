//! When to ask again, and whom.

use std::collections::VecDeque;
use std::time::Duration;

use super::fault::Fault;
use super::session::Endpoint;
use crate::config::Timeouts;

/// Tries without progress: with the pauses between them some seconds, in which a registry can
/// restart.
const ATTEMPTS: u32 = 4;
/// The same with other endpoints to ask.
const ATTEMPTS_WITH_OTHERS: u32 = 2;
/// The longest that a registry may ask to be left alone for: longer, and the pull fails, so that
/// the kubelet tells the user and tries again.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);
/// With other endpoints to ask, more than a moment is too long.
const MAX_WITH_OTHERS: Duration = Duration::from_secs(1);

/// An endpoint's place in the queue of one request.
pub(super) struct Turn<'a> {
    pub(super) endpoint: &'a Endpoint,
    /// It was passed over for its silence, and is asked once more with all the time there is.
    second: bool,
}

/// Pauses between the tries at one endpoint.
pub(super) struct Retry {
    first: Duration,
    wait: Duration,
    attempt: u32,
}

impl<'a> Turn<'a> {
    pub(super) fn first(endpoint: &'a Endpoint) -> Self {
        Self { endpoint, second: false }
    }

    /// Whether the endpoint gets the shorter time, since there are others.
    pub(super) fn short(&self, queue: &VecDeque<Self>) -> bool {
        !self.second && queue.iter().any(|other| !other.second)
    }

    /// The later turn of an endpoint that was not given all the time there is.
    pub(super) fn again(&self, fault: &Fault, queue: &VecDeque<Self>) -> Option<Self> {
        let silent = matches!(fault, Fault::Silent(_));
        (silent && self.short(queue) && !self.endpoint.place.origin)
            .then_some(Self { endpoint: self.endpoint, second: true })
    }
}

impl Retry {
    pub(super) fn new(timeouts: &Timeouts) -> Self {
        Self { first: timeouts.retry, wait: timeouts.retry, attempt: 1 }
    }

    /// Something came since the last failure.
    pub(super) fn progress(&mut self) {
        (self.attempt, self.wait) = (1, self.first);
    }

    /// How long to wait before this endpoint is asked again; `None` to leave it. `last`: there is
    /// no other to ask.
    pub(super) fn after(&mut self, fault: &Fault, last: bool) -> Option<Duration> {
        let asked = match fault {
            Fault::Passing(_, asked) => asked.unwrap_or_default(),
            _ => return None,
        };
        let longest = if last { MAX_RETRY_AFTER } else { MAX_WITH_OTHERS };
        let attempts = if last { ATTEMPTS } else { ATTEMPTS_WITH_OTHERS };
        if self.attempt >= attempts || asked > longest {
            return None;
        }
        let wait = self.wait.max(asked);
        self.attempt += 1;
        self.wait *= 4;
        Some(wait)
    }
}
