//! How much of the file server one place may hold.
//!
//! A place is a file system of the node (or a name in the share, whose file system is not known before it was asked). Only
//! [`LIMIT`] requests of a place are carried out at once; the others wait here for their turn. So a file system that never
//! answers holds [`LIMIT`] threads, and the rest serve everything else.

use std::collections::{HashMap, VecDeque};

/// Requests of one place that are carried out at once.
pub(super) const LIMIT: usize = 4;

/// Where a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Place {
    /// A file system, by its device number.
    Device(u32, u32),
    /// A request about the share's own directories, by a hash of it: names there are mounts, and any of them may hang.
    Share(u64),
}

/// What is carried out and what waits, by place.
pub(super) struct Places<T> {
    busy: HashMap<Place, Queue<T>>,
    waiting: usize,
}

struct Queue<T> {
    active: usize,
    waiting: VecDeque<T>,
}

impl<T> Default for Places<T> {
    fn default() -> Self {
        Self { busy: HashMap::new(), waiting: 0 }
    }
}

impl<T> Places<T> {
    /// Gives `request` back if it may be carried out now; it must [`Self::leave`] afterwards. Keeps it otherwise.
    pub(super) fn enter(&mut self, place: Place, request: T) -> Option<T> {
        let queue = self.busy.entry(place).or_insert_with(|| Queue { active: 0, waiting: VecDeque::new() });
        if queue.active < LIMIT {
            queue.active += 1;
            return Some(request);
        }
        queue.waiting.push_back(request);
        self.waiting += 1;
        None
    }

    /// A request of `place` was carried out. Answers the next one, which takes its turn and must leave too.
    pub(super) fn leave(&mut self, place: Place) -> Option<T> {
        let queue = self.busy.get_mut(&place)?;
        if let Some(next) = queue.waiting.pop_front() {
            self.waiting -= 1;
            return Some(next);
        }
        queue.active -= 1;
        if queue.active == 0 {
            self.busy.remove(&place);
        }
        None
    }

    /// How many requests wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever comes and goes: nothing is lost or overtaken within its place, no place exceeds its limit, and nothing waits at
        /// a place that has room.
        #[test]
        fn a_place_never_holds_more_than_its_limit(steps in prop::collection::vec((0..3_u32, any::<bool>()), 0..200)) {
            let mut places = Places::default();
            let mut active = [0_usize; 3];
            let mut expected: [VecDeque<usize>; 3] = Default::default();
            for (number, (at, arrives)) in steps.into_iter().enumerate() {
                let (place, at) = (Place::Device(at, 0), at as usize);
                if arrives {
                    match places.enter(place, number) {
                        Some(given) => {
                            prop_assert_eq!(given, number);
                            active[at] += 1;
                        }
                        None => expected[at].push_back(number),
                    }
                } else if active[at] > 0 {
                    let next = places.leave(place);
                    prop_assert_eq!(next, expected[at].pop_front());
                    active[at] -= usize::from(next.is_none());
                }
                prop_assert!(active[at] <= LIMIT);
                prop_assert!(expected[at].is_empty() || active[at] == LIMIT);
                prop_assert_eq!(places.waiting(), expected.iter().map(VecDeque::len).sum::<usize>());
                prop_assert_eq!(places.busy.len(), active.iter().filter(|count| **count > 0).count());
            }
        }
    }
}
