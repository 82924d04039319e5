//! The contract's descriptors, problems, and conversions.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorSet};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};
use tropism_crdt::ExpiryChange;
use tropism_placement::{Durability, Kind, PlacementRecord, Regions, ScopeName};

use crate::error::{
    DOMAIN, Effect, MAX_ECHO_BYTES, MAX_FACT_BYTES, MAX_PROBLEM_BYTES, Problem, RESUME_TOKEN, Reason, echo,
};
use crate::{DESCRIPTORS, TOKEN_METADATA, from_proto, limits, to_proto, v1};

fn descriptors() -> FileDescriptorSet {
    FileDescriptorSet::decode(DESCRIPTORS).unwrap()
}

#[test]
fn the_descriptors_list_the_services_and_their_methods() {
    let services: BTreeMap<String, Vec<String>> = descriptors()
        .file
        .iter()
        .inspect(|file| assert_eq!(file.package(), "tropism.v1"))
        .flat_map(|file| &file.service)
        .map(|service| {
            (
                service.name().to_owned(),
                service.method.iter().map(|method| method.name().to_owned()).collect(),
            )
        })
        .collect();
    let methods = |name: &str| services[name].join(" ");
    assert_eq!(services.len(), 8);
    assert_eq!(
        methods("StateService"),
        "Get BatchGet Put BatchPut Patch Increment BatchIncrement Delete Expire Scan Watch Stamp"
    );
    assert_eq!(
        methods("ScopeService"),
        "GetScope ListScopes VerifyScope DropScope CreateScope MoveScope HoldScope"
    );
    assert_eq!(methods("PlacementService"), "ExplainScope ListPlacementEvents");
    assert_eq!(methods("HistoryService"), "GetHistory GetAt ListConflicts");
    assert_eq!(methods("ParkedService"), "ListParked GetParked RetryParked DropParked");
    assert_eq!(methods("ClusterService"), "GetStatus ListRegions ListNodes ListSpans SetTelemetry");
    assert_eq!(methods("PeerService"), "Link");
    assert_eq!(methods("DirectoryService"), "Ask");
}

/// Numbers of fields in `descriptor.proto`, of which paths to comments are made.
mod path {
    pub(super) const FILE_PACKAGE: i32 = 2;
    pub(super) const FILE_MESSAGE: i32 = 4;
    pub(super) const FILE_ENUM: i32 = 5;
    pub(super) const FILE_SERVICE: i32 = 6;
    pub(super) const FILE_SYNTAX: i32 = 12;
    pub(super) const MESSAGE_FIELD: i32 = 2;
    pub(super) const MESSAGE_MESSAGE: i32 = 3;
    pub(super) const MESSAGE_ENUM: i32 = 4;
    pub(super) const MESSAGE_ONEOF: i32 = 8;
    pub(super) const ENUM_VALUE: i32 = 2;
    pub(super) const SERVICE_METHOD: i32 = 2;
}

/// Every element's name with its path.
#[derive(Default)]
struct Elements(Vec<(String, Vec<i32>)>);

impl Elements {
    fn add(&mut self, name: String, parent: &[i32], field: i32, index: usize) -> Vec<i32> {
        let path = [parent, &[field, i32::try_from(index).unwrap()]].concat();
        self.0.push((name, path.clone()));
        path
    }

    fn add_message(&mut self, message: &DescriptorProto, parent: &[i32], field: i32, index: usize) {
        let name = message.name();
        let path = self.add(name.to_owned(), parent, field, index);
        for (i, field) in message.field.iter().enumerate() {
            self.add(format!("{name}.{}", field.name()), &path, path::MESSAGE_FIELD, i);
        }
        // A field that is `optional` is the only one of a oneof that nobody wrote.
        let written =
            |i: usize| message.field.iter().any(|f| f.oneof_index == Some(i as i32) && !f.proto3_optional());
        for (i, oneof) in message.oneof_decl.iter().enumerate().filter(|(i, _)| written(*i)) {
            self.add(format!("{name}.{}", oneof.name()), &path, path::MESSAGE_ONEOF, i);
        }
        for (i, nested) in message.nested_type.iter().enumerate() {
            self.add_message(nested, &path, path::MESSAGE_MESSAGE, i);
        }
        for (i, nested) in message.enum_type.iter().enumerate() {
            self.add_enum(nested, &path, path::MESSAGE_ENUM, i);
        }
    }

