//! Regions files and rules, from text to the record they imply.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a failed assumption of a test is a failed test

use std::time::Duration;

use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};

use crate::{
    ConfigErrors, Durability, Kind, MAX_CONFIG_BYTES, MAX_CONFIG_ERRORS, Mode, Pattern, PlacementRecord,
    Policy, PolicyHash, Regions, Rule, Rules, ScopeName, Share, parse_expiry,
};

/// A good file; the tables of bad input replace or append to parts of it.
const GOOD: &str = r#"[[region]]
name = "dallas"
place = "Dallas, US"
latitude = 32.78
longitude = -96.8

[[region]]
name = "tokyo"
place = "Tokyo, Japan"

[[place]]
name = "london"
title = "London, UK"

[[rtt]]
between = ["dallas", "tokyo"]
ms = 144.5
[[rtt]]
between = ["london", "dallas"]
ms = 113
[[rtt]]
between = ["tokyo", "london"]
ms = 243.5

[[node]]
id = "dallas-1"
region = "dallas"
client = "127.0.0.1:7000"
peer = "[::1]:7100"

[[rule]]
name = "shop"
pattern = "shop/**"
share = "0..25%"
kind = "document"
spread = 4
regions = ["tokyo"]
durability = "regions:1"
expiry = "30m"
text = ["/note"]
counters = ["/items/*/n"]
history_bytes = 1048576
history_changes = 1000
[[rule]]
name = "rest"
pattern = "**"
kind = "register"
"#;

fn name(text: &str) -> ScopeName {
    ScopeName::new(text).unwrap()
}

fn errors(text: &str) -> ConfigErrors {
    Regions::parse("r.toml", text).expect_err("this text is bad")
}

#[test]
fn a_good_file_gives_what_it_says() {
    let file = Regions::parse("r.toml", GOOD).unwrap();
    let regions: Vec<&str> = file.regions().iter().map(|region| region.name.as_str()).collect();
    assert_eq!(regions, ["dallas", "tokyo"]);
    assert_eq!(file.regions()[0].location.unwrap().longitude, -96.8);
    let places: Vec<&str> = file.places().iter().map(|place| place.title.as_str()).collect();
    assert_eq!(places, ["Dallas, US", "Tokyo, Japan", "London, UK"]);

    assert_eq!(file.rtt("dallas", "tokyo"), Some(144.5));
    assert_eq!(file.rtt("tokyo", "dallas"), Some(144.5));
    assert_eq!(file.rtt("london", "dallas"), Some(113.0));
    assert_eq!(file.rtt("dallas", "london"), Some(113.0));
    assert_eq!(file.rtt("dallas", "dallas"), Some(0.0));
    assert_eq!(
        (file.rtt("london", "london"), file.rtt("paris", "dallas"), file.rtt("dallas", "paris")),
        (None, None, None)
    );
    assert_eq!(file.nearest("london").unwrap().name.as_str(), "dallas");
    assert_eq!(file.nearest("tokyo").unwrap().name.as_str(), "tokyo");
    assert_eq!((file.nodes()[0].id.as_str(), file.nodes()[0].peer.as_str()), ("dallas-1", "[::1]:7100"));

    let shop = file.rules().get("shop").unwrap();
    assert_eq!((shop.kind, shop.spread, shop.regions[0].as_str()), (Kind::Document, 4, "tokyo"));
    let expected = Policy {
        durability: Durability::Regions(1),
        expiry: Some(Duration::from_secs(1800)),
        text: vec!["/note".into()],
        counters: vec!["/items/*/n".into()],
        history_bytes: 1 << 20,
        history_changes: 1000,
    };
    assert_eq!(*shop.policy, expected);
    let rest = file.rules().get("rest").unwrap();
    assert_eq!((rest.spread, rest.regions.len(), rest.policy.as_ref()), (1, 2, &Policy::default()));
}

