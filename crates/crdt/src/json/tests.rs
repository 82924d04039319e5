#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use proptest::collection::{btree_map, vec};
use proptest::prelude::{
    Just, ProptestConfig, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest,
};

use super::{Json, JsonLimits, MAX_DEPTH, MAX_ITEMS, PathPattern, Pointer, Segment, parse};

fn read(text: &str) -> Result<Json, &'static str> {
    parse(text.as_bytes(), &JsonLimits::default()).map_err(|error| error.kind.code())
}

#[test]
fn values_are_read_exactly() {
    for (text, value) in [
        ("null", Json::Null),
        (" \t\r\n true ", Json::Bool(true)),
        ("-9223372036854775808", Json::Int(i64::MIN)),
        ("9223372036854775807", Json::Int(i64::MAX)),
        ("9223372036854775808", Json::Uint(1 << 63)),
        ("18446744073709551615", Json::Uint(u64::MAX)),
        ("9007199254740993", Json::Int((1 << 53) + 1)),
        ("-0", Json::Int(0)),
        ("1.0", Json::Float(1.0)),
        ("1E2", Json::Float(100.0)),
        ("1e-400", Json::Float(0.0)),
        ("5e-324", Json::Float(5e-324)),
        (r#""\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00\u0000""#, Json::String("\"\\/\u{8}\u{c}\n\r\té😀\0".into())),
        ("[]", Json::Array(vec![])),
        ("[1 , [2]]", Json::Array(vec![Json::Int(1), Json::Array(vec![Json::Int(2)])])),
        (r#"{"":0}"#, Json::Object([(String::new(), Json::Int(0))].into())),
    ] {
        assert_eq!(read(text), Ok(value), "{text}");
    }
    let Ok(Json::Float(zero)) = read("-0.0") else { panic!("a float") };
    assert!(zero.is_sign_negative());
}

#[test]
fn everything_else_is_refused_with_a_code() {
    for (text, code) in [
        ("", "truncated"),
        ("{", "truncated"),
        ("[1,", "truncated"),
        ("\"a", "truncated"),
        ("\"a\\", "truncated"),
        ("tru", "truncated"),
        ("-", "truncated"),
        ("1.", "truncated"),
        ("1e+", "truncated"),
        ("\"\\u12", "truncated"),
        ("nul1", "syntax"),
        ("01", "trailing_bytes"),
        ("+1", "syntax"),
        (".5", "syntax"),
        ("NaN", "syntax"),
        ("-Infinity", "syntax"),
        ("0x10", "trailing_bytes"),
        ("[1,]", "syntax"),
        ("[1 2]", "syntax"),
        ("{\"a\":1,}", "syntax"),
        ("{a:1}", "syntax"),
        ("{'a':1}", "syntax"),
        ("{\"a\" 1}", "syntax"),
        ("[1] // note", "trailing_bytes"),
        ("1 2", "trailing_bytes"),
        ("\u{feff}1", "byte_order_mark"),
        ("1e400", "number_out_of_range"),
        ("-1e400", "number_out_of_range"),
        ("18446744073709551616", "number_out_of_range"),
        ("-9223372036854775809", "number_out_of_range"),
        (r#"{"a":1,"a":2}"#, "duplicate_key"),
        (r#"{"a":1,"\u0061":2}"#, "duplicate_key"),
        ("\"\n\"", "control_character"),
        (r#""\x""#, "bad_escape"),
        (r#""\ud800""#, "lone_surrogate"),
        (r#""\ud800\u0041""#, "lone_surrogate"),
        (r#""\udc00""#, "lone_surrogate"),
        (r#""\u12g4""#, "syntax"),
    ] {
        assert_eq!(read(text), Err(code), "{text}");
    }
    assert_eq!(read(&"9".repeat(400)), Err("number_out_of_range"));
    let utf16: Vec<u8> = "{}".encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert!(parse(&utf16, &JsonLimits::default()).is_err());
    assert_eq!(parse(b"\"\xff\"", &JsonLimits::default()).unwrap_err().kind.code(), "not_utf8");
}

#[test]
fn errors_name_line_column_and_limit() {
    let error = |text: &str| parse(text.as_bytes(), &JsonLimits::default()).unwrap_err().to_string();
    assert_eq!(error("{\n  \"é\": x}"), "JSON at line 2, column 8: 'x' where a value is expected");
    assert_eq!(
        error("[1e999]"),
        "JSON at line 1, column 2: number \"1e999\" is out of range; integers are exact in i64 and u64, floats finite \
         in f64"
    );
    assert_eq!(error(&"[".repeat(65)), "JSON at line 1, column 65: nested deeper than 64");
    let long = error(&format!("{{\"{0}\":1,\"{0}\":1}}", "x".repeat(500)));
    assert!(
        long.contains(&format!("\"{}\"...", "x".repeat(64))) && !long.contains(&"x".repeat(65)),
        "{long}"
    );
}

#[test]
fn limits_bind_depth_size_and_entries() {
    let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    assert!(read(&nested(MAX_DEPTH)).is_ok());
    assert_eq!(read(&nested(MAX_DEPTH + 1)), Err("too_deep"));
    assert_eq!(read(&"[".repeat(1_000_000)), Err("too_deep"));
    let generous = JsonLimits { depth: usize::MAX, ..JsonLimits::default() };
    assert_eq!(parse("[".repeat(100_000).as_bytes(), &generous).unwrap_err().kind.code(), "too_deep");

    let items = |count: usize| format!("[{}]", vec!["0"; count].join(","));
    assert!(read(&items(MAX_ITEMS)).is_ok());
    assert_eq!(read(&items(MAX_ITEMS + 1)), Err("too_many_items"));
    let keys = |count: usize| {
        format!("{{{}}}", (0..count).map(|n| format!("\"{n}\":0")).collect::<Vec<_>>().join(","))
    };
    assert!(read(&keys(MAX_ITEMS)).is_ok());
    assert_eq!(read(&keys(MAX_ITEMS + 1)), Err("too_many_items"));

    let sized = |bytes: usize| format!("\"{}\"", "x".repeat(bytes - 2));
    assert!(read(&sized(1 << 20)).is_ok());
    assert_eq!(read(&sized((1 << 20) + 1)), Err("too_large"));
}

#[test]
fn canonical_text_is_fixed() {
    let value =
        read(r#"{ "b": [1, 1.0, -0.0, 1e21, 18446744073709551615], "a\u0007\"": "\/é\u0000\n", "B": {} }"#);
    let canonical = String::from_utf8(value.unwrap().to_canonical()).unwrap();
    assert_eq!(canonical, r#"{"B":{},"a\u0007\"":"/é\u0000\n","b":[1,1.0,0.0,1e21,18446744073709551615]}"#);
}

#[test]
fn pointers_are_read_and_written_as_rfc_6901_says() {
    for (text, segments) in [
        ("", vec![]),
        ("/", vec![""]),
        ("/foo/0", vec!["foo", "0"]),
        ("/a~1b/m~0n/~01", vec!["a/b", "m~n", "~1"]),
        ("/ /k\"l", vec![" ", "k\"l"]),
    ] {
        let pointer = Pointer::parse(text).unwrap();
        assert_eq!(pointer.segments(), segments);
        assert_eq!(pointer.to_string(), text);
    }
    for (text, offset) in [("a/b", 0), ("/~2", 1), ("/ab/c~", 5), ("/~/a", 1), (&"/a".repeat(65), 129)] {
        assert_eq!(Pointer::parse(text).unwrap_err().offset, offset, "{text}");
    }
    assert!(Pointer::parse(&format!("/{}", "x".repeat(20_000))).is_err());
}

#[test]
fn patterns_match_one_segment_for_a_star() {
    let pattern = PathPattern::parse("/items/*/n").unwrap();
    let (items, n) = (Segment::Key("items"), Segment::Key("n"));
    assert!(pattern.matches(&[items, Segment::Index(7), n]));
    assert!(pattern.matches(&[items, Segment::Key("tea"), n]));
    assert!(!pattern.matches(&[items, n]));
    assert!(!pattern.matches(&[items, Segment::Index(7), n, n]));
    assert!(!pattern.matches(&[items, Segment::Index(7), items]));
    assert!(PathPattern::parse("/a/1").unwrap().matches(&[Segment::Key("a"), Segment::Index(1)]));
    assert_eq!(pattern.to_string(), "/items/*/n");
    assert!(PathPattern::parse("").is_err() && PathPattern::parse("a").is_err());
}

/// Any JSON value, `depth` levels deep at most.
pub(crate) fn any_json(depth: u32) -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::Bool),
        any::<i64>().prop_map(Json::Int),
        (i64::MAX as u64 + 1..).prop_map(Json::Uint),
        any::<f64>().prop_filter("finite", |value| value.is_finite()).prop_map(Json::Float),
        ".{0,8}".prop_map(Json::String),
    ];
    leaf.prop_recursive(depth, 40, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(Json::Array),
            btree_map("[a-e\"/~é]{0,3}", inner, 0..6).prop_map(Json::Object),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn what_is_written_is_read_as_the_same_value(value in any_json(5)) {
        let canonical = value.to_canonical();
        let read = parse(&canonical, &JsonLimits::default());
        prop_assert_eq!(read.as_ref(), Ok(&value));
        prop_assert_eq!(read.unwrap().to_canonical(), canonical);
    }

    #[test]
    fn every_float_round_trips(bits in any::<u64>()) {
        let value = f64::from_bits(bits);
        if value.is_finite() {
            let text = Json::Float(value).to_canonical();
            let Ok(Json::Float(read)) = parse(&text, &JsonLimits::default()) else { panic!("a float") };
            prop_assert_eq!(read.to_bits(), bits);
        }
    }

    #[test]
    fn another_parser_agrees(value in any_json(4), spoiled in any::<(usize, u8)>()) {
        let mut text = value.to_canonical();
        prop_assert!(serde_json::from_slice::<serde_json::Value>(&text).is_ok());
        let at = spoiled.0 % text.len();
        text[at] = spoiled.1;
        // What we accept, everybody accepts.
        if parse(&text, &JsonLimits::default()).is_ok() {
            prop_assert!(serde_json::from_slice::<serde_json::Value>(&text).is_ok());
        }
    }

    #[test]
    fn pointers_round_trip(segments in vec(".{0,5}", 0..6)) {
        let pointer = segments.iter().fold(Pointer::root(), |pointer, segment| pointer.child(segment));
        prop_assert_eq!(Pointer::parse(&pointer.to_string()), Ok(pointer));
    }
}
