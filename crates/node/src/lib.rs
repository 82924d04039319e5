//! The shell around a replica: config, driver threads, peers, API, telemetry

pub mod api;
pub mod config;
pub mod directory;
pub mod driver;
mod inbox;
mod lane;
mod open;
pub mod peer;
pub mod placement;
pub mod server;
mod sync;
pub mod telemetry;
pub mod token;
pub mod traffic;
