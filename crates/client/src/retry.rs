//! What is done with an attempt that failed: give up, go elsewhere, or ask the same node again. Decides only.

use std::time::Duration;

use tonic::{Code, Status};
use tropism_wire::{Effect, Reason};

use crate::error::{is_loss, never_sent};
use crate::route::Moment;

/// First pause before the same node is asked again; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Longest such pause: a node that restarts is found soon after it serves.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Repetitions that may be made at once: a node that goes away while this many calls are under way.
const MOST_REPEATS: u64 = 100;
/// Calls that add one to them: where every node refuses, a tenth more is sent than was asked for, not many times as much.
const CALLS_PER_REPEAT: u64 = 10;
/// Time that adds one to them: who calls rarely can repeat every call.
const TIME_PER_REPEAT: Duration = Duration::from_secs(1);
/// What [`Budget`] counts in: parts of a repetition.
const PARTS: u64 = 1000;

/// What a call does to the state, and so how an attempt may be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nature {
    /// Nothing: repeat it anywhere.
    Read,
    /// It writes, and carries a request id: repeat it at the same node, elsewhere only when it had no effect.
    Write,
    /// It opens a stream that only reads; the deadline is for the beginning.
    Stream,
}

/// What is done after an attempt that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// The answer is final.
    Stop,
    /// Another node may do better.
    Elsewhere,
    /// The same node, a little later.
    Again,
}

/// What is done after `status`. `unsettled`: an earlier attempt of this write may have taken effect.
pub(crate) fn after(status: &Status, nature: Nature, unsettled: bool) -> Next {
    let elsewhere = if unsettled { Next::Again } else { Next::Elsewhere };
    if never_sent(status) {
        return elsewhere;
    }
    match Reason::of(status) {
        Some(Reason::OutcomeUnknown | Reason::Overloaded) => Next::Again,
        Some(reason) if reason.code() == Code::Unavailable => elsewhere,
        Some(_) => Next::Stop,
        None if !is_loss(status.code()) => Next::Stop,
        None if nature == Nature::Write => Next::Again,
        None => Next::Elsewhere,
    }
}

/// Whether the attempt certainly changed nothing.
pub(crate) fn has_no_effect(status: &Status) -> bool {
    never_sent(status) || Reason::of(status).is_some_and(|reason| reason.effect() == Effect::None)
}

/// What an attempt that failed says about the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing.
    Fine,
    /// It lacks what the session has seen.
    Behind,
    /// It is not there, or does not serve.
    Gone,
}

/// What `status` says about the node that it came from.
pub(crate) fn verdict(status: &Status) -> Verdict {
    match Reason::of(status) {
        Some(Reason::TokenAhead) => Verdict::Behind,
        Some(Reason::NotReady | Reason::ClockFenced) => Verdict::Gone,
        Some(_) => Verdict::Fine,
        None if never_sent(status) || is_loss(status.code()) => Verdict::Gone,
        None => Verdict::Fine,
    }
}

/// The pauses of one call: random, so that those who failed together do not come back together.
#[derive(Debug)]
pub(crate) struct Pauses(Duration);

impl Pauses {
    pub(crate) fn new() -> Self {
        Self(FIRST_PAUSE)
    }

    /// How long to wait now: `random` (0 to 1) of the second half of a pause, and at least what the node asked for.
    pub(crate) fn next(&mut self, random: f64, asked: Duration) -> Duration {
        let pause = self.0.mul_f64(0.5 + random / 2.0).max(asked);
        self.0 = (self.0 * 2).min(LONGEST_PAUSE);
        pause
    }
}

/// How many attempts may still be repeated, over all calls of a client. Settling a write whose answer was lost is not
/// counted: it is asked at most once a second, and whoever called has to know.
#[derive(Debug)]
pub(crate) struct Budget {
    /// In [`PARTS`].
    left: u64,
    since: Moment,
}

impl Budget {
    pub(crate) fn new() -> Self {
        Self { left: MOST_REPEATS * PARTS, since: Moment::ZERO }
    }

