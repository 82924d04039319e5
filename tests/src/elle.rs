//! The checker of somebody else: `adya`, an implementation of Elle (Kingsbury and Alvaro, VLDB 2020) that knows nothing of
//! ours.

use adya::{History, Opts, Report, Valid, Workload};
use tropism_sim::history::{Operation, elle_histories};

/// What a session is promised of one key: a single order of its writes that every session sees parts of, one after the
/// other, with its own behind what it saw.
const MODEL: &str = "strong-session-serializable";

/// What is wrong with the registers of a history, key by key; and how many keys were looked at.
pub fn check(history: &[Operation]) -> Result<(usize, Vec<String>), String> {
    let histories = elle_histories(history);
    let mut wrong = Vec::new();
    for ((scope, key), lines) in &histories {
        let report = check_key(lines).map_err(|error| format!("{scope} {key}: {error}"))?;
        // Of a key that was only ever read before it was written, or by nobody, there is nothing to say.
        if report.valid == Valid::False {
            let first = report.anomalies.values().flatten().next();
            let how = first.map(|anomaly| anomaly.explanation.as_str()).unwrap_or_default();
            wrong.push(format!("{scope} {key}: {}: {how}", report.anomaly_types.join(", ")));
        }
    }
    Ok((histories.len(), wrong))
}

fn check_key(lines: &str) -> Result<Report, String> {
    let history = History::from_json(lines).map_err(|error| error.to_string())?;
    let options = Opts { models: vec![MODEL.into()], sequential_keys: true, ..Opts::default() };
    Ok(adya::check(&history, Workload::RwRegister, &options))
}
