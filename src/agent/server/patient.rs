//! A connection that waits for its peer to read, but not for ever.
//!
//! In: hyper's I/O. Out: the same, except that a write which makes no progress for too long fails. Never: a limit on how long
//! an answer may take as long as the peer reads it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::time::{Instant, Sleep};

/// I/O with a bound on stalled writes.
pub(super) struct Patient<T> {
    inner: T,
    /// For a write of which the peer takes no byte.
    patience: Duration,
    deadline: Pin<Box<Sleep>>,
    stalled: bool,
}

impl<T> Patient<T> {
    pub(super) fn new(inner: T, patience: Duration) -> Self {
        Self { inner, patience, deadline: Box::pin(tokio::time::sleep(patience)), stalled: false }
    }

    /// Passes progress on and turns a stall that lasts too long into an error.
    fn watch<R>(
        &mut self,
        cx: &mut Context<'_>,
        outcome: Poll<io::Result<R>>,
    ) -> Poll<io::Result<R>> {
        if outcome.is_ready() {
            self.stalled = false;
            return outcome;
        }
        if !std::mem::replace(&mut self.stalled, true) {
            self.deadline.as_mut().reset(Instant::now() + self.patience);
        }
        self.deadline.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<T: Read + Unpin> Read for Patient<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl<T: Write + Unpin> Write for Patient<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.watch(cx, outcome)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.inner).poll_flush(cx);
        self.watch(cx, outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.watch(cx, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.inner).poll_write_vectored(cx, buffers);
        self.watch(cx, outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper_util::rt::TokioIo;

    const PATIENCE: Duration = Duration::from_millis(400);

    async fn write<T: Write + Unpin>(
        patient: &mut Patient<T>,
        bytes: &[u8],
    ) -> Result<usize, io::ErrorKind> {
        let written =
            std::future::poll_fn(|cx| Pin::new(&mut *patient).poll_write(cx, bytes)).await;
        written.map_err(|error| error.kind())
    }

    #[tokio::test]
    async fn a_peer_that_reads_nothing_loses_the_connection() {
        let (ours, _theirs) = tokio::io::duplex(4);
        let mut patient = Patient::new(TokioIo::new(ours), PATIENCE);
        assert_eq!(write(&mut patient, b"full").await, Ok(4));
        assert_eq!(write(&mut patient, b"more").await, Err(io::ErrorKind::TimedOut));
    }

    #[tokio::test]
    async fn a_peer_that_reads_slowly_keeps_it() {
        use tokio::io::AsyncReadExt as _;
        let (ours, mut theirs) = tokio::io::duplex(4);
        let reader = tokio::spawn(async move {
            let mut buffer = [0; 4];
            for _ in 0..4 {
                tokio::time::sleep(PATIENCE / 2).await;
                theirs.read_exact(&mut buffer).await.expect("the writer is alive");
            }
        });
        let mut patient = Patient::new(TokioIo::new(ours), PATIENCE);
        for _ in 0..4 {
            assert_eq!(write(&mut patient, b"four").await, Ok(4));
        }
        reader.await.expect("the reader does not panic");
    }
}
