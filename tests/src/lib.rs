//! What must hold of the whole repository: [`tidy`](../tests/tidy.rs) checks the rules that no compiler does, `foreign/`
//! is a client that shares no code with ours, and [`histories`](../tests/histories.rs) holds what clients did and saw, in
//! simulated worlds and in a [real one](world), against what they were promised, by our checker and by
//! [somebody else's](elle).

pub mod elle;
pub mod world;
