//! When a device that serves a queue may stop: the decisions of one turn, apart from the ring.
//!
//! A device that goes to sleep must be sure that the driver will kick it. With `VIRTIO_F_EVENT_IDX` the driver kicks
//! only for the chain that `avail_event` names, so the device names the next chain, and then looks at the ring once
//! more: what the driver added in between came without a kick. [`Turn::asked`] must never answer [`Next::Sleep`] for
//! such a chain. The exhaustive model in `model.rs` runs this very code against a driver.

/// What comes next in a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Next {
    /// Look at the ring for a chain.
    Look,
    /// The same, after the driver was asked to kick: it need not, as the device is awake.
    LookAgain,
    /// The turn has served enough: make the kick readable, and return.
    KickAgain,
    /// Return. The driver will kick for the next chain.
    Sleep,
}

/// One turn so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Turn {
    /// Chains that this turn may still serve.
    left: usize,
    /// The ring said that it has a chain, and none was taken since.
    promised: bool,
}

impl Turn {
    /// A turn that serves `budget` chains at most.
    pub(super) fn new(budget: usize) -> Self {
        Self { left: budget, promised: false }
    }

    /// A chain was taken and served.
    pub(super) fn served(&mut self) -> Next {
        self.promised = false;
        self.left = self.left.saturating_sub(1);
        if self.left == 0 { Next::KickAgain } else { Next::Look }
    }

    /// The ring had no chain, so the driver was asked to kick for the next one; `more` says whether the ring has one
    /// nevertheless. A ring that promises a chain and then has none is broken, and would promise for ever: the device
    /// leaves it alone until the next kick.
    pub(super) fn asked(&mut self, more: bool) -> Next {
        if more && !std::mem::replace(&mut self.promised, true) { Next::LookAgain } else { Next::Sleep }
    }
}
