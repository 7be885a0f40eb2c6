//! Every interleaving of a device that serves a queue with Linux's driver, in small numbers.
//!
//! The device's decisions are those of [`Turn`], which [`super::QueueLine`] runs on; the ring and the driver are
//! modelled. Each step below is one access to memory that both sides share, so whatever two processors can do in
//! sequentially consistent memory is one path through the states. A state in which neither side has a step left
//! although a chain waits is a queue that hangs for ever.

use std::collections::{HashMap, VecDeque};

use super::turn::{Next, Turn};

/// Where the device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Device {
    /// Waits for the kick.
    Sleeps,
    /// Is about to look at the available index.
    Looks,
    /// Is about to write `avail_event`.
    Asks,
    /// Is about to look whether there is more nevertheless.
    Checks,
}

/// What both sides share, and where each of them is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct State {
    available: u16,
    avail_event: u16,
    next_available: u16,
    kicked: bool,
    device: Device,
    turn: Turn,
    used: u16,
    /// The driver has added a chain and not yet decided whether to kick; the index before it.
    deciding: Option<u16>,
}

struct Model {
    budget: usize,
    chains: u16,
    ring: u16,
    /// How a turn reacts to what the ring says.
    asked: fn(&mut Turn, more: bool, budget: usize) -> Next,
}

impl Model {
    /// Explores all states; answers how many there are, and a shortest way into a hang, if there is one.
    fn explore(&self) -> (usize, Option<Vec<State>>) {
        let start = State {
            available: 0,
            avail_event: 0,
            next_available: 0,
            kicked: false,
            device: Device::Sleeps,
            turn: Turn::new(self.budget),
            used: 0,
            deciding: None,
        };
        let mut from: HashMap<State, Option<State>> = HashMap::from([(start, None)]);
        let mut open = VecDeque::from([start]);
        while let Some(state) = open.pop_front() {
            let next: Vec<State> = self.driver(state).into_iter().chain(self.device(state)).collect();
            if next.is_empty() && state.used < self.chains {
                let way = std::iter::successors(Some(state), |state| from[state]).collect();
                return (from.len(), Some(way));
            }
            for new in next {
                from.entry(new).or_insert_with(|| {
                    open.push_back(new);
                    Some(state)
                });
            }
        }
        (from.len(), None)
    }

    /// `virtqueue_add` while there is room, then `virtqueue_kick_prepare` with `vring_need_event`.
    fn driver(&self, mut state: State) -> Option<State> {
        match state.deciding.take() {
            Some(before) => {
                let passed = state.available - before;
                state.kicked |= state.available.wrapping_sub(state.avail_event).wrapping_sub(1) < passed;
                Some(state)
            }
            None if state.available < self.chains && state.available - state.used < self.ring => {
                state.deciding = Some(state.available);
                state.available += 1;
                Some(state)
            }
            None => None,
        }
    }

    fn device(&self, mut state: State) -> Option<State> {
        let more = state.available != state.next_available;
        let next = match state.device {
            Device::Sleeps if !state.kicked => return None,
            Device::Sleeps => {
                state.kicked = false;
                state.turn = Turn::new(self.budget);
                Next::LookAgain
            }
            Device::Looks if more => {
                state.next_available += 1;
                state.used += 1;
                state.turn.served()
            }
            Device::Looks => {
                state.device = Device::Asks;
                return Some(state);
            }
            Device::Asks => {
                state.avail_event = state.next_available;
                state.device = Device::Checks;
                return Some(state);
            }
            Device::Checks => (self.asked)(&mut state.turn, more, self.budget),
        };
        state.device = match next {
            Next::Look | Next::LookAgain => Device::Looks,
            Next::Sleep => Device::Sleeps,
            Next::KickAgain => {
                state.kicked = true;
                Device::Sleeps
            }
        };
        Some(state)
    }
}

const SIZES: [(usize, u16, u16); 4] = [(2, 6, 2), (3, 8, 2), (4, 9, 4), (1, 5, 3)];

#[test]
fn no_interleaving_loses_a_kick() {
    for (budget, chains, ring) in SIZES {
        let model = Model { budget, chains, ring, asked: |turn, more, _| turn.asked(more) };
        let (states, hang) = model.explore();
        assert_eq!(hang, None, "budget {budget}, {chains} chains, ring of {ring}");
        assert!(states > 100, "the model explores something: {states} states");
    }
}

/// The model can see a lost kick: a turn that gives up when its first look finds nothing, as if the ring were broken,
/// hangs after a turn that ended for its budget and so left `avail_event` behind.
#[test]
fn the_model_finds_the_kick_that_is_lost_without_a_second_look() {
    let careless = |turn: &mut Turn, more: bool, budget: usize| {
        if *turn == Turn::new(budget) { Next::Sleep } else { turn.asked(more) }
    };
    let hangs = SIZES.iter().filter(|(budget, chains, ring)| {
        let model = Model { budget: *budget, chains: *chains, ring: *ring, asked: careless };
        model.explore().1.is_some()
    });
    assert_eq!(hangs.count(), SIZES.len());
}

/// What a broken ring costs: it says "more" for ever and never has a chain.
#[test]
fn a_ring_that_promises_and_does_not_give_is_left_alone() {
    let mut turn = Turn::new(8);
    assert_eq!(turn.asked(true), Next::LookAgain);
    assert_eq!(turn.asked(true), Next::Sleep);
}
