#![allow(clippy::unwrap_used, clippy::expect_used)] // a failed assumption of a test is a failed test

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};

use super::{Args, Command, Version, call_time, moment, version};

fn parse(line: &[&str]) -> Result<Command, clap::Error> {
    Args::try_parse_from(["tropism"].iter().chain(line)).map(|args| args.command)
}

#[test]
fn the_commands_of_the_manual_are_understood() {
    for line in [
        &["put", "shop/carts", "alice", "{\"items\":[]}", "--from", "tokyo"][..],
        &["put", "cache/pages", "home", "--file", "page.html", "--ttl", "30m", "--content-type", "text/html"],
        &["put", "cache/pages", "home", "--text", "-1", "--durability", "regions:2"],
        &["put", "cache/pages", "home", "--stdin", "--if-absent", "--show-version"],
        &["put", "a", "b", "{}", "--base", "00ff", "--if-version", "00ff"],
        &["get", "shop/carts", "alice", "--endpoint", "http://a:1", "--endpoint", "http://b:2", "--json"],
        &["patch", "shop/carts", "alice", "--op", "inc /items/0/n 1", "--op", "set /note \"hello\""],
        &["patch", "shop/carts", "alice", "--json-patch", "-"],
        &["patch", "shop/carts", "alice", "--merge-patch", "patch.json", "--ttl", "1s"],
        &["incr", "stats/visits", "home"],
        &["incr", "stats/visits", "home", "-5"],
        &["delete", "shop/carts", "alice", "--if-version", "ab"],
        &["expire", "cache/pages", "home", "--never"],
        &["expire", "cache/pages", "home", "--at", "2030-01-31T12:00:00Z"],
        &["ttl", "cache/pages", "home", "--timeout", "250ms"],
        &["scan", "shop/carts", "--prefix", "a", "--start", "a", "--end", "b", "--limit", "10", "--keys"],
        &["watch", "shop/carts", "--values"],
        &["watch", "shop/carts", "--key", "alice", "--resume", "0102"],
        &["load", "shop/catalogue", "-"],
        &["stamp", "shop/orders", "--count", "1000"],
        &["status", "--ready-file", "ready.json"],
        &["parked", "list"],
        &["parked", "list", "shop/carts", "--every-key", "--json", "--from", "tokyo"],
        &["parked", "show", "shop/carts", "alice", "--node", "tokyo-1"],
        &["parked", "retry", "shop/carts"],
        &["parked", "retry", "shop/carts", "alice", "--endpoint", "http://a:1"],
        &["parked", "drop", "shop/carts", "alice", "--yes"],
        &["scopes", "--prefix", "shop"],
        &["scope", "shop/carts"],
        &["verify", "shop/carts", "--from", "tokyo", "--json"],
        &["trace-write", "shop/carts", "alice", "{}", "--from", "tokyo", "--json"],
        &[
            "dev",
            "--regions",
            "r.toml",
            "--nodes-per-region",
            "1",
            "--data",
            "d",
            "--fresh",
            "--ready-file",
            "r",
        ],
        &["dev", "link", "cut", "tokyo", "dallas", "--one-way"],
        &["dev", "link", "slow", "tokyo", "dallas", "--extra", "300ms", "--bytes-per-second", "100000"],
        &["dev", "node", "kill", "tokyo-1"],
        &["dev", "links", "--json"],
        &["serve", "--config", "node.toml", "--engine", "memory"],
        &["serve", "--end-with-stdin", "--config", "node.toml"],
        &["config", "example", "--markdown"],
        &["config", "check", "node.toml"],
        &["completions", "bash"],
    ] {
        parse(line).unwrap_or_else(|error| panic!("{line:?}: {error}"));
    }
}

