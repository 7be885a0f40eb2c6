//! Messages on standard error, as few as fit whatever a guest does.
//!
//! The daemon reads the file behind standard error, and cuts it while it runs. While it does not run, nothing but this
//! module keeps a guest from filling the node's `/run`: each place in the code has a bucket of tokens for its own
//! messages, and all places share another. A message without a token is counted, and the next one from the same place
//! says how many were left out.

use std::fmt::{Arguments, Write as _};
use std::io::Write as _;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::event_loop::lock;

/// Prints a line on standard error, unless this line of code has printed too often lately. Takes what `format!` takes.
macro_rules! complain {
    ($($message:tt)*) => {{
        static PLACE: $crate::stderr::Place = $crate::stderr::Place::new();
        $crate::stderr::print(&PLACE, format_args!($($message)*));
    }};
}

/// Messages that one place prints at once, and how long it takes until it may print one more.
const PLACE_LIMIT: (u32, Duration) = (10, Duration::from_secs(10));
/// The same for all places together: a guest that makes the monitor complain for a day gets about 1 MiB out of it.
const PROCESS_LIMIT: (u32, Duration) = (100, Duration::from_secs(30));
/// Bytes of one message.
const MAX_LENGTH: usize = 300;

static PROCESS: Mutex<Bucket> = Mutex::new(Bucket::new(PROCESS_LIMIT));

/// A number of tokens that grows with time.
struct Bucket {
    most: u32,
    every: Duration,
    tokens: u32,
    /// When the tokens were counted last; `None` while the bucket is full.
    since: Option<Instant>,
}

impl Bucket {
    const fn new((most, every): (u32, Duration)) -> Self {
        Self { most, every, tokens: most, since: None }
    }

    /// Adds the tokens that time has brought until `now`; answers whether there is one.
    fn fill(&mut self, now: Instant) -> bool {
        if let Some(since) = self.since {
            let passed = now.saturating_duration_since(since);
            let grown = u32::try_from(passed.as_nanos() / self.every.as_nanos()).unwrap_or(u32::MAX);
            self.tokens = self.tokens.saturating_add(grown).min(self.most);
            self.since = since.checked_add(self.every.saturating_mul(grown)).filter(|_| self.tokens < self.most);
        }
        self.tokens > 0
    }

    /// Takes the token that [`Self::fill`] said is there.
    fn take(&mut self, now: Instant) {
        self.tokens = self.tokens.saturating_sub(1);
        self.since.get_or_insert(now);
    }
}

/// One place in the code that prints messages.
pub(crate) struct Place(Mutex<State>);

struct State {
    bucket: Bucket,
    left_out: u64,
}

impl Place {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(State { bucket: Bucket::new(PLACE_LIMIT), left_out: 0 }))
    }

    /// Whether this place may print a message now; if so, how many it has left out before.
    fn admit(&self, process: &mut Bucket, now: Instant) -> Option<u64> {
        let mut place = lock(&self.0);
        if !place.bucket.fill(now) || !process.fill(now) {
            place.left_out += 1;
            return None;
        }
        place.bucket.take(now);
        process.take(now);
        Some(std::mem::take(&mut place.left_out))
    }
}

/// Prints `message` for [`complain`].
pub(crate) fn print(place: &Place, message: Arguments<'_>) {
    let admitted = place.admit(&mut lock(&PROCESS), Instant::now());
    if let Some(left_out) = admitted {
        // A full file system must not end the VM, as `eprintln` would.
        let _ = std::io::stderr().write_all(line(message, left_out).as_bytes());
    }
}

/// The whole line, at most [`MAX_LENGTH`] bytes of it the message.
fn line(message: Arguments<'_>, left_out: u64) -> String {
    let mut line = message.to_string().replace('\n', " ");
    if line.len() > MAX_LENGTH {
        let end = (0..=MAX_LENGTH).rev().find(|end| line.is_char_boundary(*end)).unwrap_or(0);
        line.truncate(end);
        line.push_str("...");
    }
    if left_out > 0 {
        let _ = write!(line, " ({left_out} messages from this place were left out before)");
    }
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_place_prints_some_messages_at_once_and_then_few() {
        let (place, mut process) = (Place::new(), Bucket::new(PROCESS_LIMIT));
        let start = Instant::now();
        let admitted: Vec<_> = (0..1000).filter_map(|_| place.admit(&mut process, start)).collect();
        assert_eq!(admitted, [0; 10]);
        assert_eq!(place.admit(&mut process, start + 9 * SECOND), None);
        assert_eq!(place.admit(&mut process, start + 10 * SECOND), Some(991));
        assert_eq!(place.admit(&mut process, start + 19 * SECOND), None);
        let much_later = start + 1_000_000 * SECOND;
        assert_eq!((0..1000).filter_map(|_| place.admit(&mut process, much_later)).count(), 10, "never more at once");
    }

    #[test]
    fn all_places_together_are_bounded_for_a_day() {
        let (places, mut process): (Vec<_>, _) = ((0..40).map(|_| Place::new()).collect(), Bucket::new(PROCESS_LIMIT));
        let start = Instant::now();
        let mut admitted = 0_usize;
        for second in 0..86_400 {
            let now = start + second * SECOND;
            admitted += places.iter().filter_map(|place| place.admit(&mut process, now)).count();
        }
        assert!((2_900..=3_000).contains(&admitted), "{admitted}");
        assert!(admitted * (MAX_LENGTH + 100) < 2 << 20);
    }

    #[test]
    fn a_message_is_one_short_line() {
        assert_eq!(line(format_args!("a{}\nb", 1), 0), "a1 b\n");
        let long = line(format_args!("{}", "\u{e9}".repeat(1000)), 3);
        assert!(long.len() < MAX_LENGTH + 100 && long.ends_with("(3 messages from this place were left out before)\n"));
        assert!(long.contains("..."));
    }
}