    fn add_enum(&mut self, enumeration: &EnumDescriptorProto, parent: &[i32], field: i32, index: usize) {
        let path = self.add(enumeration.name().to_owned(), parent, field, index);
        for (i, value) in enumeration.value.iter().enumerate() {
            self.add(value.name().to_owned(), &path, path::ENUM_VALUE, i);
        }
    }
}

#[test]
fn every_element_of_the_contract_has_a_leading_comment() {
    let mut seen = 0;
    for file in descriptors().file {
        let mut elements = Elements::default();
        elements.0.push((format!("the file {}", file.name()), vec![path::FILE_SYNTAX]));
        elements.0.push((format!("the package of {}", file.name()), vec![path::FILE_PACKAGE]));
        for (i, message) in file.message_type.iter().enumerate() {
            elements.add_message(message, &[], path::FILE_MESSAGE, i);
        }
        for (i, enumeration) in file.enum_type.iter().enumerate() {
            elements.add_enum(enumeration, &[], path::FILE_ENUM, i);
        }
        for (i, service) in file.service.iter().enumerate() {
            let path = elements.add(service.name().to_owned(), &[], path::FILE_SERVICE, i);
            for (i, method) in service.method.iter().enumerate() {
                elements.add(method.name().to_owned(), &path, path::SERVICE_METHOD, i);
            }
        }
        let commented: BTreeSet<Vec<i32>> = file
            .source_code_info
            .as_ref()
            .expect("built with source info")
            .location
            .iter()
            .filter(|location| location.leading_comments().trim().len() > 3)
            .map(|location| location.path.clone())
            .collect();
        let bare: Vec<&String> =
            elements.0.iter().filter(|(_, path)| !commented.contains(path)).map(|(name, _)| name).collect();
        assert!(bare.is_empty(), "{} without a comment: {bare:?}", file.name());
        seen += elements.0.len();
    }
    assert!(seen > 300, "only {seen} elements found");
}

#[test]
fn enums_begin_with_unspecified_and_their_values_with_their_name() {
    for enumeration in descriptors().file.iter().flat_map(|file| &file.enum_type) {
        let mut prefix = String::new();
        for c in enumeration.name().chars() {
            if c.is_uppercase() && !prefix.is_empty() {
                prefix.push('_');
            }
            prefix.push(c.to_ascii_uppercase());
        }
        assert_eq!(enumeration.value[0].name(), format!("{prefix}_UNSPECIFIED"));
        assert_eq!(enumeration.value[0].number(), 0);
        for value in &enumeration.value {
            assert!(value.name().starts_with(&format!("{prefix}_")), "{}", value.name());
        }
    }
}

#[test]
fn methods_have_messages_of_their_own_except_for_the_symmetric_link() {
    for service in descriptors().file.iter().flat_map(|file| &file.service) {
        for method in &service.method {
            let (input, output) = if service.name() == "PeerService" {
                ("LinkFrame".to_owned(), "LinkFrame".to_owned())
            } else {
                (format!("{}Request", method.name()), format!("{}Response", method.name()))
            };
            assert_eq!(method.input_type(), format!(".tropism.v1.{input}"));
            assert_eq!(method.output_type(), format!(".tropism.v1.{output}"));
        }
    }
}

#[test]
fn no_message_contains_itself() {
    // Decoding stops at 100 levels but encoding and dropping do not.
    let files = descriptors().file;
    let messages: BTreeMap<String, &DescriptorProto> = files
        .iter()
        .flat_map(|file| &file.message_type)
        .map(|message| (format!(".tropism.v1.{}", message.name()), message))
        .collect();
    for start in messages.keys() {
        let mut reached = BTreeSet::new();
        let mut queue = vec![start.as_str()];
        while let Some(name) = queue.pop() {
            for field in messages[name].field.iter().filter(|field| field.r#type() == Type::Message) {
                assert_ne!(field.type_name(), start, "{start} contains itself");
                if reached.insert(field.type_name()) {
                    queue.push(field.type_name());
                }
            }
        }
    }
}

#[test]
fn reasons_have_unique_names_that_lead_back_to_them() {
    let names: BTreeSet<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    assert_eq!(names.len(), Reason::ALL.len());
    for reason in Reason::ALL {
        // The grammar of google.rpc.ErrorInfo.
        assert!(reason.as_str().bytes().all(|b| b.is_ascii_uppercase() || b == b'_'), "{reason}");
        assert!(reason.as_str().len() <= 63);
        assert_eq!(Reason::from_name(reason.as_str()), Some(*reason));
        assert_ne!(reason.code(), Code::Ok);
    }
    assert_eq!(Reason::from_name("bad_key"), None);
}

