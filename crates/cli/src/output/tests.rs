#![allow(clippy::unwrap_used, clippy::expect_used)] // a failed assumption of a test is a failed test

use std::io;
use std::time::Duration;

use tropism_client::{Answered, Effect, Entry, Error, Problem, Reason, Register, Value, Written};
use tropism_crdt::Stamp;

use super::{EntryJson, Failure, WrittenJson, hex, moment_to_second, size, stamp, table, time};

fn entry(value: Value) -> Entry {
    Entry {
        key: "alice".to_owned(),
        value: Some(value),
        version: vec![1, 255].into(),
        stamp: Stamp::new(1_764_000_000_123, 7),
        expires_at_ms: Some(5),
        failure: None,
    }
}

#[test]
fn moments_are_utc() {
    let of = |unix_ms| super::moment(unix_ms);
    assert_eq!(of(0), "1970-01-01T00:00:00.000Z");
    assert_eq!(of(951_782_399_999), "2000-02-28T23:59:59.999Z");
    assert_eq!(of(951_782_400_000), "2000-02-29T00:00:00.000Z");
    assert_eq!(of(1_795_837_327_815), "2026-11-28T03:42:07.815Z");
}

#[test]
fn json_keeps_documents_byte_for_byte() {
    let value = Value::Document("{\"big\":18446744073709551615,\"exact\":1e300,\"zero\":-0.0}".into());
    assert_eq!(
        serde_json::to_string(&EntryJson::from(&entry(value))).unwrap(),
        "{\"key\":\"alice\",\"value\":{\"big\":18446744073709551615,\"exact\":1e300,\"zero\":-0.0},\
         \"version\":\"01ff\",\"stamp\":\"1764000000123.00007\",\"expires_at_ms\":5}"
    );
}

#[test]
fn json_shows_registers_as_text_or_as_bytes() {
    let register = |content: &'static [u8]| {
        Value::Register(Register { content: content.into(), content_type: "a/b".to_owned() })
    };
    for (content, shown) in [
        (&b"page\n"[..], "{\"content_type\":\"a/b\",\"text\":\"page\\n\"}"),
        (b"\xff\x00", "{\"content_type\":\"a/b\",\"hex\":\"ff00\"}"),
    ] {
        let json = serde_json::to_string(&EntryJson::from(&entry(register(content)))).unwrap();
        assert!(json.contains(shown), "{json}");
    }
}

#[test]
fn writes_tell_version_stamp_and_who_answered() {
    let answered = Answered { region: "tokyo".to_owned(), node: "tokyo-1".to_owned(), staleness_ms: 0 };
    let written = Written { version: vec![7].into(), stamp: Stamp::new(1, 2), replayed: false, answered };
    assert_eq!(
        serde_json::to_string(&WrittenJson::from(&written)).unwrap(),
        "{\"version\":\"07\",\"stamp\":\"1.00002\",\"replayed\":false,\"region\":\"tokyo\",\"node\":\"tokyo-1\"}"
    );
}

#[test]
fn failures_say_the_reason_and_what_to_do_next() {
    let refused = |reason| Error::Refused(Problem::failed_precondition(reason, "why"));
    for (error, text) in [
        (refused(Reason::KeyExists), "why; no effect (KEY_EXISTS)"),
        (
            refused(Reason::KindMismatch),
            "why; no effect; `tropism scope SCOPE` shows the kind (KIND_MISMATCH)",
        ),
        (
            Error::Unreachable(vec!["http://a:1: Connection refused (os error 111)".to_owned()]),
            "no node answered: http://a:1: Connection refused (os error 111); no effect; `tropism dev` starts a world, \
             --endpoint URL names a node",
        ),
        (
            Error::TimedOut {
                endpoint: "http://a:1".to_owned(),
                timeout: Duration::from_millis(1500),
                effect: Effect::Unknown,
            },
            "http://a:1 did not answer within 1.5 s; outcome unknown",
        ),
    ] {
        assert_eq!(Failure::from(error).to_string(), text);
    }
}

#[test]
fn failures_for_programs_carry_reason_field_and_effect() {
    let problem = Problem::invalid_argument(Reason::BadKey, "items[3].key", "the key is empty");
    assert_eq!(
        Failure::Call(Error::Refused(problem)).to_json().to_string(),
        "{\"message\":\"the key is empty; no effect (BAD_KEY)\",\"reason\":\"BAD_KEY\",\"field\":\"items[3].key\",\
         \"effect\":\"none\"}"
    );
}

#[test]
fn a_bad_endpoint_is_a_usage_error_and_a_closed_pipe_is_none_at_all() {
    let bad = Error::BadEndpoint { endpoint: "\"x\"".to_owned(), reason: "is no URL".to_owned() };
    assert!(matches!(Failure::from(bad), Failure::Usage(_)));
    assert!(matches!(Failure::from(io::Error::from(io::ErrorKind::BrokenPipe)), Failure::ReaderGone));
    assert!(matches!(Failure::from(io::Error::from(io::ErrorKind::StorageFull)), Failure::Failed(_)));
}

#[test]
fn stamps_sort_as_text() {
    assert!(stamp(Stamp::new(1_764_000_000_000, 9)) < stamp(Stamp::new(1_764_000_000_000, 10)));
}

#[test]
fn people_read_times_sizes_and_aligned_tables() {
    for (milliseconds, text) in
        [(999, "999ms"), (59_999, "59s"), (61_000, "1m01s"), (7_260_000, "2h01m"), (90_000_000, "1d01h")]
    {
        assert_eq!(time(milliseconds), text);
    }
    for (bytes, text) in [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB")] {
        assert_eq!(size(bytes), text);
    }
    let row = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>();
    assert_eq!(
        table(&[row(&["a", "long", "x"]), row(&["caf\u{e9}", "b", ""])]),
        "a     long  x\ncaf\u{e9}  b\n"
    );
    assert_eq!(hex(&[0, 10, 255]), "000aff");
}

#[test]
fn a_moment_is_written_as_it_is_read() {
    for (ms, text) in [
        (0, "1970-01-01T00:00:00Z"),
        (951_782_399_000, "2000-02-28T23:59:59Z"),
        (951_868_799_999, "2000-02-29T23:59:59Z"),
        (1_896_091_200_000, "2030-01-31T12:00:00Z"),
        (4_107_542_399_000, "2100-02-28T23:59:59Z"),
        (4_107_542_400_000, "2100-03-01T00:00:00Z"),
    ] {
        assert_eq!(moment_to_second(ms), text);
    }
    assert!(moment_to_second(u64::MAX).ends_with('Z'), "whatever a node sends");
}
