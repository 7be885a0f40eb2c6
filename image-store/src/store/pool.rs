//! A counted resource that threads wait for in the order in which they asked.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, Thread};
use std::time::Duration;

use crate::lock::lock;

/// How often a thread that waits looks whether it still wants to.
const LOOK: Duration = Duration::from_millis(100);

/// The resource.
pub(crate) struct Pool {
    size: usize,
    line: Mutex<Line>,
}

struct Line {
    free: usize,
    /// The largest amount that was in use at one time.
    peak: usize,
    waiting: VecDeque<Arc<Waiter>>,
}

struct Waiter {
    amount: usize,
    served: AtomicBool,
    thread: Thread,
}

/// A part of the pool, given back when it is dropped.
pub(crate) struct Share {
    pool: Arc<Pool>,
    amount: usize,
}

impl Pool {
    pub(crate) fn new(size: usize) -> Arc<Self> {
        Arc::new(Self { size, line: Mutex::new(Line { free: size, peak: 0, waiting: VecDeque::new() }) })
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        lock(&self.line)
    }

    /// Waits for `amount`, or for the whole pool when that is less. `waiting` is asked again and
    /// again meanwhile; when it says false, the thread gives up and gets `None`. Blocks the thread.
    pub(crate) fn take(self: &Arc<Self>, amount: usize, mut waiting: impl FnMut() -> bool) -> Option<Share> {
        let amount = amount.min(self.size);
        let waiter = {
            let mut line = self.line();
            if line.waiting.is_empty() && line.free >= amount {
                line.use_up(amount, self.size);
                return Some(Share { pool: self.clone(), amount });
            }
            let waiter = Arc::new(Waiter { amount, served: AtomicBool::new(false), thread: thread::current() });
            line.waiting.push_back(waiter.clone());
            waiter
        };
        loop {
            thread::park_timeout(LOOK);
            if waiter.served.load(SeqCst) {
                return Some(Share { pool: self.clone(), amount });
            }
            if !waiting() {
                let mut line = self.line();
                if waiter.served.load(SeqCst) {
                    line.free += amount;
                }
                line.waiting.retain(|other| !Arc::ptr_eq(other, &waiter));
                line.serve(self.size);
                return None;
            }
        }
    }

    /// Whether somebody waits.
    pub(crate) fn wanted(&self) -> bool {
        !self.line().waiting.is_empty()
    }

    /// The largest amount that was in use at one time.
    #[cfg(test)]
    pub(crate) fn peak(&self) -> usize {
        self.line().peak
    }
}

impl Line {
    fn use_up(&mut self, amount: usize, size: usize) {
        self.free -= amount;
        self.peak = self.peak.max(size - self.free);
    }

    fn serve(&mut self, size: usize) {
        while let Some(first) = self.waiting.front().filter(|first| first.amount <= self.free).cloned() {
            self.waiting.pop_front();
            self.use_up(first.amount, size);
            first.served.store(true, SeqCst);
            first.thread.unpark();
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut line = self.pool.line();
        line.free += self.amount;
        line.serve(self.pool.size);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn threads_are_served_in_the_order_in_which_they_asked() {
        let pool = Pool::new(4);
        let all = pool.take(4, || true).unwrap();
        let (sender, served) = mpsc::channel();
        let threads: Vec<_> = [3, 1, 4]
            .into_iter()
            .enumerate()
            .map(|(place, amount)| {
                while pool.line().waiting.len() < place {
                    thread::yield_now();
                }
                let (pool, sender) = (pool.clone(), sender.clone());
                thread::spawn(move || {
                    let share = pool.take(amount, || true).unwrap();
                    sender.send(amount).unwrap();
                    drop(share);
                })
            })
            .collect();
        while pool.line().waiting.len() < 3 {
            thread::yield_now();
        }
        assert!(pool.wanted());
        drop(all);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let order: Vec<_> = served.try_iter().collect();
        assert_eq!(order[2], 4, "the first two fit together: {order:?}");
        assert!(!pool.wanted() && pool.line().free == 4 && pool.peak() == 4);
    }

    #[test]
    fn who_gives_up_holds_up_nobody() {
        let pool = Pool::new(2);
        let one = pool.take(1, || true).unwrap();
        assert!(pool.take(2, || false).is_none());
        let other = pool.take(1, || true).unwrap();
        drop((one, other));
        // More than there is means all of it.
        assert_eq!(pool.take(9, || true).unwrap().amount, 2);
    }
}
