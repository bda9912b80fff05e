//! What was pinned: its window, its reason, and its files once they are encoded.
//!
//! In: pins, and the slices that come after them. Out: captures by id. Never: more than [`MAX_CAPTURES`] of them, nor more
//! than [`MAX_BYTES`] of files and slices; the oldest complete one goes first.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::Work;
use super::ring::Slice;
use crate::time::{Moment, Now, Timestamp};

pub(super) const MAX_CAPTURES: usize = 16;
pub(super) const MAX_BYTES: usize = 16 << 20;
/// What one capture may hold before it is encoded: twice the ring's default.
const MAX_SLICE_BYTES: usize = 8 << 20;

/// One encoded part of a capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::agent) struct File {
    pub(super) name: &'static str,
    pub(super) content: Bytes,
}

impl File {
    pub(in crate::agent) fn new(name: &'static str, content: Vec<u8>) -> Self {
        Self { name, content: content.into() }
    }
}

/// A pinned window.
#[derive(Clone, Debug)]
pub(super) struct Capture {
    pub(super) id: u64,
    pub(super) reason: String,
    pub(super) asked: Timestamp,
    pub(super) files: Vec<File>,
    /// What it has to do without, for people.
    pub(super) missing: Vec<String>,
    slices: Vec<Arc<Slice>>,
    /// How many slices the files are of.
    encoded: usize,
    collects: Collects,
}

/// Whether slices are still added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Collects {
    Until(Moment),
    /// All slices are there; the files are of all of them as soon as they are encoded.
    No,
}

impl Capture {
    pub(super) const fn is_complete(&self) -> bool {
        matches!(self.collects, Collects::No)
    }

    /// Of its files, and of the slices that it holds beside the ring.
    fn bytes(&self) -> usize {
        let files: usize = self.files.iter().map(|file| file.content.len()).sum();
        files + self.slice_bytes()
    }

    fn slice_bytes(&self) -> usize {
        self.slices.iter().map(|slice| slice.bytes).sum()
    }
}

/// All captures, oldest first.
#[derive(Debug)]
pub(super) struct Captures {
    next_id: u64,
    all: VecDeque<Capture>,
}

impl Captures {
    pub(super) const fn new(next_id: u64) -> Self {
        Self { next_id, all: VecDeque::new() }
    }

    /// Begins a capture with what the ring has; its id, and the work of encoding that at once.
    pub(super) fn open(
        &mut self,
        reason: String,
        slices: Vec<Arc<Slice>>,
        now: Now,
        after: Duration,
    ) -> (u64, Work) {
        let id = self.next_id;
        self.next_id += 1;
        let work = Work { id, slices: slices.clone() };
        self.all.push_back(Capture {
            id,
            reason,
            asked: now.wall,
            files: Vec::new(),
            missing: Vec::new(),
            slices,
            encoded: 0,
            collects: Collects::Until(now.monotonic + after),
        });
        self.make_room();
        (id, work)
    }

    /// Gives a slice to those that still collect; the work of encoding those that are now complete.
    pub(super) fn add(&mut self, slice: &Arc<Slice>) -> Vec<Work> {
        let mut due = Vec::new();
        for capture in &mut self.all {
            let Collects::Until(end) = capture.collects else { continue };
            capture.slices.push(slice.clone());
            let is_full = capture.slice_bytes() > MAX_SLICE_BYTES;
            if is_full {
                tracing::warn!(id = capture.id, "a capture ends early: it holds as much as it may");
            }
            if slice.until.monotonic >= end || is_full {
                capture.collects = Collects::No;
                due.push(Work { id: capture.id, slices: std::mem::take(&mut capture.slices) });
            }
        }
        due
    }

    /// Takes the files of a capture, unless it is gone or has files of more slices; a copy of it.
    pub(super) fn put(
        &mut self,
        work: &Work,
        files: Vec<File>,
        missing: Vec<String>,
    ) -> Option<Capture> {
        let encoded = work.slices.len();
        let capture = self.find_mut(work.id).filter(|capture| encoded >= capture.encoded)?;
        capture.encoded = encoded;
        capture.files = files;
        capture.missing = missing;
        let copy = Capture { slices: Vec::new(), ..capture.clone() };
        self.make_room();
        Some(copy)
    }

    /// Adds to what a capture has to do without.
    pub(super) fn missed(&mut self, id: u64, what: &str) {
        if let Some(capture) = self.find_mut(id) {
            capture.missing.push(what.to_owned());
        }
    }

    pub(super) fn remove(&mut self, id: u64) -> bool {
        let before = self.all.len();
        self.all.retain(|capture| capture.id != id);
        self.all.len() < before
    }

    pub(super) fn find(&self, id: u64) -> Option<&Capture> {
        self.all.iter().find(|capture| capture.id == id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Capture> {
        self.all.iter()
    }

    fn find_mut(&mut self, id: u64) -> Option<&mut Capture> {
        self.all.iter_mut().find(|capture| capture.id == id)
    }

    fn make_room(&mut self) {
        let bytes = |all: &VecDeque<Capture>| all.iter().map(Capture::bytes).sum::<usize>();
        while self.all.len() > MAX_CAPTURES || bytes(&self.all) > MAX_BYTES {
            let oldest = self.all.iter().position(Capture::is_complete).unwrap_or(0);
            if self.all.len() == 1 || self.all.remove(oldest).is_none() {
                return;
            }
        }
    }
}
