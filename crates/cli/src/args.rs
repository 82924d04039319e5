//! The command line: every command with its arguments, and how their texts are read.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use tropism_client::{Expiry, v1};
use tropism_placement::{Durability, ScopeName, check_key, parse_expiry};
use tropism_wire::error::echo;
use tropism_wire::limits::{MAX_DEADLINE, MAX_STAMPS};

use crate::commands::patch::operation;

mod see;

pub(crate) use see::{Conflicts, History, Telemetry, TelemetryAction, TelemetrySet, TelemetryShow, Top};

/// Version and commit of the program.
pub(crate) const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("TROPISM_COMMIT"), ")");

/// State for applications in several regions: documents, registers and counters, read and written in the region at hand,
/// merged everywhere.
#[derive(Debug, Parser)]
#[command(
    name = "tropism",
    version = VERSION,
    arg_required_else_help = true,
    subcommand_required = true,
    after_help = "Examples:\n  tropism dev                                    three regions on this machine\n  \
                  tropism put shop/carts alice '{\"n\":1}' --from tokyo\n  tropism get shop/carts alice --from dallas"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Write a key: a JSON document, or a register.
    Put(Put),
    /// Print the value of a key.
    Get(Get),
    /// Print the changes of a key, the newest first: who, where, when.
    History(History),
    /// List the values that a merge hid, and take one of them.
    Conflicts(Conflicts),
    /// Edit a document, all operations or none.
    Patch(Patch),
    /// Add to a counter and print the sum.
    Incr(Incr),
    /// Delete a key.
    Delete(Delete),
    /// Set or clear when a key expires.
    Expire(Expire),
    /// Print how long a key stays visible.
    Ttl(Ttl),
    /// Print keys and values in order, one per line: key, tab, value.
    Scan(Scan),
    /// Print changes as they arrive, one per line: what happened, tab, key, tab, value.
    Watch(Watch),
    /// Write many keys from a file: one object {key: value}, or lines {"key":..,"value":..}.
    Load(Load),
    /// Draw stamps: unique, and rising through restarts.
    Stamp(Stamp),
    /// Show nodes, stores and links.
    Status(Status),
    /// Show what nodes do, refreshed every second.
    Top(Top),
    /// Show or change what nodes log and sample, while they run.
    Telemetry(Telemetry),
    /// Look after parked keys: those that a node cannot show.
    Parked(Parked),
    /// List scopes.
    Scopes(Scopes),
    /// Show a scope, move it to other regions, drop it or create it anew.
    Scope(Scope),
    /// Compare all members of a scope: equal, or which keys differ and why.
    Verify(Verify),
    /// Show what was decided about where scopes are, and what happened.
    Placement(Placement),
    /// Write a key, and show what that did when in every region.
    TraceWrite(TraceWrite),
    /// Run a development world: several regions on this machine, with their real distances.
    Dev(Dev),
    /// Take a tour: three regions on this machine, reading, writing, merging, cut apart and healed.
    Demo(Demo),
    /// Run one node.
    Serve(Serve),
    /// Print or check the configuration of a node.
    Config(Config),
    /// Print the completions of a shell.
    Completions(Completions),
}

/// Which node to talk to, and how.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Connection {
    /// A node, like http://127.0.0.1:7000; of several the first that answers.
    #[arg(long, value_name = "URL", help_heading = "Connection")]
    pub(crate) endpoint: Vec<String>,
    /// Talk to the running world as from this place, its nearest node first [env: TROPISM_FROM].
    #[arg(long, value_name = "PLACE", conflicts_with = "endpoint", help_heading = "Connection")]
    pub(crate) from: Option<String>,
    /// The ready file of the world; without it the last one started [env: TROPISM_READY_FILE].
    #[arg(long, value_name = "FILE", conflicts_with = "endpoint", help_heading = "Connection")]
    pub(crate) ready_file: Option<PathBuf>,
    /// How long a call may take, 1ms to 60s.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = call_time, help_heading = "Connection")]
    pub(crate) timeout: Duration,
    /// Print JSON for programs.
    #[arg(long)]
    pub(crate) json: bool,
}

