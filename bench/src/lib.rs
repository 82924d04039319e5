//! The bench of the whole.
