//! Changes of peers that were applied, told once a turn to whoever measures how late they come and follows traces.

use tropism_crdt::{Change, NodeId, Stamp, TraceContext};

use crate::limits::TRACED_CHANGES;
use crate::replica::Now;

/// Bit of [`TraceContext::flags`]: the trace is recorded.
const SAMPLED: u8 = 1;

/// A change that was applied and carries a sampled trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TracedChange {
    /// Name of its scope.
    pub scope: String,
    /// Who made it.
    pub origin: NodeId,
    /// When it was made.
    pub stamp: Stamp,
    /// What it carries: its trace, and the span of its commit.
    pub trace: TraceContext,
    /// The turn in which it was applied began then.
    pub at: Now,
}

/// The changes of a turn.
///
/// Invariant: holds at most [`TRACED_CHANGES`] that are traced; the rest is only counted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Traced {
    /// Who made them and when, traced or not: as many as the turn applied, whose bodies take far more room.
    pub stamps: Vec<(NodeId, Stamp)>,
    /// Those that are traced, in the order in which they were applied.
    pub changes: Vec<TracedChange>,
    /// How many more there were.
    pub missed: u64,
}

impl Traced {
    /// Notes a change that is applied.
    pub(crate) fn note(&mut self, now: Now, change: &Change) {
        self.stamps.push((change.origin.node, change.stamp));
        let Some(trace) = change.trace.filter(|trace| trace.flags & SAMPLED != 0) else { return };
        if self.changes.len() >= TRACED_CHANGES {
            self.missed += 1;
            return;
        }
        self.changes.push(TracedChange {
            scope: change.scope.clone(),
            origin: change.origin.node,
            stamp: change.stamp,
            trace,
            at: now,
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a failed assumption of a test is a failed test
    use tropism_crdt::{Body, ExpiryChange, Origin};

    use super::{Change, NodeId, Now, Stamp, TRACED_CHANGES, TraceContext, Traced};

    #[test]
    fn all_stamps_are_told_but_only_sampled_changes_and_no_more_than_the_limit() {
        let now = Now { mono_us: 5, wall_ms: 7 };
        let mut change = Change {
            scope: "s".into(),
            scope_incarnation: 0,
            shard_index: 0,
            origin: Origin { node: NodeId::new("a-1").unwrap(), ..Origin::FIRST },
            seq: 1,
            deps: Vec::new(),
            stamp: Stamp::from_u64(9),
            key: "secret".into(),
            life: 1,
            generation: 0,
            epoch: 0,
            request_id: None,
            trace: None,
            expiry: ExpiryChange::Keep,
            body: Body::Touch,
        };
        let mut traced = Traced::default();
        traced.note(now, &change);
        change.trace = Some(TraceContext { trace_id: [1; 16], span_id: [2; 8], flags: 0 });
        traced.note(now, &change);
        assert_eq!((traced.changes.len(), traced.missed), (0, 0));
        assert_eq!(traced.stamps, [(change.origin.node, change.stamp); 2]);
        change.trace = Some(TraceContext { trace_id: [1; 16], span_id: [2; 8], flags: 3 });
        for _ in 0..TRACED_CHANGES + 2 {
            traced.note(now, &change);
        }
        assert_eq!((traced.changes.len(), traced.missed), (TRACED_CHANGES, 2));
        assert_eq!(traced.stamps.len(), TRACED_CHANGES + 4);
        assert_eq!((traced.changes[0].at, traced.changes[0].stamp), (now, change.stamp));
        assert!(!format!("{traced:?}").contains("secret"));
    }
}
