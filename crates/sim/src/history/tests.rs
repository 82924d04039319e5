//! A history that keeps every promise, and each way in which it could not.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;

fn call(process: &str, from_us: u64, op: Op, value: Option<&str>, order: u8) -> Operation {
    Operation {
        process: process.into(),
        region: "r0".into(),
        from_us,
        to_us: Some(from_us + 5),
        op,
        scope: "cache/x".into(),
        key: "k".into(),
        value: value.map(|value| Value::Text(value.into())),
        outcome: Outcome::Ok,
        order: (order > 0).then(|| format!("0 {order:02x}")),
        last: false,
    }
}

fn register() -> Vec<Operation> {
    let last = |region: &str| Operation {
        region: region.into(),
        last: true,
        ..call(region, 90, Op::Get, Some("c"), 3)
    };
    vec![
        call("one", 0, Op::Get, None, 0),
        call("one", 10, Op::Put, Some("a"), 1),
        call("two", 12, Op::Put, Some("b"), 2),
        call("one", 20, Op::Get, Some("a"), 1),
        call("two", 30, Op::Get, Some("b"), 2),
        call("one", 40, Op::Put, Some("c"), 3),
        call("two", 50, Op::Get, Some("c"), 3),
        last("r0"),
        last("r1"),
    ]
}

fn counter() -> Vec<Operation> {
    let one = |process: &str, from_us, op, sum| Operation {
        value: Some(Value::Sum(sum)),
        scope: "stats/x".into(),
        ..call(process, from_us, op, None, 0)
    };
    let last = |region: &str| Operation { region: region.into(), last: true, ..one(region, 90, Op::Get, 7) };
    vec![
        one("one", 0, Op::Increment, 3),
        one("two", 10, Op::Increment, 4),
        one("one", 20, Op::Get, 3),
        one("two", 30, Op::Get, 7),
        last("r0"),
        last("r1"),
    ]
}

/// What is wrong when one operation is changed.
fn when(mut history: Vec<Operation>, at: usize, change: impl Fn(&mut Operation)) -> String {
    assert_eq!(check(&history).1, Vec::<String>::new());
    change(&mut history[at]);
    check(&history).1.first().cloned().unwrap_or_default()
}

#[test]
fn a_history_that_keeps_every_promise_is_found_to() {
    let history = [register(), counter()].concat();
    let (counts, wrong) = check(&history);
    assert_eq!(wrong, Vec::<String>::new());
    assert_eq!(counts, Counts { processes: 4, keys: 2, gets: 10, acknowledged: 5, unknown: 0, finals: 4 });
    assert_eq!(parse(&lines(&history)).unwrap(), history);
    assert!(parse("{}").unwrap_err().starts_with("line 1: "));
}

#[test]
fn each_broken_promise_of_a_register_is_named() {
    let text = |value: &str| Some(Value::Text(value.into()));
    let order = |order: u8| Some(format!("0 {order:02x}"));
    for (at, change, words) in [
        (4, &(|one: &mut Operation| one.value = text("z")) as &dyn Fn(&mut Operation), "nobody put that"),
        (2, &|one| one.outcome = Outcome::Failed, "what was refused shows"),
        (6, &|one| (one.value, one.order) = (text("a"), order(1)), "a session went back"),
        (6, &|one| (one.value, one.order) = (None, None), "a session went back to nothing"),
        (5, &|one| one.order = order(1), "a write comes before what its session saw"),
        (4, &|one| one.order = order(9), "another version of the same put"),
        (5, &|one| one.from_us = 99, "it shows before it was put"),
        (8, &|one| (one.value, one.order) = (text("b"), order(2)), "regions differ in the end"),
        (3, &|one| one.order = None, "another version"),
        (5, &|one| one.value = text("a"), "two puts of one value"),
    ] {
        let wrong = when(register(), at, change);
        assert!(wrong.starts_with(words), "{words}: {wrong}");
    }
    let mut lost = register();
    for last in &mut lost[6..] {
        (last.value, last.order) = (text("b"), order(2));
    }
    let (_, wrong) = check(&lost);
    assert!(wrong.iter().any(|wrong| wrong.starts_with("an acknowledged write is lost")), "{wrong:?}");
}

