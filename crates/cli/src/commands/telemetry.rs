//! `telemetry`: what nodes log and sample, and changing it while they run.

use serde_json::json;
use tropism_client::Calls;
use tropism_client::v1::{SetTelemetryRequest, SetTelemetryResponse};

use crate::args::{AtNode, Telemetry, TelemetryAction};
use crate::output::{Failure, Output, table};
use crate::target::{named_targets, one_target};

/// Of a million.
const MILLION: f64 = 1e6;

pub(super) async fn telemetry(args: Telemetry, out: &mut Output) -> Result<(), Failure> {
    let (at, request, targets) = match args.action {
        TelemetryAction::Show(args) => {
            let targets = named_targets(&args.at)?;
            (args.at, SetTelemetryRequest::default(), targets)
        }
        TelemetryAction::Set(args) => {
            let targets = if args.all_nodes { named_targets(&args.at)? } else { vec![one_target(&args.at)?] };
            let request =
                SetTelemetryRequest { node: String::new(), sampling_ppm: args.sampling, log: args.log };
            (args.at, request, targets)
        }
    };
    let mut told = Vec::new();
    for target in targets {
        let AtNode { connection, .. } = &at;
        let client = Calls::in_order(vec![target.endpoint.clone()])?.with_timeout(connection.timeout);
        told.push(client.set_telemetry(&request).await?);
    }
    if out.json {
        return told.iter().try_for_each(|node| {
            out.object(&json!({
                "node": node.node, "region": node.region, "sampling": sampling(node), "log": node.log,
                "exports": node.exports,
            }))
        });
    }
    let row = |node: &SetTelemetryResponse| {
        let sampling =
            if node.exports { sampling(node).to_string() } else { "none, there is no collector".to_owned() };
        vec![node.region.clone(), node.node.clone(), sampling, node.log.clone()]
    };
    let head = ["region", "node", "sampling", "log"].map(str::to_owned).to_vec();
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(told.iter().map(row)).collect();
    out.bytes(table(&rows).as_bytes())
}

fn sampling(node: &SetTelemetryResponse) -> f64 {
    f64::from(node.sampling_ppm) / MILLION
}
