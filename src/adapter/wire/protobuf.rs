//! Writes protobuf messages the way Kubernetes does: fields in the order of their numbers, and an empty text or a zero as
//! well, where its Go field is no pointer.
//!
//! In: field numbers and values. Out: bytes. Never: a copy of a value before it is written.

use std::time::Duration;

use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

use crate::quantity::Quantity;
use crate::sample::Labels;
use crate::time::Timestamp;

/// A message that is being written.
#[derive(Debug, Default)]
pub(super) struct Message(Vec<u8>);

impl Message {
    /// Goes on after what is written already.
    pub(super) const fn continued(written: Vec<u8>) -> Self {
        Self(written)
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    pub(super) fn reserve(&mut self, bytes: usize) {
        self.0.reserve(bytes);
    }

    /// The key and the length of a field whose bytes follow.
    pub(super) fn head_of_field(&mut self, field: u32, length: usize) {
        encode_key(field, WireType::LengthDelimited, &mut self.0);
        encode_varint(length as u64, &mut self.0);
    }

    pub(super) fn bytes(&mut self, field: u32, bytes: &[u8]) {
        self.head_of_field(field, bytes.len());
        self.0.extend_from_slice(bytes);
    }

    pub(super) fn text(&mut self, field: u32, text: &str) {
        self.bytes(field, text.as_bytes());
    }

    #[expect(clippy::cast_sign_loss, reason = "protobuf writes the two's complement")]
    pub(super) fn number(&mut self, field: u32, number: i64) {
        encode_key(field, WireType::Varint, &mut self.0);
        encode_varint(number as u64, &mut self.0);
    }

    /// A message within this one, which `fill` writes.
    pub(super) fn message(&mut self, field: u32, fill: impl FnOnce(&mut Self)) {
        encode_key(field, WireType::LengthDelimited, &mut self.0);
        let start = self.0.len();
        fill(self);
        let length = (self.0.len() - start) as u64;
        encode_varint(length, &mut self.0);
        self.0[start..].rotate_right(encoded_len_varint(length));
    }

    /// `map<string, string>`, sorted by name as labels are.
    pub(super) fn labels(&mut self, field: u32, labels: &Labels) {
        for (name, value) in labels.iter() {
            self.message(field, |entry| {
                entry.text(1, name);
                entry.text(2, value);
            });
        }
    }

    /// `metav1.Time`: whole seconds, and 0 nanoseconds.
    pub(super) fn time(&mut self, field: u32, time: Timestamp) {
        self.message(field, |wire| {
            wire.number(1, time.as_millis().div_euclid(1000));
            wire.number(2, 0);
        });
    }

    /// `metav1.Duration`: nanoseconds.
    pub(super) fn duration(&mut self, field: u32, duration: Duration) {
        let nanos = i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
        self.message(field, |wire| wire.number(1, nanos));
    }

    /// A duration in whole seconds, as a plain number.
    pub(super) fn seconds(&mut self, field: u32, duration: Duration) {
        self.number(field, i64::try_from(duration.as_secs()).unwrap_or(i64::MAX));
    }

    /// `resource.Quantity`: its text.
    pub(super) fn quantity(&mut self, field: u32, quantity: Quantity) {
        self.message(field, |wire| wire.text(1, &quantity.to_string()));
    }
}

/// What [`Message::bytes`] writes, in bytes.
pub(super) fn length_of_field(field: u32, length: usize) -> usize {
    encoded_len_varint(u64::from(field << 3)) + encoded_len_varint(length as u64) + length
}
