//! A running agent, seen from outside.
