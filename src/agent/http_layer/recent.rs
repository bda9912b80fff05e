//! What an endpoint's histograms had counted about a minute ago.
//!
//! In: a snapshot every 10 s. Out: the oldest of six, so that the difference to now covers the last 50 to 60 s. Never: more
//! than six snapshots; an endpoint that is younger has counted nothing before.

use crate::signals::exponential::Snapshot;

const SNAPSHOTS: usize = 6;

/// A ring of snapshots.
#[derive(Debug)]
pub(super) struct Recent {
    snapshots: Box<[Snapshot; SNAPSHOTS]>,
    oldest: usize,
}

impl Default for Recent {
    fn default() -> Self {
        Self { snapshots: Box::new(std::array::from_fn(|_| Snapshot::default())), oldest: 0 }
    }
}

impl Recent {
    /// The counts before the window.
    pub(super) fn before(&self) -> &Snapshot {
        &self.snapshots[self.oldest]
    }

    /// The oldest snapshot, to be overwritten with the newest.
    pub(super) fn oldest(&mut self) -> &mut Snapshot {
        let oldest = self.oldest;
        self.oldest = (oldest + 1) % SNAPSHOTS;
        &mut self.snapshots[oldest]
    }
}