#[test]
fn the_errors_that_the_contract_names_are_reasons() {
    for file in descriptors().file {
        for location in file.source_code_info.unwrap().location {
            let comment = location.leading_comments.unwrap_or_default();
            for word in comment.split('`').skip(1).step_by(2) {
                let is_name = word.len() > 3 && word.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
                let is_other = ["RESET", "CURRENT"].contains(&word) || word.starts_with("DURABILITY_LEVEL_");
                assert!(!is_name || is_other || Reason::from_name(word).is_some(), "{word} in: {comment}");
            }
        }
    }
}

#[test]
fn every_problem_survives_its_status() {
    for &reason in Reason::ALL {
        let plain = Problem::not_found(reason, "something happened");
        let full = Problem::resource_exhausted(
            reason,
            "key_bytes",
            512,
            "key \"x\" has 513 bytes; the limit is 512",
        )
        .at("items[3].key")
        .retry_after(Duration::from_millis(1500))
        .with("region", "tokyo")
        .with_bytes("version", &[0, 0xab, 0xff]);
        for problem in [plain, full] {
            let status = problem.to_status();
            assert_eq!(status.code(), reason.code());
            assert_eq!(Reason::of(&status), Some(reason));
            // Through the headers and back, as a client gets it.
            let mut headers = Default::default();
            status.add_header(&mut headers).unwrap();
            let received = Status::from_header_map(&headers).unwrap();
            assert_eq!(Problem::from_status(&received), Some(problem));
        }
    }
}

#[test]
fn every_message_ends_with_what_happened_to_the_state() {
    let refused = Status::from(Problem::invalid_argument(Reason::BadKey, "key", "key is empty"));
    assert_eq!(refused.message(), "key is empty; no effect");
    let unknown = Status::from(Problem::outcome_unknown("the sync failed"));
    assert_eq!(unknown.message(), "the sync failed; outcome unknown");
    assert_eq!(Problem::from_status(&unknown).unwrap().effect(), Effect::Unknown);
}

#[test]
fn details_follow_the_rules_of_google_rpc() {
    use tonic_types::StatusExt;
    let problem =
        Problem::unavailable(Reason::NotReady, Duration::from_secs(1), "the node starts").at("scope");
    let details = problem.to_status().get_error_details();
    let info = details.error_info().unwrap();
    assert_eq!((info.reason.as_str(), info.domain.as_str()), ("NOT_READY", DOMAIN));
    assert_eq!(info.metadata["effect"], "none");
    let violation = &details.bad_request().unwrap().field_violations[0];
    assert_eq!((violation.field.as_str(), violation.reason.as_str()), ("scope", "NOT_READY"));
    assert_eq!(details.retry_info().unwrap().retry_delay, Some(Duration::from_secs(1)));
}

#[test]
fn a_status_of_others_is_no_problem_of_ours() {
    use tonic_types::{ErrorDetails, StatusExt};
    assert_eq!(Problem::from_status(&Status::unavailable("transport error")), None);
    let foreign = ErrorDetails::with_error_info("BAD_KEY", "example.com", []);
    assert_eq!(Problem::from_status(&Status::with_error_details(Code::Internal, "", foreign)), None);
    let garbage = Status::with_details(Code::Internal, "", Bytes::from_static(b"\xff\xff\xff"));
    assert_eq!(Problem::from_status(&garbage), None);
}

#[test]
fn a_problem_survives_as_one_items_failure() {
    for &reason in Reason::ALL {
        let problem = Problem::not_found(reason, "no").at("key").retry_after(Duration::from_millis(20));
        let failure = problem.to_failure();
        assert_eq!(Problem::from_failure(&failure), Some(problem));
    }
    let later = v1::Failure { reason: "FROM_A_LATER_VERSION".into(), ..Default::default() };
    assert_eq!(Problem::from_failure(&later), None);
}

#[test]
fn the_largest_problem_fits_into_the_trailers() {
    let long = "ä".repeat(MAX_PROBLEM_BYTES);
    let problem =
        Problem::resource_exhausted(Reason::SlowReader, "watch_bytes", 1, "the client read too slowly")
            .with_bytes(RESUME_TOKEN, &vec![7; MAX_FACT_BYTES]);
    assert!(problem.to_status().details().len() * 4 / 3 < limits::MAX_METADATA_BYTES);
    assert_eq!(problem.fact_bytes(RESUME_TOKEN), Some(vec![7; MAX_FACT_BYTES]));
    let without = Problem::internal("x").with_bytes(RESUME_TOKEN, &vec![7; MAX_FACT_BYTES + 1]);
    assert_eq!(without.fact_bytes(RESUME_TOKEN), None);
    let cut = Problem::invalid_argument(Reason::BadJson, "value.json", long);
    assert_eq!(cut.message().len(), MAX_PROBLEM_BYTES);
}

