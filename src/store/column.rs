//! The older readings of one series, packed: each as its difference to the one after it.
//!
//! In: a reading and the one after it. Out: the readings from the newest back, every bit as it was. Never: a rounded value.
//!
//! An entry is: the difference, 0 to 8 bytes, its low bytes first; for a reading with times of its own those; one byte that
//! says how to read it. Entries are read from the end, where the newest is. A counter that grew by less than 256 takes 2
//! bytes of the 24 that it would take as a point.

use crate::time::Timestamp;

/// The buffer grows by this much: an allocator's step between small sizes.
const STEP: usize = 16;

/// Low bits of the last byte: the bytes of the difference.
const LENGTH: u8 = 0b0000_1111;
/// Which difference it is; without any of the two the bits of both values, combined by exclusive or.
const GREW: u8 = 0b0001_0000;
const FELL: u8 = 0b0010_0000;
/// Number and source time follow the difference, since they are not those of the batch before.
const OWN_TIMES: u8 = 0b0100_0000;

/// A number and a source time.
const TIMES_BYTES: usize = size_of::<u32>() + size_of::<i64>();

/// Whole numbers up to here are exact as `f64`.
const LARGEST_WHOLE: u64 = 1 << 53;

/// One reading, without what its batch knows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Reading {
    /// The number of its batch.
    pub(super) number: u32,
    /// Its source time, where that is kept beside it and not with its batch.
    pub(super) own_at: Option<Timestamp>,
    pub(super) value: f64,
}

/// Packed readings, the oldest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Column(Vec<u8>);

impl Column {
    /// Adds a reading that is newer than all here and older than `next`.
    pub(super) fn push(&mut self, reading: Reading, at: Timestamp, next: Reading) {
        let (kind, difference) = difference(reading.value, next.value);
        let zeros = difference.leading_zeros() / 8;
        let length = 8 - u8::try_from(zeros).expect("64 bits are 8 bytes");
        let own_times = reading.own_at.is_some() || reading.number + 1 != next.number;
        let times = if own_times { TIMES_BYTES } else { 0 };
        self.make_room(usize::from(length) + times + 1);
        self.0.extend(difference.to_le_bytes().iter().take(length.into()));
        if own_times {
            self.0.extend(reading.number.to_le_bytes());
            self.0.extend(at.as_millis().to_le_bytes());
        }
        self.0.push(length | kind | if own_times { OWN_TIMES } else { 0 });
    }

    fn make_room(&mut self, bytes: usize) {
        let wanted = self.0.len() + bytes;
        if wanted > self.0.capacity() {
            self.0.reserve_exact(wanted.next_multiple_of(STEP) - self.0.len());
        }
    }

    /// The readings before `newest`, the newest first.
    pub(super) fn back_from(&self, newest: Reading) -> Back<'_> {
        Back { bytes: &self.0, after: newest }
    }

    /// Forgets the readings of batches before `oldest`; whether there were any.
    pub(super) fn forget_before(&mut self, oldest: u32, newest: Reading) -> bool {
        let first_wanted = self.first_wanted(oldest, newest.number).unwrap_or(0);
        self.0.drain(..first_wanted);
        if self.0.capacity() > 2 * self.0.len() + STEP {
            self.0.shrink_to(self.0.len().next_multiple_of(STEP));
        }
        first_wanted > 0
    }

    /// Where the entries of batches from `oldest` on start. Reads no values: every batch asks this of every series.
    fn first_wanted(&self, oldest: u32, mut number: u32) -> Option<usize> {
        let mut start = self.0.len();
        while start > 0 {
            let how = *self.0.get(start - 1)?;
            let mut bytes = usize::from(how & LENGTH) + 1;
            number = number.wrapping_sub(1);
            if how & OWN_TIMES != 0 {
                let times = start.checked_sub(1 + TIMES_BYTES)?;
                number = u32::from_le_bytes(*self.0.get(times..)?.first_chunk()?);
                bytes += TIMES_BYTES;
            }
            if number < oldest {
                break;
            }
            start = start.checked_sub(bytes)?;
        }
        Some(start)
    }

    pub(super) fn clear(&mut self) {
        self.0 = Vec::new();
    }

    /// Bytes on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        self.0.capacity()
    }
}

