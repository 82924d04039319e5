//! `scopes` and `scope`: where scopes are, and changes of that.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tropism_client::v1::{DurabilityLevel, Kind, Scope as ScopeRecord, ScopeHold};

use crate::args::{Connection, Scope, ScopeAction, ScopeDrop, ScopeMove, ScopeOne, Scopes};
use crate::output::{Failure, Output, size, table};
use crate::target::connect;

/// How often a scope on its way is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// How long a move is waited for without any step of it.
const MOVE_PATIENCE: Duration = Duration::from_secs(60);

/// `scope`: shows it, or changes where it is.
pub(super) async fn scope(args: Scope, out: &mut Output) -> Result<(), Failure> {
    match args.action {
        None => show(args.show.scope.as_deref().unwrap_or_default(), &args.show.connection, out).await,
        Some(ScopeAction::Show(args)) => show(&args.scope, &args.connection, out).await,
        Some(ScopeAction::Explain(args)) => {
            super::placement::explain(&args.scope, &args.connection, out).await
        }
        Some(ScopeAction::Move(args)) => move_scope(args, out).await,
        Some(ScopeAction::Drop(args)) => drop_scope(&args, out).await,
        Some(ScopeAction::Create(args)) => {
            screen(&connect(&args.connection).await?.create_scope(&args.scope).await?, out)
        }
        Some(ScopeAction::Pin(args)) => hold(&args, ScopeHold::Pinned, out).await,
        Some(ScopeAction::Unpin(args)) => hold(&args, ScopeHold::Free, out).await,
        Some(ScopeAction::Freeze(args)) => hold(&args, ScopeHold::Frozen, out).await,
    }
}

/// `scope move`: decided first, and then waited for, every step of it told.
async fn move_scope(args: ScopeMove, out: &mut Output) -> Result<(), Failure> {
    let client = connect(&args.connection).await?;
    let goal = match (args.stay, args.to.is_empty()) {
        (true, _) => Vec::new(),
        (false, false) => args.to,
        (false, true) => {
            let now = client.scope(&args.scope).await?;
            let mut goal = if now.goal.is_empty() { now.serving } else { now.goal };
            goal.retain(|region| !args.drop.contains(region));
            let new: Vec<String> = args.add.into_iter().filter(|region| !goal.contains(region)).collect();
            goal.extend(new);
            if goal.is_empty() {
                return Err(Failure::Failed(format!(
                    "scope {} was not moved: it would be nowhere; tropism scope drop ends it with all its keys",
                    args.scope
                )));
            }
            goal
        }
    };
    let mut scope = client.move_scope(&args.scope, goal).await?;
    let begun = Instant::now();
    let mut stepped = begun;
    while !args.no_wait && is_moving(&scope) {
        sleep(LOOK).await;
        let now = client.scope(&args.scope).await?;
        if now.epoch != scope.epoch {
            stepped = Instant::now();
            eprintln!("{:>6.1} s  epoch {}: {}", begun.elapsed().as_secs_f64(), now.epoch, step(&now));
        }
        scope = now;
        if is_moving(&scope) && stepped.elapsed() > MOVE_PATIENCE {
            return Err(Failure::Failed(format!(
                "scope {} is still on its way to {} ({}), without a step for {} s; it goes on by itself when all its members \
                 can be reached",
                scope.name,
                scope.goal.join(", "),
                step(&scope),
                MOVE_PATIENCE.as_secs()
            )));
        }
    }
    screen(&scope, out)
}

fn is_moving(scope: &ScopeRecord) -> bool {
    !(scope.goal.is_empty() && scope.learners.is_empty() && scope.leaving.is_empty())
}

/// What a scope waits for, in a few words.
fn step(scope: &ScopeRecord) -> String {
    let serving = scope.serving.join(", ");
    match (&*scope.learners, &*scope.leaving) {
        ([], []) if scope.goal.is_empty() => format!("served by {serving}"),
        ([], []) => format!("served by {serving}, on its way to {}", scope.goal.join(", ")),
        (learners, []) => format!("served by {serving}; {} learns it", learners.join(", ")),
        (_, leaving) => format!("served by {serving}; {} hands it over", leaving.join(", ")),
    }
}

/// `scope drop`: only when really meant.
async fn drop_scope(args: &ScopeDrop, out: &mut Output) -> Result<(), Failure> {
    let client = connect(&args.connection).await?;
    let scope = client.scope(&args.scope).await?;
    if !args.yes {
        let keys = scope.usage.map_or(0, |usage| usage.visible_keys);
        return Err(Failure::Failed(format!(
            "scope {} was not dropped: it has {}, which would be gone in every region and not come back; say --yes",
            scope.name,
            count(keys)
        )));
    }
    let dropped = client.drop_scope(&args.scope, scope.incarnation).await?;
    if out.json {
        return out.object(&json!({
            "name": scope.name, "incarnation": scope.incarnation, "epoch": dropped.epoch,
            "visible_keys": dropped.visible_keys,
        }));
    }
    out.line(format!("dropped {} with {}", scope.name, count(dropped.visible_keys)))
}