#[test]
fn every_bad_input_is_named_with_its_line_and_key() {
    // What is replaced in the good file, by what, and how the error begins and what it says.
    for (old, new, place, reason) in [
        // Regions and places.
        ("name = \"dallas\"", "name = \"Dallas\"", "2: region.name", "'D' is not allowed at byte 0"),
        ("name = \"dallas\"\n", "\n", "1: region.name", "is missing"),
        ("name = \"dallas\"", "name = 7", "2: region.name", "must be a string, not integer"),
        ("place = \"Dallas, US\"", "place = \"\"", "3: region.place", "1 to 64 bytes"),
        ("place = \"Dallas, US\"", "place = \"a\\u0007b\"", "3: region.place", "\"a\\u{7}b\""),
        ("latitude = 32.78", "latitude = 91", "4: region.latitude", "91 is outside -90 to 90"),
        ("latitude = 32.78", "latitude = nan", "4: region.latitude", "NaN is outside"),
        ("latitude = 32.78", "lattitude = 32.78", "4: region.lattitude", "unknown key"),
        ("latitude = 32.78\n", "\n", "5: region.latitude", "together"),
        ("name = \"tokyo\"", "name = \"dallas\"", "8: region.name", "already a region or place"),
        ("name = \"london\"", "name = \"tokyo\"", "12: place.name", "already a region or place"),
        ("name = \"london\"", "name = \"a b\"", "12: place.name", "' ' is not allowed at byte 1"),
        ("title = \"London, UK\"", "titel = \"x\"", "11: place.title", "is missing"),
        // Round trips.
        (
            "[\"dallas\", \"tokyo\"]",
            "[\"dallas\", \"paris\"]",
            "16: rtt.between",
            "unknown region or place \"paris\"",
        ),
        ("[\"dallas\", \"tokyo\"]", "[\"dallas\"]", "16: rtt.between", "must name two"),
        (
            "[\"dallas\", \"tokyo\"]",
            "[\"dallas\", \"tokyo\", \"london\"]",
            "16: rtt.between",
            "3 entries; the limit is 2",
        ),
        ("[\"dallas\", \"tokyo\"]", "[\"dallas\", \"dallas\"]", "16: rtt.between", "names one twice"),
        (
            "[\"dallas\", \"tokyo\"]",
            "\"dallas\"",
            "16: rtt.between",
            "must be an array of strings, not string",
        ),
        ("[\"dallas\", \"tokyo\"]", "[\"dallas\", 1]", "16: rtt.between", "must be a string, not integer"),
        ("between = [\"dallas\", \"tokyo\"]\n", "\n", "15: rtt.between", "is missing"),
        ("[\"tokyo\", \"london\"]", "[\"dallas\", \"london\"]", "21: rtt.between", "given twice"),
        (
            "[\"tokyo\", \"london\"]",
            "[\"dallas\", \"london\"]",
            "11: rtt",
            "no round trip between \"tokyo\" and \"london\"",
        ),
        ("ms = 144.5", "ms = 0", "17: rtt.ms", "0 is no round trip"),
        ("ms = 144.5", "ms = -1.0", "17: rtt.ms", "above 0 and at most 2000"),
        ("ms = 144.5", "ms = 2000.1", "17: rtt.ms", "above 0 and at most 2000"),
        ("ms = 144.5", "ms = nan", "17: rtt.ms", "NaN is no round trip"),
        ("ms = 144.5", "ms = inf", "17: rtt.ms", "inf is no round trip"),
        ("ms = 144.5", "ms = \"144\"", "17: rtt.ms", "must be a number, not string"),
        ("ms = 144.5\n", "\n", "15: rtt.ms", "is missing"),
        // Nodes.
        ("id = \"dallas-1\"", "id = \"dallas_1\"", "26: node.id", "'_' is not allowed"),
        ("region = \"dallas\"", "region = \"paris\"", "27: node.region", "unknown region \"paris\""),
        ("\"127.0.0.1:7000\"", "\"127.0.0.1\"", "28: node.client", "no host:port"),
        ("\"127.0.0.1:7000\"", "\"127.0.0.1:0\"", "28: node.client", "1 to 65535"),
        ("\"127.0.0.1:7000\"", "\"127.0.0.1:+80\"", "28: node.client", "1 to 65535"),
        ("\"127.0.0.1:7000\"", "\"::1:80\"", "28: node.client", "no host:port"),
        ("\"127.0.0.1:7000\"", "\"[::1]:7100\"", "29: node.peer", "already taken"),
        // Rules.
        ("name = \"shop\"", "name = \"Shop\"", "32: rule.name", "'S' is not allowed"),
        ("name = \"rest\"", "name = \"shop\"", "45: rule.name", "the name of an earlier rule"),
        ("pattern = \"**\"", "pattern = \"\"", "46: rule.pattern", "1 to 128"),
        ("pattern = \"**\"", "pattern = \"a/**/b\"", "46: rule.pattern", "whole last segment"),
        ("pattern = \"**\"", "pattern = \"a**\"", "46: rule.pattern", "whole last segment"),
        ("pattern = \"**\"", "pattern = \"a//b\"", "46: rule.pattern", "[a-z0-9*]"),
        ("pattern = \"**\"", "pattern = \"A/*\"", "46: rule.pattern", "[a-z0-9*]"),
        ("pattern = \"**\"\n", "\n", "44: rule.pattern", "is missing"),
        ("\"0..25%\"", "\"25..0%\"", "34: rule.share", "\"25..0%\" must be like \"0..25%\""),
        ("\"0..25%\"", "\"0..101%\"", "34: rule.share", "from 0 to 100"),
        ("\"0..25%\"", "\"0..+5%\"", "34: rule.share", "whole percents"),
        ("kind = \"document\"", "kind = \"documents\"", "35: rule.kind", "document, register, counter"),
        ("kind = \"document\"", "kind = true", "35: rule.kind", "must be a string, not boolean"),
        ("spread = 4", "spread = 0", "36: rule.spread", "0 is outside 1 to 256"),
        ("spread = 4", "spread = 257", "36: rule.spread", "257 is outside 1 to 256"),
        ("spread = 4", "spread = -1", "36: rule.spread", "-1 is outside 1 to 256"),
        ("spread = 4", "spread = 4.0", "36: rule.spread", "must be a whole number"),
        ("spread = 4", "spread = 99999999999999999999999", "36: rule.spread", "is outside 1 to 256"),
        (
            "[\"tokyo\"]",
            "[\"paris\"]",
            "37: rule.regions",
            "unknown region \"paris\"; the regions are dallas, tokyo",
        ),
        ("[\"tokyo\"]", "[]", "37: rule.regions", "is empty"),
        ("[\"tokyo\"]", "[\"tokyo\", \"tokyo\"]", "37: rule.regions", "\"tokyo\" is given twice"),
        ("\"regions:1\"", "\"regions:2\"", "38: rule.durability", "more than the rule's regions, 1"),
        ("\"regions:1\"", "\"regions:0\"", "38: rule.durability", "K at least 1"),
        ("\"regions:1\"", "\"quorum\"", "38: rule.durability", "local, region, regions:K"),
        ("\"30m\"", "\"30\"", "39: rule.expiry", "whole number with a unit"),
        ("\"30m\"", "\"0s\"", "39: rule.expiry", "from 1s"),
        ("\"30m\"", "\"3651d\"", "39: rule.expiry", "to 3650d"),
        ("\"30m\"", "30", "39: rule.expiry", "must be a string, not integer"),
        ("[\"/note\"]", "[\"note\"]", "40: rule.text", "must start with `/`"),
        ("[\"/note\"]", "[\"/a~b\"]", "40: rule.text", "`~` without 0 or 1 after it at byte 2"),
        ("[\"/note\"]", "[\"/note\", \"/note\"]", "40: rule.text", "given twice"),
        ("[\"/note\"]", "[\"/items/*/n\"]", "41: rule.counters", "matches what the text path"),
        (
            "[\"/note\"]",
            "[\"/items/7/*\"]",
            "41: rule.counters",
            "\"/items/*/n\" matches what the text path \"/items/7/*\"",
        ),
        (
            "kind = \"document\"",
            "kind = \"counter\"",
            "41: rule.counters",
            "is for documents; the kind is counter",
        ),
        ("kind = \"document\"", "kind = \"counter\"", "42: rule.history_bytes", "is for documents"),
        ("history_bytes = 1048576", "history_bytes = 1", "42: rule.history_bytes", "1 is outside 4096 to"),
        ("history_changes = 1000", "history_changes = 0", "43: rule.history_changes", "0 is outside 1 to"),
        (
            "pattern = \"shop/**\"\nshare = \"0..25%\"",
            "pattern = \"**\"\n",
            "46: rule.pattern",
            "earlier rule \"shop\"",
        ),
        // The file as a whole.
        ("kind = \"register\"", "kind = \"register\"\ncolour = 1", "48: rule.colour", "unknown key"),
        (
            "kind = \"register\"",
            "kind = \"register\"\nkind = \"counter\"",
            "48: syntax",
            "duplicate key, at \"kind\"",
        ),
        ("kind = \"register\"", "kind = on", "47: syntax", "at \"on\""),
        ("kind = \"register\"", "kind = \"register", "47: syntax", "string"),
        ("[[node]]", "[[nodes]]", "25: nodes", "unknown key"),
        ("[[node]]", "[node]", "25: node", "must be an array of tables"),
    ] {
        assert!(GOOD.contains(old), "{old}");
        let errors = errors(&GOOD.replacen(old, new, 1));
        let found = errors
            .errors
            .iter()
            .any(|error| format!("{}: {}", error.line, error.key) == place && error.reason.contains(reason));
        assert!(found, "{old} -> {new}: wanted {place}: ..{reason}.., got\n{errors}");
    }
}

