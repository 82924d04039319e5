//! `dev`: a world of regions on this machine, and what is done to it while it runs.

use std::fs;

use tokio::runtime::Builder;
use tropism_client::Calls;
use tropism_client::v1::NodeState;
use tropism_placement::{MAX_CONFIG_BYTES, Regions};

use super::{runtime, wait};
use crate::args::{Control, Dev, DevAction, DevLink, DevNode, DevStart, LinkAction, NodeAction};
use crate::output::{Failure, Output, say, size, table, time};
use crate::world::control::{
    LinkAction as Act, LinkRequest, LinkState, LinkStatus, NodeAction as Do, NodeRequest,
    NodeState as Process, change_link, change_node, links,
};
use crate::world::description::{Description, find_world};
use crate::world::directory::{default_data_directory, state_directory};
use crate::world::{Options, RegionsFile, StopSignals, World, node_command};

/// The regions file of a world that names none.
const USUAL_REGIONS: &str = "three-continents";

/// `dev` and its actions.
pub(super) fn dev(args: Dev, out: &mut Output) -> Result<(), Failure> {
    match args.action {
        // Relays keep their times better when they do not wait for one another.
        None => runtime(&mut Builder::new_multi_thread())?.block_on(start(args.start)),
        Some(DevAction::Link(args)) => wait(link(args, out)),
        Some(DevAction::Node(args)) => wait(node(args, out)),
        Some(DevAction::Links(args)) => wait(list(args.control, out)),
    }
}

async fn start(args: DevStart) -> Result<(), Failure> {
    let options = Options {
        regions: regions_file(&args)?,
        nodes_per_region: args.nodes_per_region,
        data: args.data.map_or_else(default_data_directory, Ok)?,
        fresh: args.fresh,
        ready_file: args.ready_file,
        state: state_directory(),
        node_command: node_command()?,
        otlp: args.otlp,
        placement_pace: args.placement_pace,
    };
    let mut signals = StopSignals::catch()?;
    say("starting the regions ...");
    let mut world = tokio::select! {
        started = World::start(options, serves) => started?,
        () = signals.next() => return Ok(()),
    };
    say(&welcome(&world.description()));
    loop {
        tokio::select! {
            () = signals.next() => break,
            failure = world.failure() => say(&failure),
        }
    }
    say("stopping ...");
    Ok(world.stop().await?)
}

/// Whether the node at an endpoint takes reads and writes.
async fn serves(endpoint: String) -> bool {
    let Ok(client) = Calls::in_order(vec![endpoint]) else { return false };
    let state = client.status().await.ok().and_then(|status| Some(status.node?.state()));
    state == Some(NodeState::Serving)
}

fn regions_file(args: &DevStart) -> Result<RegionsFile, Failure> {
    let (name, text) = match &args.regions {
        Some(path) => {
            let name = path.to_string_lossy().into_owned();
            let cannot =
                |error: String| Failure::Usage(format!("--regions {}: {error}", name.escape_debug()));
            let length = fs::metadata(path).map_err(|error| cannot(error.to_string()))?.len();
            if length > MAX_CONFIG_BYTES as u64 {
                return Err(cannot(format!("has {length} bytes; the limit is {MAX_CONFIG_BYTES}")));
            }
            (name.clone(), fs::read_to_string(path).map_err(|error| cannot(error.to_string()))?)
        }
        None => {
            let shipped = Regions::shipped(USUAL_REGIONS).unwrap_or_default(); // a test sees that it is there
            (USUAL_REGIONS.to_owned(), shipped.to_owned())
        }
    };
    RegionsFile::parse(&name, &text).map_err(|errors| Failure::Usage(errors.to_string()))
}

/// What a newcomer wants to know of a world that has just started.
fn welcome(world: &Description) -> String {
    let nodes = world.regions.iter().flat_map(|region| {
        region.nodes.iter().map(|node| vec![region.name.clone(), node.id.clone(), node.endpoint.clone()])
    });
    let places: Vec<&str> = world.places.keys().map(String::as_str).collect();
    let from = places.first().copied().unwrap_or_default();
    format!(
        "{}\nplaces for --from: {}\n\ntry, in another terminal:\n  \
         tropism put shop/carts alice '{{\"note\":\"hi\"}}' --from {from}\n  tropism watch shop/carts\n  \
         tropism status\n\nCtrl-C stops the world; its data stay.",
        table(&nodes.collect::<Vec<_>>()),
        places.join(" ")
    )
}

async fn link(args: DevLink, out: &mut Output) -> Result<(), Failure> {
    let world = find_world(args.control.ready_file.as_deref())?;
    let request = LinkRequest {
        action: match args.action {
            LinkAction::Cut => Act::Cut,
            LinkAction::Slow => Act::Slow,
            LinkAction::Heal => Act::Heal,
        },
        a: args.a,
        b: args.b,
        one_way: args.one_way,
        extra_ms: args.extra.map(|extra| extra.as_secs_f64() * 1e3),
        bytes_per_second: args.bytes_per_second,
    };
    show(&change_link(world.control, request).await?, out)
}

async fn node(args: DevNode, out: &mut Output) -> Result<(), Failure> {
    let world = find_world(args.control.ready_file.as_deref())?;
    let action = match args.action {
        NodeAction::Kill => Do::Kill,
        NodeAction::Pause => Do::Pause,
        NodeAction::Resume => Do::Resume,
        NodeAction::Start => Do::Start,
    };
    let node = change_node(world.control, NodeRequest { action, id: args.id }).await?;
    if out.json {
        return out.object(&node);
    }
    let state = match node.state {
        Process::Running => "running",
        Process::Paused => "paused",
        Process::Down => "down",
    };
    out.line(
        node.pid.map_or_else(
            || format!("{} {state}", node.id),
            |pid| format!("{} {state}, process {pid}", node.id),
        ),
    )
}

async fn list(control: Control, out: &mut Output) -> Result<(), Failure> {
    let world = find_world(control.ready_file.as_deref())?;
    show(&links(world.control).await?, out)
}

/// Directions between regions, one per line.
fn show(links: &[LinkStatus], out: &mut Output) -> Result<(), Failure> {
    if out.json {
        return out.object(&links);
    }
    let rows: Vec<Vec<String>> = links.iter().map(row).collect();
    out.bytes(table(&rows).as_bytes())
}

fn row(link: &LinkStatus) -> Vec<String> {
    let state = match (link.state, link.cut_seconds) {
        (LinkState::Open, _) => "open".to_owned(),
        (LinkState::Slow, _) => "slow".to_owned(),
        (LinkState::Cut, Some(seconds)) => format!("cut for {}", time((seconds * 1e3) as u64)), // not negative
        (LinkState::Cut, None) => "cut".to_owned(),
    };
    let extra = if link.extra_ms > 0.0 { format!(" + {} ms", link.extra_ms) } else { String::new() };
    let limit = link.bytes_per_second.map(|rate| format!(", {}/s", size(rate))).unwrap_or_default();
    vec![
        format!("{} -> {}", link.from, link.to),
        state,
        format!("{} ms{extra}{limit}", link.delay_ms),
        format!("{} carried", size(link.peer_bytes)),
    ]
}

#[cfg(test)]
mod tests {
    use tropism_placement::Regions;

    use super::USUAL_REGIONS;

    #[test]
    fn the_usual_regions_are_shipped_and_good() {
        let read = Regions::shipped(USUAL_REGIONS).map(|text| Regions::parse(USUAL_REGIONS, text));
        assert!(matches!(read, Some(Ok(_))), "{read:?}");
    }
}