#[test]
fn fields_at_fault_are_found_in_their_parents() {
    let problem = from_proto::key("key", "").unwrap_err().within("items[3]");
    assert_eq!(problem.field(), Some("items[3].key"));
    assert_eq!(Problem::internal("x").within("items[3]").field(), Some("items[3]"));
}

#[test]
fn an_echo_is_short_and_harmless() {
    assert_eq!(echo("tea"), "\"tea\"");
    assert_eq!(echo("\x1b[31m\n\"\u{202e}"), r#""\u{1b}[31m\n\"\u{202e}""#);
    assert_eq!(echo(&"x".repeat(65)), format!("\"{}\"...", "x".repeat(MAX_ECHO_BYTES)));
    assert_eq!(echo(&"ä".repeat(40)), format!("\"{}\"...", "ä".repeat(32)));
    assert_eq!(echo(&format!("x{}", "ä".repeat(40))), format!("\"x{}\"...", "ä".repeat(31)));
}

#[test]
fn names_are_refused_with_their_field_and_limit() {
    assert!(from_proto::scope_name("scope", "shop/carts").is_ok());
    let long = "k".repeat(513);
    let cases = [
        (from_proto::scope_name("scope", "a//b").map(drop), Reason::BadScope, "scope"),
        (from_proto::scope_name("scope", "").map(drop), Reason::BadScope, "scope"),
        (from_proto::key("keys[0]", ""), Reason::BadKey, "keys[0]"),
        (from_proto::key("key", &long), Reason::BadKey, "512"),
        (from_proto::key("key", "a\0"), Reason::BadKey, "key"),
        (from_proto::kind("kind", 0).map(drop), Reason::BadNumber, "kind is 0"),
        (from_proto::kind("kind", -7).map(drop), Reason::BadNumber, "kind is -7"),
        (from_proto::content_type("text/\u{1b}"), Reason::BadContentType, "value.register.content_type"),
        (from_proto::content_type(&"x".repeat(256)), Reason::BadContentType, "255"),
    ];
    for (result, reason, words) in cases {
        let problem = result.unwrap_err();
        assert_eq!(problem.reason(), reason);
        assert!(problem.message().contains(words), "{problem}");
        assert!(problem.field().is_some() && problem.message().len() < 400, "{problem}");
    }
}

#[test]
fn kinds_and_durabilities_survive_the_way_out_and_in() {
    for kind in Kind::ALL {
        assert_eq!(from_proto::kind("kind", to_proto::kind(kind).into()), Ok(kind));
    }
    for level in
        [Durability::Local, Durability::Region, Durability::Regions(1), Durability::Regions(u16::MAX)]
    {
        assert_eq!(from_proto::durability(Some(&to_proto::durability(level))), Ok(Some(level)));
    }
    assert_eq!(from_proto::durability(None), Ok(None));
    assert_eq!(from_proto::durability(Some(&v1::Durability::default())), Ok(None));
}

#[test]
fn durabilities_that_make_no_sense_are_refused() {
    for (level, regions) in [(0, 1), (1, 2), (2, 1), (3, 0), (3, 65_536), (4, 0), (-1, 0), (i32::MAX, 3)] {
        let problem = from_proto::durability(Some(&v1::Durability { level, regions })).unwrap_err();
        assert_eq!(problem.reason(), Reason::BadDurability, "{level} {regions}");
    }
}

#[test]
fn request_ids_have_sixteen_bytes_or_none() {
    assert_eq!(from_proto::request_id(b""), Ok(None));
    assert_eq!(from_proto::request_id(&[7; 16]), Ok(Some([7; 16])));
    for len in [1, 15, 17, 1024] {
        assert_eq!(from_proto::request_id(&vec![7; len]).unwrap_err().reason(), Reason::BadRequestId);
    }
}

#[test]
fn items_of_a_bulk_call_have_request_ids_of_their_own() {
    let id = [0xff; 16];
    assert_eq!(from_proto::item_request_id(id, 0), id);
    assert_eq!(from_proto::item_request_id(id, 3)[12..], [0, 0, 0, 2]);
    assert_eq!(from_proto::item_request_id(id, 3)[..12], [0xff; 12]);
}

#[test]
fn expiries_are_bounded_and_lie_ahead() {
    use v1::expiry::When;
    const NOW: u64 = 1_764_000_000_000;
    const TEN_YEARS: u64 = 315_360_000_000;
    let read = |when| from_proto::expiry(Some(&v1::Expiry { when }), NOW);

    assert_eq!(from_proto::expiry(None, NOW), Ok(ExpiryChange::Keep));
    assert_eq!(read(Some(When::Never(true))), Ok(ExpiryChange::Clear));
    assert_eq!(read(Some(When::TtlMs(1))), Ok(ExpiryChange::At(NOW + 1)));
    assert_eq!(read(Some(When::TtlMs(TEN_YEARS))), Ok(ExpiryChange::At(NOW + TEN_YEARS)));
    assert_eq!(read(Some(When::AtMs(NOW + 1))), Ok(ExpiryChange::At(NOW + 1)));

    let refused = [
        (None, Reason::MissingField),
        (Some(When::Never(false)), Reason::BadExpiry),
        (Some(When::TtlMs(0)), Reason::BadExpiry),
        (Some(When::TtlMs(TEN_YEARS + 1)), Reason::BadExpiry),
        (Some(When::TtlMs(u64::MAX)), Reason::BadExpiry),
        (Some(When::AtMs(0)), Reason::AlreadyExpired),
        (Some(When::AtMs(NOW)), Reason::AlreadyExpired),
        (Some(When::AtMs(NOW + TEN_YEARS + 1)), Reason::BadExpiry),
        (Some(When::AtMs(u64::MAX)), Reason::BadExpiry),
    ];
    for (when, reason) in refused {
        assert_eq!(read(when).unwrap_err().reason(), reason, "{when:?}");
    }
}

#[test]
fn a_token_comes_from_the_body_or_the_metadata_within_their_limits() {
    let mut metadata = MetadataMap::new();
    let read = |body: &[u8], metadata: &MetadataMap| {
        from_proto::token("token", &Bytes::copy_from_slice(body), metadata)
            .map_err(|problem| problem.reason())
    };
    assert_eq!(read(b"", &metadata), Ok(Bytes::new()));
    assert_eq!(read(&[1; limits::MAX_TOKEN_BYTES], &metadata).unwrap().len(), limits::MAX_TOKEN_BYTES);
    assert_eq!(read(&[1; limits::MAX_TOKEN_BYTES + 1], &metadata), Err(Reason::TokenTooLarge));

    metadata.insert_bin(TOKEN_METADATA, MetadataValue::from_bytes(b"meta"));
    assert_eq!(read(b"", &metadata), Ok(Bytes::from_static(b"meta")));
    assert_eq!(read(b"body", &metadata), Ok(Bytes::from_static(b"body")));

    metadata
        .insert_bin(TOKEN_METADATA, MetadataValue::from_bytes(&[1; limits::MAX_METADATA_TOKEN_BYTES + 1]));
    assert_eq!(read(b"", &metadata), Err(Reason::TokenTooLarge));

    let mut headers = metadata.into_headers();
    headers.insert(TOKEN_METADATA, "!!!".parse().unwrap());
    assert_eq!(read(b"", &MetadataMap::from_headers(headers)), Err(Reason::BadToken));
}

#[test]
fn a_deadline_stays_within_its_limits() {
    assert_eq!(from_proto::deadline(None), limits::DEFAULT_DEADLINE);
    assert_eq!(from_proto::deadline(Some(Duration::from_secs(1))), Duration::from_secs(1));
    assert_eq!(from_proto::deadline(Some(Duration::MAX)), limits::MAX_DEADLINE);
}

#[test]
fn an_implied_record_becomes_a_scope() {
    let text = Regions::shipped("three-continents").unwrap();
    let regions = Regions::parse("three-continents.toml", text).unwrap();
    let name = ScopeName::new("stats/visits").unwrap();
    let rule = regions.rules().find(&name).unwrap();
    let scope = to_proto::scope(&PlacementRecord::implied(1, rule, &name), None, None);
    assert_eq!((scope.name.as_str(), scope.epoch, scope.kind()), ("stats/visits", 1, v1::Kind::Counter));
    assert_eq!(scope.serving, ["dallas", "frankfurt", "tokyo"]);
}