#[test]
fn an_error_reads_file_line_key_reason() {
    let errors = errors(&GOOD.replacen("spread = 4", "spread = 300", 1));
    assert_eq!(errors.to_string(), "r.toml:36: rule.spread: 300 is outside 1 to 256");
}

#[test]
fn all_errors_are_told_by_line_and_no_more_than_anybody_reads() {
    let several = GOOD.replacen("ms = 113", "ms = 0", 1).replacen("spread = 4", "spread = 0", 1);
    let keys: Vec<String> = errors(&several).errors.into_iter().map(|error| error.key).collect();
    assert_eq!(keys, ["rtt", "rtt.ms", "rule.spread"]);

    let many = errors(&format!("{GOOD}{}", "[[rule]]\n".repeat(100)));
    assert_eq!((many.errors.len(), many.omitted), (MAX_CONFIG_ERRORS, 200));
    assert!(many.to_string().ends_with("and 200 more"));
}

#[test]
fn files_without_regions_or_above_the_limits_are_refused() {
    assert_eq!(errors("").to_string(), "r.toml:1: region: there is none; at least one is needed");
    assert_eq!(errors("region = [1]").to_string(), "r.toml:1: region: must be a table");
    let big = errors(&format!("#{}", "x".repeat(MAX_CONFIG_BYTES)));
    assert_eq!(big.to_string(), "r.toml:1: syntax: the file has 1048577 bytes; the limit is 1048576");
    let crowd = errors(&"[[region]]\n".repeat(65));
    assert!(crowd.to_string().contains("region: 65 entries; the limit is 64"), "{crowd}");
    let nested = errors(&format!("a = {}", "[".repeat(100_000)));
    assert!(nested.to_string().contains("cannot recurse further"), "{nested}");
}

