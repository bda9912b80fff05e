//! The Lease that elects the writer.
