//! The serving CA and its leaves.