#[test]
fn sections_may_be_inline_arrays_and_one_region_needs_no_round_trip() {
    let file = Regions::parse("r.toml", "region = [{ name = \"a\", place = \"A\" }]").unwrap();
    assert_eq!((file.rtt("a", "a"), file.rules().find(&name("x"))), (Some(0.0), None));
}

#[test]
fn the_shipped_files_parse_and_agree_with_each_other() {
    let shipped = |file: &str| Regions::parse(file, Regions::shipped(file).unwrap()).unwrap();
    let (single, three, ten) = (shipped("single"), shipped("three-continents"), shipped("ten-cities"));
    assert_eq!(
        [&single, &three, &ten].map(|file| (file.regions().len(), file.places().len())),
        [(1, 1), (3, 10), (10, 10)]
    );
    for place in three.places() {
        for region in three.regions() {
            let (place, region) = (place.name.as_str(), region.name.as_str());
            assert_eq!(three.rtt(place, region), ten.rtt(place, region), "{place} {region}");
        }
    }
    assert_eq!(ten.rtt("toronto", "madrid"), Some(107.0), "the mean of 108 and 106");
    assert_eq!(three.nearest("london").unwrap().name.as_str(), "frankfurt");

    for file in [&single, &three, &ten] {
        let rule = |scope: &str| file.rules().find(&name(scope)).unwrap();
        assert_eq!(
            (rule("shop/carts").kind, &*rule("shop/carts").policy.counters),
            (Kind::Document, &["/items/*/n".to_owned()][..])
        );
        assert_eq!([rule("stats/visits").kind, rule("cache/pages").kind], [Kind::Counter, Kind::Register]);
        assert_eq!([&*rule("notes").name, &*rule("shop").name], ["documents"; 2]);
        let everywhere = |rule: &Rule| rule.regions.len() == file.regions().len();
        assert!(file.rules().iter().all(|rule| rule.placing.mode == Mode::Follow || everywhere(rule)));
    }
    assert_eq!(Regions::shipped("two"), None);
}

