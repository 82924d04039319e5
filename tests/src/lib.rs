//! What must hold of the whole repository: [`tidy`](../tests/tidy.rs) checks the rules that no compiler does, `foreign/`
//! is a client that shares no code with ours.