#[test]
fn a_write_of_unknown_outcome_may_show_or_not() {
    let unknown = Operation {
        outcome: Outcome::Unknown,
        to_us: None,
        order: None,
        ..call("three", 13, Op::Put, Some("u"), 0)
    };
    let mut history = register();
    history.push(unknown);
    assert_eq!(check(&history).1, Vec::<String>::new());
    (history[4].value, history[4].order) = (Some(Value::Text("u".into())), Some("0 02ff".into()));
    assert_eq!(check(&history).1, Vec::<String>::new());
}

#[test]
fn each_broken_promise_of_a_counter_is_named() {
    let sum = |sum| Some(Value::Sum(sum));
    for (at, change, words) in [
        (2, &(|one: &mut Operation| one.value = sum(2)) as &dyn Fn(&mut Operation), "a session went back"),
        (2, &|one| one.value = sum(8), "more than was added"),
        (5, &|one| one.value = sum(6), "acknowledged additions are lost"),
        (0, &|one| one.outcome = Outcome::Failed, "more than was added"),
    ] {
        let wrong = when(counter(), at, change);
        assert!(wrong.starts_with(words), "{words}: {wrong}");
    }
    let mut unknown = counter();
    (unknown[1].outcome, unknown[1].to_us) = (Outcome::Unknown, None);
    assert_eq!(check(&unknown).1, Vec::<String>::new());
}

#[test]
fn versions_are_compared_by_life_then_stamp_then_who_made_them() {
    let version = |life: u64, stamp: u64, node: &str, random: u64| {
        let mut bytes = Vec::new();
        tropism_crdt::codec::put_varint(&mut bytes, life);
        bytes.push(2);
        bytes.extend(stamp.to_be_bytes());
        Origin { node: tropism_crdt::NodeId::new(node).unwrap(), incarnation: 1, random }.encode(&mut bytes);
        order_of(&bytes).unwrap()
    };
    let sorted = [
        version(0, 1, "z", 1),
        version(0, 9, "dallas-1", 7),
        version(0, 9, "tokyo", 0),
        version(0, 9, "tokyo-1", 1), // shorter than dallas-1
        version(0, 9, "tokyo-1", 2),
        version(0, 9, "tokyo-10", 0),
        version(0, 1 << 60, "a", 0),
        version(9, 0xff, "a", 1),
        version(16, 2, "a", 1),
        version(200, 1, "a", 1),
    ];
    let mut orders = sorted.clone();
    orders.reverse();
    orders.sort_by(|a, b| rank(a).cmp(&rank(b)));
    assert_eq!(orders, sorted);
    assert_eq!(order_of(&[0, 1, 7]), None);
    assert_eq!(order_of(&[0, 2, 7]), None);
    assert_eq!(order_of(&[]), None);
}

#[test]
fn elle_gets_each_register_with_questions_and_answers_in_the_order_of_time() {
    let mut history = [register(), counter()].concat();
    history[2].outcome = Outcome::Unknown;
    let all = elle_histories(&history);
    assert_eq!(all.len(), 1, "counters are not its business");
    let lines: Vec<&str> = all.values().next().unwrap().lines().collect();
    assert_eq!(lines.len(), 18);
    assert_eq!(lines[0], r#"{"index":0,"type":"invoke","process":0,"value":[["r","k",null]]}"#);
    assert_eq!(lines[3], r#"{"index":3,"type":"invoke","process":6,"value":[["w","k",2]]}"#);
    assert_eq!(lines[17], r#"{"index":17,"type":"info","process":6,"value":[["w","k",2]]}"#);
}