#[test]
fn patterns_match_by_segment() {
    for (pattern, matching, other) in [
        ("a/b", vec!["a/b"], vec!["a", "a/b/c", "a/bb"]),
        ("team1/**", vec!["team1/a", "team1/a/b"], vec!["team1", "team10", "team10/a"]),
        ("**", vec!["a", "a/b/c"], vec![]),
        ("*", vec!["a", "abc"], vec!["a/b"]),
        ("team-*/carts", vec!["team-/carts", "team-a/carts"], vec!["team-a/b/carts", "team/carts", "team-a"]),
        ("*/x/**", vec!["a/x/b", "b/x/c/d"], vec!["a/x", "a/y/b"]),
        ("a*b*c", vec!["abc", "axxbxbxc"], vec!["ab", "acb", "abcd"]),
    ] {
        let parsed: Pattern = pattern.parse().unwrap();
        assert_eq!(parsed.to_string(), pattern);
        assert!(matching.iter().all(|text| parsed.matches(&name(text))), "{pattern}");
        assert!(!other.iter().any(|text| parsed.matches(&name(text))), "{pattern}");
    }
    let slow: Pattern = format!("{}b", "*a".repeat(60)).parse().unwrap();
    assert!(!slow.matches(&name(&"a".repeat(128))), "and this ends");
}

#[test]
fn the_first_matching_rule_decides_and_shares_split_names_by_golden_points() {
    let file = Regions::parse("r.toml", GOOD).unwrap();
    assert_eq!(&*file.rules().find(&name("shop/carts")).unwrap().name, "rest", "its point is 89");
    assert_eq!(&*file.rules().find(&name("other")).unwrap().name, "rest");
    for (text, point) in [("shop/carts", 89), ("a", 3), ("team1/x", 7)] {
        let share: Share = format!("{point}..{}%", point + 1).parse().unwrap();
        assert!(share.contains(&name(text)), "{text}");
    }
}

#[test]
fn a_rule_is_unreachable_only_if_one_earlier_rule_leaves_nothing() {
    let rule = |i: usize, pattern: &str, share: &str| {
        format!("[[rule]]\nname = \"r{i}\"\npattern = \"{pattern}\"\nkind = \"counter\"\n{share}\n")
    };
    for (earlier, later, reachable) in [
        (("a/**", ""), ("a/b", ""), false),
        (("a/**", ""), ("a", ""), true),
        (("a/**", ""), ("a/b/**", ""), false),
        (("a/**", ""), ("a/**", ""), false),
        (("a/*", ""), ("a/**", ""), true),
        (("a/*/**", ""), ("a/**", ""), true),
        (("*/**", ""), ("a/**", ""), false),
        (("t*", ""), ("team*", ""), false),
        (("team*", ""), ("t*", ""), true),
        (("**", "share = \"0..50%\""), ("**", ""), true),
        (("**", "share = \"0..100%\""), ("**", ""), false),
        (("**", "share = \"0..50%\""), ("**", "share = \"10..20%\""), false),
        (("**", "share = \"0..50%\""), ("**", "share = \"40..60%\""), true),
    ] {
        let rules = rule(1, earlier.0, earlier.1) + &rule(2, later.0, later.1);
        let text = format!("region = [{{ name = \"a\", place = \"A\" }}]\n{rules}");
        assert_eq!(Regions::parse("r.toml", &text).is_ok(), reachable, "{earlier:?} {later:?}");
    }
}

