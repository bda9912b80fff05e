//! For tests: a log that is kept in memory.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

/// Everything that is written to it or a clone of it, for a subscriber's writer.
#[derive(Clone, Default)]
pub(crate) struct KeptLog(Arc<Mutex<Vec<u8>>>);

impl KeptLog {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().clone()).expect("the log is text")
    }
}

impl io::Write for KeptLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