/// Walks back over a [`Column`].
pub(super) struct Back<'c> {
    /// The entries that are still to come.
    bytes: &'c [u8],
    after: Reading,
}

impl Iterator for Back<'_> {
    type Item = Reading;

    fn next(&mut self) -> Option<Reading> {
        let (&how, mut rest) = self.bytes.split_last()?;
        let mut number = self.after.number.wrapping_sub(1);
        let mut own_at = None;
        if how & OWN_TIMES != 0 {
            let (before, at) = rest.split_last_chunk()?;
            let (before, own_number) = before.split_last_chunk()?;
            own_at = Some(Timestamp::from_millis(i64::from_le_bytes(*at)));
            number = u32::from_le_bytes(*own_number);
            rest = before;
        }
        let length = usize::from(how & LENGTH);
        let (before, low) = rest.split_at_checked(rest.len().checked_sub(length)?)?;
        let mut wide = [0; 8];
        wide.get_mut(..length)?.copy_from_slice(low);
        let value = undo(how, u64::from_le_bytes(wide), self.after.value);
        self.bytes = before;
        self.after = Reading { number, own_at, value };
        Some(self.after)
    }
}

/// How a value became the next one.
fn difference(value: f64, next: f64) -> (u8, u64) {
    match (whole(value), whole(next)) {
        (Some(value), Some(next)) if value <= next => (GREW, value.abs_diff(next)),
        (Some(value), Some(next)) => (FELL, value.abs_diff(next)),
        _ => (0, value.to_bits() ^ next.to_bits()),
    }
}

/// The value that became `next`.
fn undo(how: u8, difference: u64, next: f64) -> f64 {
    let shift = |by: i64| float(truncated(next).wrapping_add(by));
    match how & (GREW | FELL) {
        GREW => shift(difference.cast_signed().wrapping_neg()),
        FELL => shift(difference.cast_signed()),
        _ => f64::from_bits(next.to_bits() ^ difference),
    }
}

/// The value as a whole number, if that says all of it: -0 is none.
fn whole(value: f64) -> Option<i64> {
    let whole = truncated(value);
    let exact = float(whole).to_bits() == value.to_bits();
    (exact && whole.unsigned_abs() <= LARGEST_WHOLE).then_some(whole)
}

#[expect(clippy::cast_possible_truncation, reason = "the caller compares, or knows it is whole")]
fn truncated(value: f64) -> i64 {
    value as i64
}

fn float(whole: i64) -> f64 {
    whole as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes that each of the values but the newest takes, after all came back as they were.
    fn check(values: &[f64], expected_bytes: usize) {
        let reading = |(number, &value): (u32, &f64)| Reading { number, own_at: None, value };
        let readings: Vec<Reading> = (1..).zip(values).map(reading).collect();
        let mut column = Column::default();
        for pair in readings.windows(2) {
            column.push(pair[0], Timestamp::default(), pair[1]);
        }
        let newest = *readings.last().expect("a newest value");
        let back: Vec<_> =
            column.back_from(newest).map(|r| (r.number, r.value.to_bits())).collect();
        let before = readings.iter().rev().skip(1);
        assert_eq!(back, before.map(|r| (r.number, r.value.to_bits())).collect::<Vec<_>>());
        assert_eq!(column.0.len(), expected_bytes, "{values:?}");
    }

    #[test]
    fn a_value_takes_what_it_moved() {
        check(&[4.0, 4.0, 4.0], 2);
        check(&[100.0, 355.0, 100.0], 4);
        check(&[100.0, 356.0], 3);
        check(&[0.1, 0.1], 1);
        check(&[60e6, 120e6], 5);
    }

    #[test]
    fn extreme_values_come_back_bit_by_bit() {
        let largest = 9_007_199_254_740_992.0;
        check(&[largest, -largest, largest + 2.0, largest], 8 + 9 + 2);
        check(&[0.0, -0.0], 9);
        check(&[f64::MAX, f64::MIN_POSITIVE], 9);
    }
}