fn count(keys: u64) -> String {
    if keys == 1 { "1 key".to_owned() } else { format!("{keys} keys") }
}

/// `scope pin`, `unpin` and `freeze`: who may move it.
async fn hold(args: &ScopeOne, hold: ScopeHold, out: &mut Output) -> Result<(), Failure> {
    screen(&connect(&args.connection).await?.hold_scope(&args.scope, hold).await?, out)
}

/// `scopes`: one line for each.
pub(super) async fn scopes(args: Scopes, out: &mut Output) -> Result<(), Failure> {
    let client = connect(&args.connection).await?;
    let prefix = args.prefix.unwrap_or_default();
    let mut rows = Vec::new();
    let mut page = Default::default();
    loop {
        let (scopes, next) = client.scopes(&prefix, page).await?;
        for scope in &scopes {
            if out.json {
                out.object(&scope_json(scope))?;
                continue;
            }
            let keys = scope.usage.map(|usage| count(usage.visible_keys)).unwrap_or_default();
            rows.push(vec![scope.name.clone(), kind(scope.kind()).to_owned(), keys, scope.serving.join(" ")]);
        }
        if next.is_empty() {
            break;
        }
        page = next;
    }
    out.bytes(table(&rows).as_bytes())
}

/// `scope`: where it lives and what the node holds of it.
async fn show(name: &str, connection: &Connection, out: &mut Output) -> Result<(), Failure> {
    screen(&connect(connection).await?.scope(name).await?, out)
}

fn screen(scope: &ScopeRecord, out: &mut Output) -> Result<(), Failure> {
    if out.json {
        return out.object(&scope_json(scope));
    }
    let source = if scope.implied { "follows from its rule" } else { "has a record of its own" };
    let mut rows = vec![
        ("scope", scope.name.clone()),
        ("kind", kind(scope.kind()).to_owned()),
        ("rule", format!("{} ({source}, epoch {})", scope.rule, scope.epoch)),
        ("shards", scope.spread.to_string()),
        ("serving", scope.serving.join(" ")),
        ("learners", scope.learners.join(" ")),
        ("leaving", scope.leaving.join(" ")),
        ("goal", scope.goal.join(" ")),
        ("moved by", moved_by(scope.hold()).to_owned()),
        ("durability", durability(scope)),
    ];
    match scope.usage {
        Some(usage) => {
            rows.push(("keys", usage.visible_keys.to_string()));
            rows.push(("stored", size(usage.stored_bytes)));
            rows.push(("stubs", usage.stubs.to_string()));
            rows.push(("parked", usage.parked_keys.to_string()));
        }
        None => rows.push(("keys", "nothing was ever written, as far as this node knows".to_owned())),
    }
    let rows: Vec<Vec<String>> = rows
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| vec![name.to_owned(), value])
        .collect();
    out.bytes(table(&rows).as_bytes())
}

fn scope_json(scope: &ScopeRecord) -> Value {
    json!({
        "name": scope.name, "incarnation": scope.incarnation, "epoch": scope.epoch, "kind": kind(scope.kind()),
        "spread": scope.spread, "rule": scope.rule, "implied": scope.implied, "serving": scope.serving,
        "learners": scope.learners, "leaving": scope.leaving, "goal": scope.goal, "hold": hold_name(scope.hold()), "durability": durability(scope),
        "usage": scope.usage.map(|usage| json!({
            "visible_keys": usage.visible_keys, "stored_bytes": usage.stored_bytes, "stubs": usage.stubs,
            "parked_keys": usage.parked_keys,
        })),
    })
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Document => "document",
        Kind::Register => "register",
        Kind::Counter => "counter",
        Kind::Unspecified => "unknown",
    }
}

fn durability(scope: &ScopeRecord) -> String {
    let durability = scope.durability.unwrap_or_default();
    match durability.level() {
        DurabilityLevel::Local => "local".to_owned(),
        DurabilityLevel::Region => "region".to_owned(),
        DurabilityLevel::Regions => format!("regions:{}", durability.regions),
        DurabilityLevel::Unspecified => String::new(),
    }
}

fn hold_name(hold: ScopeHold) -> &'static str {
    match hold {
        ScopeHold::Free => "free",
        ScopeHold::Pinned => "pinned",
        ScopeHold::Frozen => "frozen",
        ScopeHold::Unspecified => "unknown",
    }
}

/// Who may move a scope, where that is not everybody.
fn moved_by(hold: ScopeHold) -> &'static str {
    match hold {
        ScopeHold::Pinned => "operators only (pinned)",
        ScopeHold::Frozen => "nobody (frozen)",
        ScopeHold::Free | ScopeHold::Unspecified => "",
    }
}
