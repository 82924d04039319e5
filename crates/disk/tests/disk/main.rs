//! The store on real files.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on should stop")]

mod damage;
mod engine;
mod foreign;
mod opening;
mod support;
mod witness;