#[test]
fn expiries_need_a_unit_and_stay_between_a_second_and_ten_years() {
    for (text, seconds) in [("1s", 1), ("30m", 1800), ("12h", 43_200), ("3650d", 315_360_000)] {
        assert_eq!(parse_expiry(text), Ok(Duration::from_secs(seconds)), "{text}");
    }
    for text in [
        "",
        "s",
        "1",
        "1.5h",
        "-1s",
        "+1s",
        "1 s",
        "1w",
        "0d",
        "18446744073709551615d",
        "99999999999999999999s",
    ] {
        assert!(parse_expiry(text).is_err(), "{text}");
    }
}

#[test]
fn an_implied_record_serves_where_the_rule_says_under_its_epoch() {
    let file = Regions::parse("r.toml", GOOD).unwrap();
    let rule = file.rules().get("shop").unwrap();
    let record = PlacementRecord::implied(7, rule, &name("shop/carts"));
    assert_eq!((record.scope.to_string().as_str(), record.epoch, &*record.rule), ("shop/carts#0", 7, "shop"));
    assert_eq!(record.members().map(|region| region.as_str()).collect::<Vec<_>>(), ["tokyo"]);
    assert_eq!((record.kind, record.spread, &record.policy), (rule.kind, rule.spread, &rule.policy));
    let (index, shard) = record.shard("alice");
    assert_eq!((index, shard), (2, crate::ShardId::of(&record.scope, 2)));
}

/// Text that is nearly a regions file: the good one with a stretch replaced by fragments.
fn nearly_good() -> impl Strategy<Value = String> {
    let fragment = prop_oneof![
        Just("[[rule]]\n"),
        Just("[rtt]\n"),
        Just("[[rtt.x]]\n"),
        Just("name = "),
        Just("\"**\"\n"),
        Just("pattern = "),
        Just("kind = \"counter\"\n"),
        Just("[["),
        Just("]"),
        Just("{"),
        Just("}"),
        Just("\"\"\""),
        Just("nan"),
        Just("0x_1"),
        Just("1e999"),
        Just("-0\n"),
        Just("a.b.c = 1\n"),
        Just("\r"),
        Just("\u{0}"),
        Just("\u{feff}"),
        Just("é"),
        Just("="),
        Just("\n"),
        Just(","),
        Just("share = \"0..1%\"\n"),
        Just("1979-05-27\n"),
    ];
    (any::<proptest::sample::Index>(), 0..40_usize, proptest::collection::vec(fragment, 0..12)).prop_map(
        |(start, length, fragments)| {
            let start = start.index(GOOD.len()); // the good file is ASCII
            let end = (start + length).min(GOOD.len());
            format!("{}{}{}", &GOOD[..start], fragments.concat(), &GOOD[end..])
        },
    )
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused_with_lines_that_exist(text in prop_oneof![nearly_good(), ".{0,80}".boxed()]) {
        if let Err(errors) = Regions::parse("r.toml", &text) {
            let lines = text.matches('\n').count() + 1;
            prop_assert!(!errors.errors.is_empty());
            for error in errors.errors {
                prop_assert!((1..=lines).contains(&error.line) && !error.key.is_empty() && !error.reason.is_empty());
                prop_assert!(!error.to_string().chars().any(char::is_control), "{error}");
            }
        }
    }

    #[test]
    fn implied_is_a_function_of_its_arguments_alone(epoch: u64, scope in "[a-z0-9]{1,9}(/[a-z0-9]{1,9}){0,3}") {
        let (one, two) = (Regions::parse("one", GOOD).unwrap(), Regions::parse("two", GOOD).unwrap());
        let scope = name(&scope);
        let record = |file: &Regions| PlacementRecord::implied(epoch, file.rules().find(&scope).unwrap(), &scope);
        prop_assert_eq!(record(&one), record(&two));
        prop_assert_eq!(record(&one).scope.name, scope);
    }

    #[test]
    fn a_pattern_that_covers_another_matches_what_it_matches(
        a in "[ab*]{1,3}(/[ab*]{1,2}){0,2}(/\\*\\*)?",
        b in "[ab*]{1,3}(/[ab*]{1,2}){0,2}(/\\*\\*)?",
        text in "[ab]{1,3}(/[ab]{1,2}){0,3}",
    ) {
        if let (Ok(a), Ok(b)) = (a.parse::<Pattern>(), b.parse::<Pattern>()) {
            prop_assert!(a.covers(&a));
            let text = name(&text);
            prop_assert!(!(a.covers(&b) && b.matches(&text)) || a.matches(&text));
        }
    }

    #[test]
    fn patterns_shares_and_durabilities_never_panic_and_print_as_they_read(text in "[a0-9*/.%:~regionslocal-]{0,20}|.{0,20}") {
        if let Ok(pattern) = text.parse::<Pattern>() {
            prop_assert_eq!(pattern.to_string(), &*text);
        }
        if let Ok(durability) = text.parse::<Durability>() {
            prop_assert_eq!(durability.to_string().parse(), Ok(durability));
        }
        if let Ok(share) = text.parse::<Share>() {
            prop_assert_eq!(share.to_string().parse(), Ok(share));
        }
        let _ = parse_expiry(&text);
    }
}

