//! Fields of protobuf messages, appended to bytes.
//!
//! In: field numbers and values. Out: their encoding (<https://protobuf.dev/programming-guides/encoding/>). Never: memory besides
//! the body's: a message is written first, and its length is put before it then.

use std::fmt;
use std::io::Write as _;

/// Of the types of fields that are needed.
const VARINT: u64 = 0;
const EIGHT_BYTES: u64 = 1;
const WITH_LENGTH: u64 = 2;

/// A message whose fields go to the end of these bytes.
pub(super) struct Message<'a>(pub(super) &'a mut Vec<u8>);

impl Message<'_> {
    /// `uint32`, `uint64` and enumerations.
    pub(super) fn unsigned(&mut self, field: u32, value: u64) {
        self.key(field, VARINT);
        varint(self.0, value);
    }

    /// `int32` and `int64`.
    pub(super) fn int64(&mut self, field: u32, value: i64) {
        self.unsigned(field, value.cast_unsigned());
    }

    /// `sint32` and `sint64`.
    pub(super) fn signed(&mut self, field: u32, value: i64) {
        self.unsigned(field, ((value << 1) ^ (value >> 63)).cast_unsigned());
    }

    pub(super) fn double(&mut self, field: u32, value: f64) {
        self.key(field, EIGHT_BYTES);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn string(&mut self, field: u32, value: &str) {
        self.key(field, WITH_LENGTH);
        varint(self.0, value.len() as u64);
        self.0.extend_from_slice(value.as_bytes());
    }

    pub(super) fn format(&mut self, field: u32, text: fmt::Arguments<'_>) {
        self.message(field, |message| {
            // Writing to a Vec cannot fail.
            let _ = message.0.write_fmt(text);
        });
    }

    /// A field that is a message of what `write` writes.
    pub(super) fn message(&mut self, field: u32, write: impl FnOnce(&mut Message<'_>)) {
        self.key(field, WITH_LENGTH);
        let start = self.0.len();
        write(&mut Message(self.0));
        insert_length(self.0, start);
    }

    fn key(&mut self, field: u32, kind: u64) {
        varint(self.0, u64::from(field) << 3 | kind);
    }
}

/// Puts before everything from `start` on how long that is.
pub(super) fn insert_length(bytes: &mut Vec<u8>, start: usize) {
    let end = bytes.len();
    varint(bytes, (end - start) as u64);
    let length = bytes.len() - end;
    bytes[start..].rotate_right(length);
}

fn varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    bytes.push(value.to_le_bytes()[0]);
}
