//! Keep: bounded windows of samples per pod.
