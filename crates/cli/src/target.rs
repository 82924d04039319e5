//! Which nodes a command talks to: those of `--endpoint`, else those of the running world as seen from a place.

use std::env;

use tropism_client::Calls;
use tropism_wire::error::echo;

use crate::args::{AtNode, Connection};
use crate::output::Failure;
use crate::world::description::{Description, find_world};

/// Names the place for commands without `--from`.
const FROM_VARIABLE: &str = "TROPISM_FROM";

/// A node to talk to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// Its URL.
    pub(crate) endpoint: String,
    /// Its region and id, where the world names them.
    pub(crate) name: Option<(String, String)>,
}

/// A client of the nodes that the arguments name.
pub(crate) async fn connect(connection: &Connection) -> Result<Calls, Failure> {
    let client = if connection.endpoint.is_empty() {
        // The world knows its distances: nothing has to be measured.
        Calls::in_order(targets(connection)?.into_iter().map(|target| target.endpoint).collect())?
    } else {
        Calls::connect(connection.endpoint.clone()).await?
    };
    Ok(client.with_timeout(connection.timeout))
}

/// All nodes that the arguments name, the best first.
pub(crate) fn targets(connection: &Connection) -> Result<Vec<Target>, Failure> {
    if !connection.endpoint.is_empty() {
        let endpoints = connection.endpoint.iter().cloned();
        return Ok(endpoints.map(|endpoint| Target { endpoint, name: None }).collect());
    }
    let world = find_world(connection.ready_file.as_deref())?;
    targets_of(&world, place(connection).as_deref())
}

/// The one node that the arguments name, for what is done to one node.
pub(crate) fn one_target(at: &AtNode) -> Result<Target, Failure> {
    let mut named = named_targets(at)?;
    if named.len() == 1 {
        return Ok(named.remove(0));
    }
    let names = named.iter().map(|target| target.name.as_ref().map_or(&*target.endpoint, |(_, id)| id));
    let names: Vec<&str> = names.collect();
    let names = names.join(", ");
    Err(Failure::Usage(format!("this is done at one node, so name one with --node or --endpoint: {names}")))
}

/// The node that the arguments name; all of the world, or all endpoints, where they name none.
pub(crate) fn named_targets(at: &AtNode) -> Result<Vec<Target>, Failure> {
    let mut found = targets(&at.connection)?;
    let of = |target: &Target| target.name.as_ref().map(|(_, id)| id.clone()).unwrap_or_default();
    if let Some(node) = &at.node {
        let known: Vec<String> = found.iter().map(of).collect();
        found.retain(|target| of(target) == *node);
        if found.is_empty() {
            let known = known.join(", ");
            return Err(Failure::Usage(format!(
                "{} is no node of the world; its nodes are {known}",
                echo(node)
            )));
        }
    } else if at.connection.endpoint.is_empty() && place(&at.connection).is_some() {
        found.truncate(1); // the nearest
    }
    Ok(found)
}

/// The place that commands are given from.
fn place(connection: &Connection) -> Option<String> {
    let variable = || env::var(FROM_VARIABLE).ok().filter(|place| !place.is_empty());
    connection.from.clone().or_else(variable)
}

/// The nodes of a world: from a place, the nearest first; without one, in the order of the regions and without delay.
fn targets_of(world: &Description, from: Option<&str>) -> Result<Vec<Target>, Failure> {
    let place = match from {
        Some(from) => Some(world.places.get(from).ok_or_else(|| {
            let known: Vec<&str> = world.places.keys().map(String::as_str).collect();
            let known = known.join(", ");
            Failure::Usage(format!("{} is no place of the world; its places are {known}", echo(from)))
        })?),
        None => None,
    };
    let mut targets = Vec::new();
    for region in &world.regions {
        for node in &region.nodes {
            let name = Some((region.name.clone(), node.id.clone()));
            let (distance, endpoint) = match place {
                Some(place) => (place.rtt_ms.get(&node.id), place.endpoints.get(&node.id)),
                None => (None, Some(&node.endpoint)),
            };
            if let Some(endpoint) = endpoint.cloned() {
                targets.push((distance.copied().unwrap_or(0.0), Target { endpoint, name }));
            }
        }
    }
    targets.sort_by(|(one, _), (other, _)| one.total_cmp(other)); // stable: equal ones stay in the order of regions
    Ok(targets.into_iter().map(|(_, target)| target).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)] // a failed assumption of a test is a failed test
    use super::{Failure, targets_of};
    use crate::world::description::Description;

    fn world() -> Description {
        serde_json::from_str(
            r#"{
                "regions": [
                    {"name": "dallas", "endpoint": "http://d", "nodes":
                        [{"id": "dallas-1", "endpoint": "http://d", "pid": 1, "data_dir": "d"}]},
                    {"name": "tokyo", "endpoint": "http://t", "nodes":
                        [{"id": "tokyo-1", "endpoint": "http://t", "pid": 2, "data_dir": "t"}]}
                ],
                "places": {"osaka": {"nearest": "tokyo-1",
                    "endpoints": {"dallas-1": "http://od", "tokyo-1": "http://ot"},
                    "rtt_ms": {"dallas-1": 150.0, "tokyo-1": 9.0}}},
                "control": "127.0.0.1:1"
            }"#,
        )
        .unwrap()
    }

    fn endpoints(from: Option<&str>) -> Vec<String> {
        targets_of(&world(), from).unwrap().into_iter().map(|target| target.endpoint).collect()
    }

    #[test]
    fn from_a_place_the_nearest_node_comes_first() {
        assert_eq!(endpoints(Some("osaka")), ["http://ot", "http://od"]);
    }

    #[test]
    fn without_a_place_nodes_come_in_the_order_of_the_regions_and_without_delay() {
        assert_eq!(endpoints(None), ["http://d", "http://t"]);
        let names = targets_of(&world(), None).unwrap().into_iter().filter_map(|target| target.name);
        assert_eq!(names.map(|(_, id)| id).collect::<Vec<_>>(), ["dallas-1", "tokyo-1"]);
    }

    #[test]
    fn an_unknown_place_is_a_usage_error_that_lists_the_places() {
        let failure = targets_of(&world(), Some("atlantis")).unwrap_err();
        assert!(
            matches!(&failure, Failure::Usage(why) if why.contains("\"atlantis\"") && why.contains("osaka"))
        );
    }
}
