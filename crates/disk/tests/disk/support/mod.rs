//! Damaged stores: what they hold, what is done to them, and how what became of them is judged. Used by the tests and
//! by the example `damage`, which makes many more states.
#![allow(dead_code, reason = "the tests and the example use different parts")]

pub(crate) mod child;
pub(crate) mod class;
pub(crate) mod content;
pub(crate) mod full;
pub(crate) mod harm;
pub(crate) mod judge;