#[test]
fn wrong_arguments_end_with_status_two_and_name_the_argument() {
    let put = |more: &[&'static str]| [&["put", "a", "b", "{}"][..], more].concat();
    for (line, part) in [
        (vec!["frobnicate"], "frobnicate"),
        (vec!["get", "a"], "<KEY>"),
        (vec!["get", "a", "b", "--frobnicate"], "--frobnicate"),
        (vec!["get", "A", "b"], "<SCOPE>"),
        (vec!["get", "a//b", "c"], "<SCOPE>"),
        (vec!["get", "a", ""], "<KEY>"),
        (vec!["get", "a", "b\nc"], "<KEY>"),
        (vec!["get", "a", "b", "--timeout", "5"], "--timeout"),
        (vec!["get", "a", "b", "--timeout", "0s"], "1ms to 60s"),
        (vec!["get", "a", "b", "--timeout", "61s"], "1ms to 60s"),
        (vec!["get", "a", "b", "--from", "tokyo", "--endpoint", "http://a:1"], "--endpoint"),
        (vec!["put", "a", "b"], "--stdin"),
        (put(&["--file", "f"]), "--file"),
        (put(&["--ttl", "30"]), "--ttl"),
        (put(&["--ttl", "10y"]), "--ttl"),
        (put(&["--durability", "everywhere"]), "--durability"),
        (put(&["--durability", "regions:0"]), "--durability"),
        (put(&["--base", "xyz"]), "--base"),
        (put(&["--if-absent", "--if-version", "00"]), "--if-absent"),
        (put(&["--content-type", "text/html"]), "--content-type"),
        (vec!["patch", "a", "b"], "--op"),
        (vec!["patch", "a", "b", "--op", "set /a hello"], "--op"),
        (vec!["patch", "a", "b", "--op", "inc /a 1", "--json-patch", "-"], "--json-patch"),
        (vec!["incr", "a", "b", "many"], "[BY]"),
        (vec!["incr", "a", "b", "9223372036854775808"], "[BY]"),
        (vec!["expire", "a", "b"], "--never"),
        (vec!["expire", "a", "b", "--never", "--ttl", "1s"], "--never"),
        (vec!["expire", "a", "b", "--at", "tomorrow"], "--at"),
        (vec!["scan", "a", "--limit", "0"], "--limit"),
        (vec!["watch", "a", "--key", "b", "--prefix", "c"], "--prefix"),
        (vec!["watch", "a", "--values", "--resume", "00"], "--resume"),
        (vec!["stamp", "a", "--count", "1001"], "--count"),
        (vec!["verify"], "<SCOPE>"),
        (vec!["trace-write", "shop/carts", "alice"], "<VALUE>"),
        (vec!["verify", "a//b"], "<SCOPE>"),
        (vec!["parked"], "list"),
        (vec!["parked", "drop", "a"], "<KEY>"),
        (vec!["parked", "show", "a", "b", "--node", "n", "--from", "tokyo"], "--from"),
        (vec!["dev", "link", "sever", "a", "b"], "sever"),
        (vec!["dev", "node", "kill"], "<ID>"),
        (vec!["serve"], "--config"),
        (vec!["serve", "--config", "f", "--engine", "tape"], "--engine"),
        (vec!["completions", "tcsh"], "tcsh"),
    ] {
        let error = parse(&line).expect_err(&format!("{line:?}"));
        assert_eq!(error.exit_code(), 2, "{line:?}");
        assert!(error.to_string().contains(part), "{line:?}: {error}");
    }
}

#[test]
fn help_and_version_are_no_errors() {
    assert_eq!(parse(&["--version"]).unwrap_err().exit_code(), 0);
    let help = parse(&["get", "--help"]).unwrap_err();
    assert_eq!((help.kind(), help.exit_code()), (ErrorKind::DisplayHelp, 0));
}

#[test]
fn the_version_names_the_commit() {
    let version = Args::command().render_version();
    assert!(version.contains('(') && version.trim_end().ends_with(')'), "{version}");
}

#[test]
fn every_help_ends_with_an_example() {
    fn look(command: &mut clap::Command, path: &str) {
        let help = command.clone().render_long_help().to_string();
        let after = help.rsplit("\n\n").take(2).any(|part| part.starts_with("Example"));
        assert!(after, "{path}: {help}");
        for sub in command.get_subcommands_mut().filter(|sub| sub.get_name() != "help") {
            let path = format!("{path} {}", sub.get_name());
            look(sub, &path);
        }
    }
    Args::command().debug_assert();
    look(&mut Args::command(), "tropism");
}

#[test]
fn call_times_need_a_unit_and_have_limits() {
    assert_eq!(call_time("250ms").unwrap().as_millis(), 250);
    assert_eq!(call_time("1m").unwrap().as_secs(), 60);
    for bad in ["", "s", "10", "+1s", "1.5s", "-1s", "1h", "18446744073709551615m", "1 s"] {
        assert!(call_time(bad).unwrap_err().contains("like \"10s\""), "{bad}");
    }
}

#[test]
fn moments_are_utc_or_unix_seconds() {
    for (text, milliseconds) in [
        ("1970-01-01T00:00:00Z", 0),
        ("2000-02-29T23:59:59Z", 951_868_799_000),
        ("2030-01-31T12:00:00Z", 1_896_091_200_000),
        ("@1900000000", 1_900_000_000_000),
    ] {
        assert_eq!(moment(text), Ok(milliseconds), "{text}");
    }
    for bad in [
        "",
        "@",
        "@-1",
        "@18446744073709551615",
        "2030-01-31",
        "2030-02-30T00:00:00Z",
        "2100-02-29T00:00:00Z",
        "2030-13-01T00:00:00Z",
        "2030-01-01T24:00:00Z",
        "2030-01-01T00:00:00",
        "+030-01-01T00:00:00Z",
        "1969-12-31T23:59:59Z",
        "2030-01-01T00:00:0\u{e9}",
    ] {
        assert!(moment(bad).is_err(), "{bad}");
    }
}

#[test]
fn versions_are_whole_bytes_in_hexadecimal() {
    assert_eq!(version("00fF"), Ok(Version(vec![0, 255])));
    for bad in ["", "0", "0g", "00 ", "\u{e9}"] {
        assert!(version(bad).is_err(), "{bad}");
    }
}