    /// A call begins.
    pub(crate) fn begin(&mut self, now: Moment) {
        let passed = now.saturating_sub(self.since).as_millis().min(u128::from(u32::MAX)) as u64; // fits
        let each = TIME_PER_REPEAT.as_millis() as u64; // a second
        let parts = passed * PARTS / each;
        if parts > 0 {
            self.since = now;
        }
        self.left = (self.left + PARTS / CALLS_PER_REPEAT + parts).min(MOST_REPEATS * PARTS);
    }

    /// Takes a repetition, if there is one.
    pub(crate) fn take(&mut self) -> bool {
        let there = self.left >= PARTS;
        if there {
            self.left -= PARTS;
        }
        there
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)] // a failed assumption of a test is a failed test
    use super::*;
    use tropism_wire::Problem;

    fn lost() -> Status {
        Status::unavailable("connection reset")
    }

    fn refused(reason: Reason) -> Status {
        if reason.code() == Code::Unavailable {
            Problem::unavailable(reason, Duration::ZERO, "why").to_status()
        } else {
            Problem::failed_precondition(reason, "why").to_status()
        }
    }

    #[test]
    fn only_what_cannot_do_harm_is_repeated() {
        use Nature::{Read, Write};
        for (status, nature, unsettled, next) in [
            (refused(Reason::NotReady), Read, false, Next::Elsewhere),
            (refused(Reason::NotReady), Write, false, Next::Elsewhere),
            (refused(Reason::NotReady), Write, true, Next::Again),
            (refused(Reason::NotServedHere), Write, false, Next::Elsewhere),
            (refused(Reason::NotServedHere), Write, true, Next::Again),
            (refused(Reason::ClockFenced), Write, false, Next::Elsewhere),
            (refused(Reason::TokenAhead), Read, false, Next::Elsewhere),
            (refused(Reason::OutcomeUnknown), Write, false, Next::Again),
            (refused(Reason::Overloaded), Write, false, Next::Again),
            (refused(Reason::KeyExists), Write, true, Next::Stop),
            (refused(Reason::Internal), Write, false, Next::Stop),
            (lost(), Read, false, Next::Elsewhere),
            (lost(), Nature::Stream, false, Next::Elsewhere),
            (lost(), Write, false, Next::Again),
            (Status::unimplemented("no such service"), Read, false, Next::Stop),
        ] {
            assert_eq!(after(&status, nature, unsettled), next, "{status:?}, {nature:?}, {unsettled}");
        }
    }

    #[test]
    fn a_node_is_blamed_for_what_is_its_own_only() {
        for (status, verdict_is) in [
            (lost(), Verdict::Gone),
            (refused(Reason::NotReady), Verdict::Gone),
            (refused(Reason::TokenAhead), Verdict::Behind),
            (refused(Reason::NotServedHere), Verdict::Fine),
            (refused(Reason::DurabilityUnreachable), Verdict::Fine),
            (refused(Reason::KeyExists), Verdict::Fine),
            (Status::unimplemented("no such service"), Verdict::Fine),
        ] {
            assert_eq!(verdict(&status), verdict_is, "{status:?}");
        }
    }

    #[test]
    fn pauses_grow_to_a_second_differ_and_are_as_long_as_the_node_asked() {
        let mut pauses = Pauses::new();
        let waits: Vec<u128> = (0..7).map(|_| pauses.next(1.0, Duration::ZERO).as_millis()).collect();
        assert_eq!(waits, [50, 100, 200, 400, 800, 1000, 1000]);
        assert_eq!(pauses.next(0.0, Duration::ZERO).as_millis(), 500);
        assert_eq!(pauses.next(0.0, Duration::from_secs(3)).as_secs(), 3);
    }

    #[test]
    fn what_is_repeated_is_bounded_by_what_is_called_and_by_time() {
        let mut budget = Budget::new();
        let taken =
            |budget: &mut Budget| std::iter::repeat_with(|| budget.take()).take_while(|took| *took).count();
        assert_eq!(taken(&mut budget), 100);
        for _ in 0..100 {
            budget.begin(Moment::ZERO); // a hundred calls at once
        }
        assert_eq!(taken(&mut budget), 10);
        budget.begin(Moment::from_secs(5));
        assert_eq!(taken(&mut budget), 5, "and a tenth that is kept");
        budget.begin(Moment::from_secs(1_000_000));
        assert_eq!(taken(&mut budget), 100);
    }
}