fn policy_hash(file: &str) -> PolicyHash {
    Regions::parse("r.toml", file).unwrap().rules().hash()
}

#[test]
fn policy_hashes_keep_their_golden_values() {
    // Computed by another implementation of SHA-256. If one changes, nodes of two versions refuse each other.
    let hex = |hash: PolicyHash| hash.0.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let golden = "58b3482f0771c597a8cd9ebe262cb33f8a96090444abe551eb2c2573b6e7abe4";
    assert_eq!(hex(policy_hash(GOOD)), golden);
    assert_eq!(policy_hash(GOOD).to_string(), golden[..16]);
    let none = "73c555069d36991e7898c8fd4d9d66a3efdd407196d22070a6287ca3c8769e18";
    assert_eq!(hex(Rules::default().hash()), none);
}

#[test]
fn a_policy_hash_depends_on_what_members_must_find_alike_and_on_nothing_else() {
    let with = |from: &str, to: &str| {
        assert!(GOOD.contains(from), "{from}");
        policy_hash(&GOOD.replacen(from, to, 1))
    };
    let matters = [
        ("shop/**", "shop/*"),
        ("0..25%", "0..26%"),
        ("share = \"0..25%\"\n", ""),
        ("kind = \"register\"", "kind = \"counter\""),
        ("spread = 4", "spread = 5"),
        ("regions = [\"tokyo\"]", "regions = [\"tokyo\", \"dallas\"]"),
        ("text = [\"/note\"]", "text = [\"/notes\"]"),
        ("counters = [\"/items/*/n\"]", "counters = [\"/items/*/m\"]"),
        ("[[rule]]\nname = \"rest\"\npattern = \"**\"\nkind = \"register\"\n", ""),
    ];
    for (from, to) in matters {
        assert_ne!(with(from, to), policy_hash(GOOD), "{from} -> {to}");
    }
    let does_not = [
        ("name = \"shop\"", "name = \"shops\""),
        ("durability = \"regions:1\"", "durability = \"local\""),
        ("expiry = \"30m\"", "expiry = \"31m\""),
        ("history_bytes = 1048576", "history_bytes = 1048577"),
        ("history_changes = 1000", "history_changes = 1001"),
        ("ms = 113", "ms = 114"),
        ("pattern = \"**\"", "pattern = \"**\"\nshare = \"0..100%\""),
    ];
    for (from, to) in does_not {
        assert_eq!(with(from, to), policy_hash(GOOD), "{from} -> {to}");
    }
    let one = with("regions = [\"tokyo\"]", "regions = [\"tokyo\", \"dallas\"]");
    assert_ne!(
        one,
        with("regions = [\"tokyo\"]", "regions = [\"dallas\", \"tokyo\"]"),
        "the steward's comes first"
    );
    let paths = with("text = [\"/note\"]", "text = [\"/note\", \"/a\"]");
    assert_eq!(paths, with("text = [\"/note\"]", "text = [\"/a\", \"/note\"]"), "their order says nothing");
}