/// A key in its scope.
#[derive(Debug, clap::Args)]
pub(crate) struct Place {
    /// The scope, like shop/carts.
    #[arg(value_parser = scope_name)]
    pub(crate) scope: String,
    /// The key.
    #[arg(value_parser = key)]
    pub(crate) key: String,
}

/// How safe a write must be before it is acknowledged.
#[derive(Debug, clap::Args)]
pub(crate) struct Safety {
    /// When the write counts: local, region, or regions:K. Without it the policy decides.
    #[arg(long, value_name = "LEVEL")]
    pub(crate) durability: Option<Durability>,
    /// Print the version written.
    #[arg(long)]
    pub(crate) show_version: bool,
}

#[derive(Debug, clap::Args)]
#[command(
    group = ArgGroup::new("given").required(true).args(["value", "file", "text", "stdin"]),
    after_help = "Examples:\n  tropism put shop/carts alice '{\"items\":[{\"sku\":\"tea\",\"n\":2}]}'\n  \
                  tropism put cache/pages home --file page.html --ttl 30m"
)]
pub(crate) struct Put {
    #[command(flatten)]
    pub(crate) place: Place,
    /// The value: a JSON object; in a scope of registers, any text.
    pub(crate) value: Option<String>,
    /// The value is the content of this file: a register, or JSON in a scope of documents.
    #[arg(long)]
    pub(crate) file: Option<PathBuf>,
    /// The value is a register with this text.
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) text: Option<String>,
    /// The value comes from stdin, as with --file.
    #[arg(long)]
    pub(crate) stdin: bool,
    /// The register's MIME type; without it by the file's name.
    #[arg(long, value_name = "TYPE", conflicts_with = "value")]
    pub(crate) content_type: Option<String>,
    /// The version that was edited: the put merges what changed since.
    #[arg(long, value_name = "VERSION", value_parser = version)]
    pub(crate) base: Option<Version>,
    /// Only if the key is not visible.
    #[arg(long, conflicts_with = "if_version")]
    pub(crate) if_absent: bool,
    /// Only if the key has this version.
    #[arg(long, value_name = "VERSION", value_parser = version)]
    pub(crate) if_version: Option<Version>,
    /// Expires after this time, like 45s, 30m, 12h or 7d.
    #[arg(long, value_name = "TIME", value_parser = ttl)]
    pub(crate) ttl: Option<Duration>,
    #[command(flatten)]
    pub(crate) safety: Safety,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tropism get shop/carts alice --from dallas\n  \
                        tropism get shop/carts alice --at 5m")]
