//! Serve the signals of this process.
