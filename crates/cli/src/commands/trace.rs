//! `trace-write`: a write, and what it caused in every region, as text.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::task::JoinSet;
use tropism_client::v1::{Kind, Span};
use tropism_client::{Calls, Register, Value};

use crate::args::{Place, TraceWrite};
use crate::output::{Failure, Output, hex, table};
use crate::target::{connect, targets};

/// Pause before nodes are asked again: short beside the way between regions.
const PAUSE: Duration = Duration::from_millis(100);
/// Characters of the time line.
const WIDTH: u64 = 40;

/// Writes, waits until every region that serves the scope has it, and draws who did what when.
pub(super) async fn trace_write(args: &TraceWrite, out: &mut Output) -> Result<(), Failure> {
    let Place { scope, key } = &args.place;
    let client = connect(&args.connection).await?;
    let info = client.scope(scope).await?;
    let value = match info.kind() {
        Kind::Register => {
            let content = args.value.clone().into_bytes().into();
            Value::Register(Register { content, content_type: "text/plain".to_owned() })
        }
        Kind::Counter => {
            return Err(Failure::Failed(format!(
                "{scope} holds counters, which are not put; trace another scope"
            )));
        }
        _ => Value::Document(args.value.clone().into()),
    };
    let (trace, parent): ([u8; 16], [u8; 8]) = (rand::random(), rand::random());
    client.put_traced(scope, key, value, &format!("00-{}-{}-01", hex(&trace), hex(&parent))).await?;

    let mut missing: BTreeSet<String> = info.serving.into_iter().collect();
    let nodes = nodes(args, &client).await?;
    let deadline = Instant::now() + args.connection.timeout;
    let mut spans: BTreeMap<Vec<u8>, Span> = BTreeMap::new();
    loop {
        for span in ask(&nodes, trace).await {
            if ["commit", "apply"].contains(&span.name.as_str()) {
                missing.remove(&span.region);
            }
            spans.insert(span.span_id.to_vec(), span);
        }
        if missing.is_empty() || Instant::now() >= deadline {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    let mut spans: Vec<Span> = spans.into_values().collect();
    spans.sort_by(|a, b| (a.start_us, &a.region, &a.name).cmp(&(b.start_us, &b.region, &b.name)));
    if out.json {
        out.object(&json!({
            "trace_id": hex(&trace), "missing": missing,
            "spans": spans.iter().map(span_json).collect::<Vec<_>>(),
        }))?;
    } else {
        out.bytes(drawn(&hex(&trace), &spans, missing.is_empty()).as_bytes())?;
    }
    out.flush()?; // before the words on stderr
    if missing.is_empty() {
        return Ok(());
    }
    let missing: Vec<String> = missing.into_iter().collect();
    let (time, missing) = (args.connection.timeout, missing.join(", "));
    Err(Failure::Failed(format!("written, but within {time:?} not seen in: {missing}")))
}

/// A client of each node that is known.
async fn nodes(args: &TraceWrite, client: &Calls) -> Result<Vec<Calls>, Failure> {
    let mut endpoints: BTreeSet<String> =
        targets(&args.connection)?.into_iter().map(|target| target.endpoint).collect();
    if !args.connection.endpoint.is_empty() {
        let others = client.nodes().await?.into_iter().map(|node| node.endpoint);
        endpoints.extend(others.filter(|endpoint| !endpoint.is_empty()));
    }
    let client = |endpoint| Ok(Calls::in_order(vec![endpoint])?.with_timeout(args.connection.timeout));
    endpoints.into_iter().map(client).collect()
}

/// What they did; nothing of those that do not answer.
async fn ask(nodes: &[Calls], trace: [u8; 16]) -> Vec<Span> {
    let mut asked = JoinSet::new();
    for node in nodes {
        let node = node.clone();
        asked.spawn(async move { node.spans(trace).await.unwrap_or_default() });
    }
    asked.join_all().await.into_iter().flatten().collect()
}

fn span_json(span: &Span) -> serde_json::Value {
    let told = span.attributes.iter();
    let attributes: BTreeMap<&str, &str> = told.map(|told| (&*told.name, &*told.value)).collect();
    json!({
        "span_id": hex(&span.span_id), "parent_span_id": hex(&span.parent_span_id), "late": span.late,
        "name": span.name, "node": span.node, "region": span.region, "start_us": span.start_us,
        "duration_us": span.duration_us, "attributes": attributes,
    })
}

fn ms(us: u64) -> String {
    format!("{:.1} ms", us as f64 / 1e3) // exact below 2^53 us
}

/// One line a span on one time line, by the clocks of the nodes.
fn drawn(trace: &str, spans: &[Span], everywhere: bool) -> String {
    let begin = spans.iter().map(|span| span.start_us).min().unwrap_or_default();
    let end = spans.iter().map(|span| span.start_us + span.duration_us).max().unwrap_or_default();
    let whole = (end - begin).max(1);
    let rows = spans.iter().map(|span| {
        let from = (span.start_us - begin) * WIDTH / whole;
        let to = ((span.start_us - begin + span.duration_us) * WIDTH)
            .div_ceil(whole)
            .clamp(from + 1, WIDTH.max(from + 1));
        let line: String =
            (0..WIDTH.max(to)).map(|at| if (from..to).contains(&at) { '#' } else { '.' }).collect();
        let name = span.name.rsplit('/').next().unwrap_or_default();
        let late = if span.late { " (late)" } else { "" };
        let start = ms(span.start_us - begin);
        vec![
            span.node.clone(),
            format!("{name}{late}"),
            line,
            format!("at {start}"),
            format!("for {}", ms(span.duration_us)),
        ]
    });
    let rows: Vec<Vec<String>> = rows.collect();
    let told = if everywhere { format!("in every region after {}", ms(whole)) } else { "so far".to_owned() };
    format!("trace {trace}\n{}{told}, by the nodes' clocks\n", table(&rows))
}

#[cfg(test)]
mod tests {
    use super::{Span, drawn};

    #[test]
    fn spans_stand_where_they_were_on_one_time_line() {
        let span = |node: &str, name: &str, start_us, duration_us| Span {
            node: node.into(),
            name: name.into(),
            start_us,
            duration_us,
            ..Span::default()
        };
        let spans = [
            span("a-1", "tropism.v1.StateService/Put", 1_000, 10_000),
            span("a-1", "commit", 3_000, 5_000),
            Span { late: true, ..span("b-1", "apply", 40_000, 1_000) },
        ];
        assert_eq!(
            drawn("t", &spans, true),
            "trace t\n\
             a-1  Put           ##########..............................  at 0.0 ms   for 10.0 ms\n\
             a-1  commit        ..#####.................................  at 2.0 ms   for 5.0 ms\n\
             b-1  apply (late)  .......................................#  at 39.0 ms  for 1.0 ms\n\
             in every region after 40.0 ms, by the nodes' clocks\n"
        );
        assert!(
            drawn("t", &[], false).ends_with("so far, by the nodes' clocks\n"),
            "nothing is no reason to panic"
        );
    }
}