pub(crate) struct Get {
    #[command(flatten)]
    pub(crate) place: Place,
    /// As it was: at a version, at a moment like 2030-01-31T12:00:00Z, or this long ago, like 5m.
    #[arg(long, value_name = "WHEN", value_parser = see::at)]
    pub(crate) at: Option<v1::get_at_request::At>,
    /// Print the version and a tab before the value.
    #[arg(long)]
    pub(crate) show_version: bool,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

#[derive(Debug, clap::Args)]
#[command(
    group = ArgGroup::new("edit").required(true).args(["op", "json_patch", "merge_patch"]),
    after_help = "Operations (paths are JSON Pointers; quote a path that has spaces):\n  \
                  set PATH JSON     inc PATH N        remove PATH       insert PATH JSON  append PATH JSON\n  \
                  test PATH JSON    move FROM TO      copy FROM TO      splice PATH INDEX DELETE TEXT\n\n\
                  Example:\n  tropism patch shop/carts alice --op 'inc /items/0/n 1' --op 'set /note \"hello\"'"
)]
pub(crate) struct Patch {
    #[command(flatten)]
    pub(crate) place: Place,
    /// An operation, see below; several are done in order, all or none.
    #[arg(long, value_name = "OPERATION", value_parser = operation)]
    pub(crate) op: Vec<v1::PatchOperation>,
    /// A JSON Patch (RFC 6902) in this file; - is stdin.
    #[arg(long, value_name = "FILE")]
    pub(crate) json_patch: Option<PathBuf>,
    /// A JSON Merge Patch (RFC 7396) in this file; - is stdin.
    #[arg(long, value_name = "FILE")]
    pub(crate) merge_patch: Option<PathBuf>,
    /// The version that was seen: the operations apply there and merge.
    #[arg(long, value_name = "VERSION", value_parser = version)]
    pub(crate) base: Option<Version>,
    /// Only if the key has this version.
    #[arg(long, value_name = "VERSION", value_parser = version)]
    pub(crate) if_version: Option<Version>,
    /// Expires after this time, like 45s, 30m, 12h or 7d.
    #[arg(long, value_name = "TIME", value_parser = ttl)]
    pub(crate) ttl: Option<Duration>,
    #[command(flatten)]
    pub(crate) safety: Safety,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  tropism trace-write shop/carts alice '{\"note\":\"hi\"}' --from tokyo")]
pub(crate) struct TraceWrite {
    #[command(flatten)]
    pub(crate) place: Place,
    /// The value: a JSON object; in a scope of registers, any text.
    pub(crate) value: String,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  tropism incr stats/visits home 5")]
pub(crate) struct Incr {
    #[command(flatten)]
    pub(crate) place: Place,
    /// What to add; may be negative.
    #[arg(default_value_t = 1, allow_negative_numbers = true)]
    pub(crate) by: i64,
    /// Expires after this time, like 45s, 30m, 12h or 7d.
    #[arg(long, value_name = "TIME", value_parser = ttl)]
    pub(crate) ttl: Option<Duration>,
    /// When the write counts: local, region, or regions:K. Without it the policy decides.
    #[arg(long, value_name = "LEVEL")]
    pub(crate) durability: Option<Durability>,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  tropism delete shop/carts alice")]
pub(crate) struct Delete {
    #[command(flatten)]
    pub(crate) place: Place,
    /// Only if the key has this version.
    #[arg(long, value_name = "VERSION", value_parser = version)]
    pub(crate) if_version: Option<Version>,
    #[command(flatten)]
    pub(crate) safety: Safety,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

#[derive(Debug, clap::Args)]
#[command(
    group = ArgGroup::new("when").required(true).args(["ttl", "at", "never"]),
    after_help = "Examples:\n  tropism expire cache/pages home --ttl 30m\n  \
                  tropism expire cache/pages home --at 2030-01-31T12:00:00Z"
)]
pub(crate) struct Expire {
    #[command(flatten)]
    pub(crate) place: Place,
    /// After this time, like 45s, 30m, 12h or 7d.
    #[arg(long, value_name = "TIME", value_parser = ttl)]
    pub(crate) ttl: Option<Duration>,
    /// At this moment: 2030-01-31T12:00:00Z, or @ and Unix seconds.
    #[arg(long, value_name = "MOMENT", value_parser = moment)]
    pub(crate) at: Option<u64>,
    /// Not at all.
    #[arg(long)]
    pub(crate) never: bool,
    /// When the write counts: local, region, or regions:K. Without it the policy decides.
    #[arg(long, value_name = "LEVEL")]
    pub(crate) durability: Option<Durability>,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

impl Expire {
    /// When; the group sees to it that there is exactly one.
    pub(crate) fn when(&self) -> Expiry {
        match (self.ttl, self.at) {
            (Some(ttl), _) => Expiry::After(ttl),
            (None, Some(at)) => Expiry::At(at),
            (None, None) => Expiry::Never,
        }
    }
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  tropism ttl cache/pages home      prints seconds, like 1799s, or never")]
pub(crate) struct Ttl {
    #[command(flatten)]
    pub(crate) place: Place,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  tropism scan shop/carts --prefix a --limit 10")]
pub(crate) struct Scan {
    /// The scope, like shop/carts.
    #[arg(value_parser = scope_name)]
    pub(crate) scope: String,
    /// Only keys that start with this.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(crate) prefix: String,
    /// The first key, inclusive.
    #[arg(long, value_name = "KEY", default_value = "", hide_default_value = true)]
    pub(crate) start: String,
    /// The last key, exclusive.
    #[arg(long, value_name = "KEY", default_value = "", hide_default_value = true)]
    pub(crate) end: String,
    /// Most keys to print.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) limit: Option<u64>,
    /// Leave values out.
    #[arg(long)]
    pub(crate) keys: bool,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  tropism watch shop/carts --prefix a --values\n\n\
                        Ctrl-C ends it and prints how to go on from there.")]
pub(crate) struct Watch {
    /// The scope, like shop/carts.
    #[arg(value_parser = scope_name)]
    pub(crate) scope: String,
    /// Only this key.
    #[arg(long, conflicts_with = "prefix", value_parser = key)]
    pub(crate) key: Option<String>,
    /// Only keys that start with this.
    #[arg(long)]
    pub(crate) prefix: Option<String>,
    /// Go on after what this token has seen.
    #[arg(long, value_name = "TOKEN", value_parser = version, conflicts_with = "values")]
    pub(crate) resume: Option<Version>,
    /// Print the current values first.
    #[arg(long)]
    pub(crate) values: bool,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  tropism load shop/catalogue catalogue.json")]
pub(crate) struct Load {
    /// The scope, like shop/catalogue.
    #[arg(value_parser = scope_name)]
    pub(crate) scope: String,
    /// The file; - is stdin.
    pub(crate) file: PathBuf,
    /// When a write counts: local, region, or regions:K. Without it the policy decides.
    #[arg(long, value_name = "LEVEL")]
    pub(crate) durability: Option<Durability>,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  tropism stamp shop/orders --count 3")]
pub(crate) struct Stamp {
    /// The scope whose writes the stamps come after.
    #[arg(value_parser = scope_name)]
    pub(crate) scope: String,
    /// How many, at most 1000.
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_STAMPS)))]
    pub(crate) count: u32,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  tropism status")]
pub(crate) struct Status {
    #[command(flatten)]
    pub(crate) connection: Connection,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  tropism parked list; tropism parked show shop/carts alice --node tokyo-1\n\n\
                  A key is parked when a change to it could not be applied or its stored row cannot be read. Each command\n\
                  is about one node and its store; only list asks all nodes where none is named."
)]
pub(crate) struct Parked {
    #[command(subcommand)]
    pub(crate) action: ParkedAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ParkedAction {
    /// List parked keys: where, what is kept, and why.
    List(ParkedList),
    /// Show what is kept of a key, and what each change meets when it is applied now.
    Show(ParkedShow),
    /// Apply again what is kept of a key, or of every parked key of a scope.
    Retry(ParkedRetry),
    /// Give up what is kept of a key, for good.
    Drop(ParkedDrop),
}

/// One node, and how to talk to it.
#[derive(Debug, clap::Args)]
pub(crate) struct AtNode {
    /// The node of the running world, like tokyo-1.
    #[arg(long, value_name = "ID", conflicts_with_all = ["endpoint", "from"], help_heading = "Connection")]
    pub(crate) node: Option<String>,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  tropism parked list shop/carts")]
pub(crate) struct ParkedList {
    /// Only keys of this scope.
    #[arg(value_parser = scope_name)]
    pub(crate) scope: Option<String>,
    /// Look at every key, not only at the shards known to have parked ones: finds a row that rotted lately, too.
    #[arg(long)]
    pub(crate) every_key: bool,
    #[command(flatten)]
    pub(crate) at: AtNode,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  tropism parked show shop/carts alice --node tokyo-1")]
pub(crate) struct ParkedShow {
    #[command(flatten)]
    pub(crate) place: Place,
    #[command(flatten)]
    pub(crate) at: AtNode,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  tropism parked retry shop/carts alice --node tokyo-1")]
pub(crate) struct ParkedRetry {
    /// The scope, like shop/carts.
    #[arg(value_parser = scope_name)]
    pub(crate) scope: String,
    /// The key; without it every parked key of the scope.
    #[arg(value_parser = key)]
    pub(crate) key: Option<String>,
    #[command(flatten)]
    pub(crate) at: AtNode,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  tropism parked drop shop/carts alice --node tokyo-1 --yes\n\n\
                  A key whose row can be read shows what it had without the dropped changes. A row that cannot be read is\n\
                  removed with all that is stored of the key here. Other members keep what they have, so values may\n\
                  differ from theirs; `status` says from then on that something was dropped.")]
pub(crate) struct ParkedDrop {
    #[command(flatten)]
    pub(crate) place: Place,
    /// Really: what is dropped cannot be had back. Without it, only shows what would go.
    #[arg(long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) at: AtNode,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  tropism scopes --prefix shop")]
pub(crate) struct Scopes {
    /// Only scopes at or below this name.
    #[arg(long, value_name = "SCOPE", value_parser = scope_name)]
    pub(crate) prefix: Option<String>,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Examples:\n  tropism scope shop/carts\n  tropism scope move shop/carts --to tokyo,frankfurt\n  \
                  tropism scope drop shop/carts --yes"
)]
pub(crate) struct Scope {
    #[command(subcommand)]
    pub(crate) action: Option<ScopeAction>,
    #[command(flatten)]
    pub(crate) show: ScopeShow,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ScopeShow {
    /// The scope, like shop/carts: where it lives and what is in it.
    #[arg(value_parser = scope_name, required = true)]
    pub(crate) scope: Option<String>,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum ScopeAction {
    /// Show a scope: where it lives and what is in it.
    Show(ScopeOne),
    /// Say why a scope is where it is: its use, what other regions would cost, what holds it.
    Explain(ScopeOne),
    /// Move a scope to other regions; reads and writes go on.
    Move(ScopeMove),
    /// Drop a scope with all its keys, in every region.
    Drop(ScopeDrop),
    /// Create a scope anew that was dropped.
    Create(ScopeOne),
    /// Let only operators move a scope, not its policy.
    Pin(ScopeOne),
    /// Let its policy and operators move a scope.
    Unpin(ScopeOne),
    /// Let nobody move a scope.
    Freeze(ScopeOne),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  tropism placement log shop/carts")]
pub(crate) struct Placement {
    #[command(subcommand)]
    pub(crate) action: PlacementAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PlacementAction {
    /// Print decisions and the steps of moves, one a line, as the nodes remember them: when, scope, what.
    Log(PlacementLog),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  tropism placement log --follow")]
pub(crate) struct PlacementLog {
    /// Only of this scope.
    #[arg(value_parser = scope_name)]
    pub(crate) scope: Option<String>,
    /// Go on with what happens, until Ctrl-C.
    #[arg(long)]
    pub(crate) follow: bool,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tropism scope move shop/carts --to tokyo,frankfurt\n  \
                  tropism scope move shop/carts --add tokyo --drop dallas\n  tropism scope move shop/carts --stay")]
pub(crate) struct ScopeMove {
    /// The scope, like shop/carts.
    #[arg(value_parser = scope_name)]
    pub(crate) scope: String,
    /// The regions that shall serve it.
    #[arg(long, value_name = "REGION,..", value_delimiter = ',', required_unless_present_any = ["stay", "add", "drop"])]
    pub(crate) to: Vec<String>,
    /// Regions that shall serve it beside those where it is, or is on its way to.
    #[arg(long, value_name = "REGION,..", value_delimiter = ',', conflicts_with = "to")]
    pub(crate) add: Vec<String>,
    /// Regions that shall not serve it any more.
    #[arg(long, value_name = "REGION,..", value_delimiter = ',', conflicts_with = "to")]
    pub(crate) drop: Vec<String>,
    /// End what is under way, where that can be.
    #[arg(long, conflicts_with_all = ["to", "add", "drop"])]
    pub(crate) stay: bool,
    /// Return when the move is decided, not when the scope is there.
    #[arg(long)]
    pub(crate) no_wait: bool,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  tropism scope drop shop/carts --yes")]
pub(crate) struct ScopeDrop {
    /// The scope, like shop/carts.
    #[arg(value_parser = scope_name)]
    pub(crate) scope: String,
    /// Really: its keys are gone everywhere and do not come back.
    #[arg(long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  tropism scope pin shop/carts")]
pub(crate) struct ScopeOne {
    /// The scope, like shop/carts.
    #[arg(value_parser = scope_name)]
    pub(crate) scope: String,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

#[derive(Debug, clap::Args)]
#[command(
    mut_arg("timeout", |timeout| timeout.default_value("60s")),
    after_help = "Example:\n  tropism verify shop/carts --from tokyo\n\n\
                  Looks at every row of every member, and compares with the node that answers. Reads only. Ends with status 0\n\
                  when all members are equal, with 1 when they are not, one is behind, or one could not be compared."
)]
pub(crate) struct Verify {
    /// The scope, like shop/carts.
    #[arg(value_parser = scope_name)]
    pub(crate) scope: String,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  tropism dev\n  tropism dev link cut tokyo dallas\n  tropism dev node kill tokyo-1"
)]
pub(crate) struct Dev {
    #[command(subcommand)]
    pub(crate) action: Option<DevAction>,
    #[command(flatten)]
    pub(crate) start: DevStart,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DevStart {
    /// The regions file. Without it three continents: dallas, frankfurt, tokyo.
    #[arg(long, value_name = "FILE")]
    pub(crate) regions: Option<PathBuf>,
    /// Nodes of each region.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) nodes_per_region: usize,
    /// Where the nodes keep their data.
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) data: Option<PathBuf>,
    /// Delete the data of an earlier world first.
    #[arg(long)]
    pub(crate) fresh: bool,
    /// Write where everything is to this file once all regions serve.
    #[arg(long, value_name = "FILE")]
    pub(crate) ready_file: Option<PathBuf>,
    /// Let placement's clock run this many times as fast as others: at 60 a scope moves to its users within a minute, not an
    /// hour. 1 to 300.
    #[arg(long, value_name = "TIMES", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=300))]
    pub(crate) placement_pace: u32,
    /// Trace every call, and export to this OpenTelemetry collector (OTLP over gRPC), like http://127.0.0.1:4317.
    #[arg(long, value_name = "URL")]
    pub(crate) otlp: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DevAction {
    /// Cut, slow or heal the link between two regions of the running world.
    Link(DevLink),
    /// Kill, pause, resume or start a node of the running world.
    Node(DevNode),
    /// List the links of the running world.
    Links(DevLinks),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tropism dev link cut tokyo dallas\n  \
                        tropism dev link slow tokyo dallas --extra 300ms\n  tropism dev link heal tokyo dallas")]
pub(crate) struct DevLink {
    /// What to do.
    pub(crate) action: LinkAction,
    /// A region.
    pub(crate) a: String,
    /// Another region.
    pub(crate) b: String,
    /// Only the direction from the first to the second.
    #[arg(long)]
    pub(crate) one_way: bool,
    /// For slow: added to each direction's delay.
    #[arg(long, value_name = "TIME", value_parser = call_time)]
    pub(crate) extra: Option<Duration>,
    /// For slow: the bandwidth of each direction.
    #[arg(long, value_name = "N")]
    pub(crate) bytes_per_second: Option<u64>,
    #[command(flatten)]
    pub(crate) control: Control,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  tropism dev node kill tokyo-1; tropism dev node start tokyo-1")]
pub(crate) struct DevNode {
    /// What to do.
    pub(crate) action: NodeAction,
    /// The node's id, like tokyo-1.
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) control: Control,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  tropism dev links")]
pub(crate) struct DevLinks {
    #[command(flatten)]
    pub(crate) control: Control,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  tropism demo")]
pub(crate) struct Demo {
    /// The regions file, of three regions or more and with the shipped rules. Without it three continents.
    #[arg(long, value_name = "FILE")]
    pub(crate) regions: Option<PathBuf>,
    /// Keep the stores and logs, and say where they are.
    #[arg(long)]
    pub(crate) keep: bool,
    /// Print what was measured as one JSON object; the words go to stderr.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Which running world to change.
#[derive(Debug, clap::Args)]
pub(crate) struct Control {
    /// The ready file of the world; without it the last one started [env: TROPISM_READY_FILE].
    #[arg(long, value_name = "FILE")]
    pub(crate) ready_file: Option<PathBuf>,
    /// Print JSON for programs.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LinkAction {
    /// Swallow everything, silently.
    Cut,
    /// Delay, or limit the bandwidth.
    Slow,
    /// As the regions file says; connections open during a cut are reset.
    Heal,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum NodeAction {
    /// End it at once, like a power cut.
    Kill,
    /// Let it hang.
    Pause,
    /// Let it go on.
    Resume,
    /// Start it again and wait until it serves.
    Start,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  tropism serve --config node.toml")]
pub(crate) struct Serve {
    /// The configuration of the node; `tropism config example` prints one.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Where the node keeps what it knows, whatever the configuration says; nothing in memory survives a stop.
    #[arg(long)]
    pub(crate) engine: Option<Engine>,
    /// Serve what the store has, though it may lack what peers or an earlier store of the node had: give that up. Once.
    #[arg(long)]
    pub(crate) accept_loss: bool,
    /// End, as in a power cut, when stdin closes: for nodes whose parent process must not leave them behind.
    #[arg(long, hide = true)]
    pub(crate) end_with_stdin: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Engine {
    /// A store on disk, durable.
    Disk,
    /// Memory: a cache node.
    Memory,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  tropism config example > node.toml; tropism config check node.toml")]
pub(crate) struct Config {
    #[command(subcommand)]
    pub(crate) action: ConfigAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigAction {
    /// Print a complete configuration with comments.
    #[command(after_help = "Example:\n  tropism config example > node.toml")]
    Example {
        /// Print the reference page instead: every key with its default and meaning.
        #[arg(long)]
        markdown: bool,
    },
    /// Check a configuration and the files it names; every error with its line.
    #[command(after_help = "Example:\n  tropism config check node.toml")]
    Check {
        /// The configuration.
        file: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  tropism completions bash > ~/.local/share/bash-completion/completions/tropism"
)]
pub(crate) struct Completions {
    /// The shell.
    pub(crate) shell: Shell,
}

impl Command {
    /// Whether the answer is for programs, errors included.
    pub(crate) fn json(&self) -> bool {
        match self {
            Command::Put(Put { connection, .. })
            | Command::Get(Get { connection, .. })
            | Command::History(History { connection, .. })
            | Command::Conflicts(Conflicts { connection, .. })
            | Command::Patch(Patch { connection, .. })
            | Command::Incr(Incr { connection, .. })
            | Command::Delete(Delete { connection, .. })
            | Command::Expire(Expire { connection, .. })
            | Command::Ttl(Ttl { connection, .. })
            | Command::Scan(Scan { connection, .. })
            | Command::Watch(Watch { connection, .. })
            | Command::Load(Load { connection, .. })
            | Command::Stamp(Stamp { connection, .. })
            | Command::Status(Status { connection, .. })
            | Command::Top(Top { connection, .. })
            | Command::Scopes(Scopes { connection, .. })
            | Command::TraceWrite(TraceWrite { connection, .. })
            | Command::Verify(Verify { connection, .. }) => connection.json,
            Command::Scope(Scope { action, show }) => match action {
                None => show.connection.json,
                Some(
                    ScopeAction::Move(ScopeMove { connection, .. })
                    | ScopeAction::Drop(ScopeDrop { connection, .. })
                    | ScopeAction::Show(ScopeOne { connection, .. })
                    | ScopeAction::Explain(ScopeOne { connection, .. })
                    | ScopeAction::Create(ScopeOne { connection, .. })
                    | ScopeAction::Pin(ScopeOne { connection, .. })
                    | ScopeAction::Unpin(ScopeOne { connection, .. })
                    | ScopeAction::Freeze(ScopeOne { connection, .. }),
                ) => connection.json,
            },
            Command::Placement(Placement { action: PlacementAction::Log(log) }) => log.connection.json,
            Command::Telemetry(Telemetry { action }) => match action {
                TelemetryAction::Show(TelemetryShow { at })
                | TelemetryAction::Set(TelemetrySet { at, .. }) => at.connection.json,
            },
            Command::Parked(Parked { action }) => match action {
                ParkedAction::List(ParkedList { at, .. })
                | ParkedAction::Show(ParkedShow { at, .. })
                | ParkedAction::Retry(ParkedRetry { at, .. })
                | ParkedAction::Drop(ParkedDrop { at, .. }) => at.connection.json,
            },
            Command::Dev(Dev { action, .. }) => match action {
                Some(
                    DevAction::Link(DevLink { control, .. })
                    | DevAction::Node(DevNode { control, .. })
                    | DevAction::Links(DevLinks { control }),
                ) => control.json,
                None => false,
            },
            Command::Demo(demo) => demo.json,
            Command::Serve(_) | Command::Config(_) | Command::Completions(_) => false,
        }
    }
}

/// A version or token, written in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Version(pub(crate) Vec<u8>);

fn version(text: &str) -> Result<Version, String> {
    let digits: Option<Vec<u8>> = text
        .bytes()
        .map(|byte| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect();
    match digits.as_deref().map(<[u8]>::as_chunks::<2>) {
        Some((pairs, [])) if !pairs.is_empty() => {
            Ok(Version(pairs.iter().map(|[high, low]| high << 4 | low).collect()))
        }
        _ => Err(format!(
            "{} must be hexadecimal digits, two for each byte, as this program prints them",
            echo(text)
        )),
    }
}

fn scope_name(text: &str) -> Result<String, String> {
    ScopeName::new(text).map(|name| name.as_str().to_owned()).map_err(|error| error.to_string())
}

fn key(text: &str) -> Result<String, String> {
    check_key(text).map(|()| text.to_owned()).map_err(|error| error.to_string())
}

fn ttl(text: &str) -> Result<Duration, String> {
    parse_expiry(text).map_err(|error| error.to_string())
}

/// A time that a call may take: a whole number with its unit, ms, s or m, at most what nodes allow.
fn call_time(text: &str) -> Result<Duration, String> {
    let milliseconds = [("ms", 1), ("s", 1000), ("m", 60_000)].into_iter().find_map(|(unit, factor)| {
        let digits = text.strip_suffix(unit)?;
        let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
        digits.parse::<u64>().ok().filter(|_| plain)?.checked_mul(factor)
    });
    match milliseconds.map(Duration::from_millis) {
        Some(time) if !time.is_zero() && time <= MAX_DEADLINE => Ok(time),
        _ => Err(format!(
            "{} must be a whole number with a unit (ms, s, m) like \"10s\", from 1ms to 60s",
            echo(text)
        )),
    }
}

/// A moment in Unix milliseconds: RFC 3339 in UTC, to the second, or `@` and Unix seconds as `date -d` reads them.
fn moment(text: &str) -> Result<u64, String> {
    let seconds = match text.strip_prefix('@') {
        Some(seconds) => seconds.parse().ok(),
        None => utc_seconds(text),
    };
    seconds.and_then(|seconds: u64| seconds.checked_mul(1000)).ok_or_else(|| {
        format!("{} must be like 2030-01-31T12:00:00Z, or @ and Unix seconds like @1900000000", echo(text))
    })
}

/// Unix seconds of `YYYY-MM-DDThh:mm:ssZ` from 1970 on; none if it is no such time.
fn utc_seconds(text: &str) -> Option<u64> {
    let number = |from: usize, to: usize| -> Option<u64> {
        let digits = text.get(from..to)?;
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let signs = [(4, "-"), (7, "-"), (10, "T"), (13, ":"), (16, ":"), (19, "Z")];
    if text.len() != 20 || signs.iter().any(|(at, sign)| text.get(*at..at + 1) != Some(sign)) {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let days_of = |month: u64| match month {
        2 => 28 + u64::from(leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    let sound = year >= 1970 && (1..=12).contains(&month) && (1..=days_of(month)).contains(&day);
    if !sound || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let days: u64 = (1970..year).map(|year| 365 + u64::from(leap(year))).sum::<u64>()
        + (1..month).map(days_of).sum::<u64>()
        + (day - 1);
    Some(days * 86_400 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests;
