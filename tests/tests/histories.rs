//! What clients did and saw, in simulated worlds and a real one, by two checkers that share no code.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::path::Path;
use std::time::Duration;

use tropism_sim::history::{Op, Operation, Outcome, check};
use tropism_sim::{Promise, Sabotage, Size, run};
use tropism_tests::{elle, world};

fn simulated(seed: u64, size: Size) -> Vec<Operation> {
    let report = run(seed, Size { history: true, ..size });
    assert!(report.violations.is_empty(), "seed {seed}: {}", report.violations[0]);
    report.history
}

#[test]
fn histories_of_simulated_worlds_keep_every_promise_by_both_checkers() {
    let (mut gets, mut looked_at) = (0, 0);
    for seed in 30_000..30_010 {
        let history = simulated(seed, Size::default());
        let (counts, wrong) = check(&history);
        assert_eq!(wrong, Vec::<String>::new(), "seed {seed}");
        assert!(counts.acknowledged > 200 && counts.finals > 0, "seed {seed}: {counts:?}");
        gets += counts.gets;
        let (keys, wrong) = elle::check(&history).unwrap();
        assert_eq!(wrong, Vec::<String>::new(), "seed {seed}");
        looked_at += keys;
    }
    assert!(gets > 1_000 && looked_at > 50, "{gets} gets, {looked_at} keys");
}

#[test]
fn sessions_that_forget_are_noticed_by_both_checkers_with_the_simulators_own_blind() {
    let size =
        Size { sabotage: Some(Sabotage::ForgetsToken), blind: Some(Promise::Sessions), ..Size::default() };
    let (mut ours, mut theirs) = (false, false);
    for seed in 30_000..30_060 {
        let history = simulated(seed, size);
        ours |= !check(&history).1.is_empty();
        theirs |= !elle::check(&history).unwrap().1.is_empty();
        if ours && theirs {
            return;
        }
    }
    panic!("ours: {ours}, the other one: {theirs}");
}

#[test]
fn a_real_world_under_faults_keeps_every_promise_by_both_checkers() {
    let dir = tempfile::tempdir().unwrap();
    let program = world::program().unwrap_or_else(|_| {
        // This test alone was asked for.
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut build = std::process::Command::new(env!("CARGO"));
        assert!(build.args(["build", "-p", "tropism-cli"]).current_dir(root).status().unwrap().success());
        world::program().expect("it was just built")
    });
    let plan = world::Plan {
        program,
        dir: dir.path().to_owned(),
        time: Duration::from_secs(12),
        sessions: 8,
        keys: 4,
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let history = runtime.block_on(world::run(&plan)).unwrap();
    let (counts, wrong) = check(&history);
    assert_eq!(wrong, Vec::<String>::new());
    assert_eq!(counts.finals, 3 * 2 * plan.keys, "every region shows every key in the end");
    assert!(counts.acknowledged > 20 && counts.gets > 20, "{counts:?}");
    assert_eq!(elle::check(&history).unwrap().1, Vec::<String>::new());
    // Both notice when a session's get is answered with what was there before.
    let mut changed = history.clone();
    if let Some(stale) = stale(&mut changed) {
        *stale = Operation { value: None, order: None, ..stale.clone() };
        assert!(!check(&changed).1.is_empty());
        assert!(!elle::check(&changed).unwrap().1.is_empty());
    }
}

/// The last get of a session of a key that it wrote before.
fn stale(history: &mut [Operation]) -> Option<&mut Operation> {
    let put = |one: &Operation| one.op == Op::Put && one.outcome == Outcome::Ok;
    let at = (0..history.len()).rev().find(|at| {
        let one = &history[*at];
        let before = &history[..*at];
        let same = |other: &&Operation| {
            put(other) && (&other.process, &other.scope, &other.key) == (&one.process, &one.scope, &one.key)
        };
        one.op == Op::Get && !one.last && one.value.is_some() && before.iter().any(|other| same(&other))
    })?;
    history.get_mut(at)
}
