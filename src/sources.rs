//! Collect: a batch of samples from each pod, before a deadline.
