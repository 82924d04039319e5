//! `demo`: a tour of the real thing.
//!
//! A world of regions is started in a temporary directory, shown at work in seven acts ([`acts`], [`real_input`],
//! [`follow`]), stopped
//! and removed. Every number is measured there and then, and every promise that is shown is checked: one that is not
//! kept ends the tour with exit status 1.

mod acts;
mod figures;
mod follow;
mod real_input;

use std::env;
use std::fs::{self, DirBuilder};
use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use tokio::runtime::Builder;
use tokio::time::sleep;
use tropism_client::v1::{LinkState, NodeState};
use tropism_client::{Calls, Entry, ScanRange};
use tropism_placement::{ConfigErrors, MAX_CONFIG_BYTES, Regions};

use super::runtime;
use crate::args::Demo;
use crate::output::{Failure, Output, say, table};
use crate::world::description::Description;
use crate::world::{Options, RegionsFile, StopSignals, World, node_command};

/// The regions file of a tour that names none.
const USUAL_REGIONS: &str = "three-continents";
/// What the tour adds in front of the rules of the regions file: a place for a text that two people type.
const NOTES_RULE: &str = "[[rule]]\nname = \"demo-notes\"\npattern = \"demo-notes/**\"\nkind = \"document\"\ntext = [\"/text\"]\n\n";
/// Regions that the acts need: one is cut off, two edit.
const MIN_REGIONS: usize = 3;
/// How long regions may take to become equal: many times what a link and a redial take.
const EQUAL_TIME: Duration = Duration::from_secs(30);
/// How many times as fast as others placement's clock is: what takes half an hour takes some seconds.
const DEMO_PACE: u32 = 150;
/// Pause between two looks whether they are.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// `demo`: the tour, on nodes that end with it.
pub(super) fn demo(args: Demo, out: &mut Output) -> Result<(), Failure> {
    // Relays and writers keep their times better when they do not wait for one another.
    runtime(&mut Builder::new_multi_thread())?.block_on(run(args, out))
}

async fn run(args: Demo, out: &mut Output) -> Result<(), Failure> {
    let began = Instant::now();
    let regions = regions_file(args.regions.as_deref())?;
    let mut signals = StopSignals::catch()?;
    let directory = Temporary::create(args.keep)?;
    let options = Options {
        regions,
        nodes_per_region: 1,
        data: directory.path.clone(),
        fresh: false,
        ready_file: None,
        state: None, // a tour must not become the world that other commands find
        node_command: node_command()?,
        otlp: None,
        placement_pace: DEMO_PACE,
    };
    let mut screen = Screen { terminal: io::stderr().is_terminal(), waiting: false, out };
    screen.progress("starting the regions ...");
    let stopped = || Failure::Failed("the tour was stopped before its end".to_owned());
    let mut world = tokio::select! {
        started = World::start(options, serves) => started?,
        () = signals.next() => {
            screen.clear();
            return Err(stopped());
        }
    };
    let description = world.description();
    let toured = tokio::select! {
        toured = tour(description, &mut screen, began) => toured,
        failure = world.failure() => Err(Failure::Failed(failure)),
        () = signals.next() => Err(stopped()),
    };
    screen.progress("stopping the regions ...");
    let ended = world.stop().await;
    screen.clear();
    let report = toured?;
    ended?;
    screen.farewell(&directory, began.elapsed())?;
    if screen.out.json { screen.out.object(&report) } else { Ok(()) }
}

/// The acts in their order; what they measured, one member each.
async fn tour(world: Description, screen: &mut Screen<'_>, began: Instant) -> Result<Value, Failure> {
    let mut tour = Tour::new(world, screen)?;
    let names: Vec<&str> = tour.sites.iter().map(|site| site.name.as_str()).collect();
    let started = format!(
        "Tropism: {} regions on this machine ({}), up after {:.1} s.\nEvery node is a process with a store of its \
         own; the links have the delay of the real ones.",
        names.len(),
        names.join(", "),
        began.elapsed().as_secs_f64()
    );
    tour.screen.tell(&started)?;
    let mut report = Map::new();
    report.insert("latency".to_owned(), tour.latency().await?);
    report.insert("propagation".to_owned(), tour.propagation().await?);
    report.insert("merge".to_owned(), tour.merge().await?);
    report.insert("cut".to_owned(), tour.cut().await?);
    report.insert("kill".to_owned(), tour.kill().await?);
    report.insert("real_input".to_owned(), tour.real_input().await?);
    report.insert("follow".to_owned(), tour.follow().await?);
    report.insert("seconds".to_owned(), json!(began.elapsed().as_secs_f64()));
    Ok(Value::Object(report))
}

/// A region of the tour and a client in it.
struct Site {
    name: String,
    /// The id of its node.
    node: String,
    client: Calls,
}

/// What the acts work with.
struct Tour<'t, 'o> {
    screen: &'t mut Screen<'o>,
    sites: Vec<Site>,
    world: Description,
}

impl<'t, 'o> Tour<'t, 'o> {
    fn new(world: Description, screen: &'t mut Screen<'o>) -> Result<Self, Failure> {
        let mut sites = Vec::new();
        for region in &world.regions {
            let Some(node) = region.nodes.first() else { continue };
            let client = Calls::in_order(vec![node.endpoint.clone()])?;
            sites.push(Site { name: region.name.clone(), node: node.id.clone(), client });
        }
        if sites.len() < MIN_REGIONS {
            return Err(Failure::Usage(format!(
                "--regions: the file has {} regions; the tour needs at least {MIN_REGIONS}",
                sites.len()
            )));
        }
        Ok(Self { screen, sites, world })
    }

    fn control(&self) -> SocketAddr {
        self.world.control
    }

    /// The round trip between two regions, in milliseconds.
    fn round_trip(&self, from: &Site, to: &Site) -> f64 {
        self.world.places.get(&from.name).and_then(|place| place.rtt_ms.get(&to.node)).copied().unwrap_or(0.0)
    }

    /// Waits until every node hears every other one: a link takes some round trips to make, longer than a start.
    async fn linked(&self) -> Result<(), Failure> {
        let deadline = Instant::now() + EQUAL_TIME;
        for site in &self.sites {
            while site.client.status().await?.links.iter().any(|link| link.state() != LinkState::Current) {
                if Instant::now() > deadline {
                    let seconds = EQUAL_TIME.as_secs();
                    return Err(broken(format!(
                        "{} is not linked with all others after {seconds} s",
                        site.name
                    )));
                }
                sleep(LOOK_INTERVAL).await;
            }
        }
        Ok(())
    }

    /// Waits until all regions show the same keys below a prefix at the same versions, and returns those. Equal
    /// versions with other bytes, and regions that never become equal, are broken promises.
    async fn equal(&self, scope: &str, prefix: &str) -> Result<Vec<Entry>, Failure> {
        let deadline = Instant::now() + EQUAL_TIME;
        loop {
            let mut shown = Vec::new();
            for site in &self.sites {
                shown.push((&site.name, entries(&site.client, scope, prefix).await?));
            }
            let same = shown.windows(2).all(|pair| {
                let versions = |entries: &[Entry]| -> Vec<(String, bytes::Bytes)> {
                    entries.iter().map(|entry| (entry.key.clone(), entry.version.clone())).collect()
                };
                versions(&pair[0].1) == versions(&pair[1].1)
            });
            if same {
                for pair in shown.windows(2) {
                    for (one, other) in pair[0].1.iter().zip(&pair[1].1) {
                        if one.value != other.value || one.value.is_none() {
                            return Err(broken(format!(
                                "{scope} {} has one version and two values in {} and {}",
                                one.key, pair[0].0, pair[1].0
                            )));
                        }
                    }
                }
                return Ok(shown.pop().map(|(_, entries)| entries).unwrap_or_default());
            }
            if Instant::now() > deadline {
                return Err(broken(format!(
                    "the regions still differ in {scope} {} s after the last write",
                    EQUAL_TIME.as_secs()
                )));
            }
            sleep(LOOK_INTERVAL).await;
        }
    }
}

/// The visible keys of a scope below a prefix, with their values.
async fn entries(client: &Calls, scope: &str, prefix: &str) -> Result<Vec<Entry>, Failure> {
    let mut scan = client.scan(scope, ScanRange { prefix: prefix.to_owned(), ..ScanRange::default() });
    let mut entries = Vec::new();
    while let Some(entry) = scan.next().await? {
        entries.push(entry);
    }
    Ok(entries)
}

/// A promise that was shown and not kept.
fn broken(what: String) -> Failure {
    Failure::Failed(format!("a promise was not kept: {what}"))
}

/// Where the tour is told: words and tables on stdout, or on stderr when stdout is for the report; progress on a
/// terminal.
struct Screen<'o> {
    out: &'o mut Output,
    terminal: bool,
    waiting: bool,
}

impl Screen<'_> {
    /// Shows what is being waited for, on a terminal, until something else is said.
    fn progress(&mut self, words: &str) {
        if self.terminal {
            let _ = write!(io::stderr(), "\r  {words}\x1b[K"); // nobody has to read it
            self.waiting = true;
        }
    }

    fn clear(&mut self) {
        if std::mem::take(&mut self.waiting) {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }

    fn tell(&mut self, words: &str) -> Result<(), Failure> {
        self.clear();
        if self.out.json {
            say(words);
            return Ok(());
        }
        self.out.line(words)?;
        self.out.flush()
    }

    /// Begins an act.
    fn act(&mut self, number: usize, title: &str, words: &str) -> Result<(), Failure> {
        self.tell(&format!("\n{number}. {title}\n   {words}\n"))
    }

    fn table(&mut self, rows: &[Vec<String>]) -> Result<(), Failure> {
        let text: Vec<String> = table(rows).lines().map(|line| format!("   {line}")).collect();
        self.tell(&text.join("\n"))
    }

    /// A line below a table.
    fn note(&mut self, words: &str) -> Result<(), Failure> {
        self.tell(&format!("\n   {words}"))
    }

    fn farewell(&mut self, directory: &Temporary, took: Duration) -> Result<(), Failure> {
        self.tell(&format!(
            "\nThat was the tour, in {:.0} s. What to try next:\n\n   \
             tropism dev                                             the same regions, staying up\n   \
             tropism put shop/carts alice '{{\"note\":\"hi\"}}' --from tokyo\n   \
             tropism get shop/carts alice --from dallas\n   \
             tropism watch shop/carts\n   \
             tropism dev link cut tokyo dallas\n   \
             tropism status",
            took.as_secs_f64()
        ))?;
        if directory.keep {
            let path = directory.path.display();
            self.tell(&format!(
                "\nThe stores and logs are kept; this serves them again:\n\n   \
                 tropism dev --data {path} --regions {path}/regions.toml"
            ))?;
        }
        Ok(())
    }
}

/// The directory of the tour's world, deleted at the end unless it is to be kept.
struct Temporary {
    path: PathBuf,
    keep: bool,
}

impl Temporary {
    fn create(keep: bool) -> Result<Self, Failure> {
        let path = env::temp_dir().join(format!("tropism-demo-{:016x}", rand::random::<u64>()));
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|error| Failure::Failed(format!("{} cannot be created: {error}", path.display())))?;
        Ok(Self { path, keep })
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            say(&format!("{} could not be deleted: {error}", self.path.display()));
        }
    }
}

/// The regions file, with the tour's own rule in front of its rules.
fn regions_file(path: Option<&Path>) -> Result<RegionsFile, Failure> {
    let (name, text) = match path {
        None => (USUAL_REGIONS.to_owned(), Regions::shipped(USUAL_REGIONS).unwrap_or_default().to_owned()),
        Some(path) => {
            let name = path.to_string_lossy().into_owned();
            let cannot =
                |error: String| Failure::Usage(format!("--regions {}: {error}", name.escape_debug()));
            let length = fs::metadata(path).map_err(|error| cannot(error.to_string()))?.len();
            if length > MAX_CONFIG_BYTES as u64 {
                return Err(cannot(format!("has {length} bytes; the limit is {MAX_CONFIG_BYTES}")));
            }
            let text = fs::read_to_string(path).map_err(|error| cannot(error.to_string()))?;
            (name, text)
        }
    };
    let failed = |errors: ConfigErrors| Failure::Usage(errors.to_string());
    let regions = Regions::parse(&name, &text).map_err(failed)?;
    RegionsFile::parse(&name, &with_rules(&text, &regions)).map_err(failed)
}

/// Rules are tried in order: the tour's must come before one for everything.
fn with_rules(text: &str, regions: &Regions) -> String {
    let first = if text.starts_with("[[rule]]") { Some(0) } else { text.find("\n[[rule]]").map(|at| at + 1) };
    let (before, rules) = text.split_at(first.unwrap_or(text.len()));
    format!("{before}\n{NOTES_RULE}{}{rules}", follow_rule(regions))
}

/// A place for a scope that follows its users: it begins in one of the two regions that are farthest apart.
fn follow_rule(regions: &Regions) -> String {
    let [home, _] = farthest(regions.regions().iter().map(|region| region.name.as_str()), |a, b| {
        regions.rtt(a, b).unwrap_or_default()
    });
    format!(
        "[[rule]]\nname = \"demo-players\"\npattern = \"players/**\"\nkind = \"document\"\nmode = \"follow\"\n\
         regions = [\"{home}\"]\nmin_regions = 1\nmax_regions = 1\n\n"
    )
}

/// The two that are farthest from each other.
fn farthest<'a>(
    names: impl Iterator<Item = &'a str> + Clone,
    far: impl Fn(&str, &str) -> f64,
) -> [String; 2] {
    let mut found = (-1.0, [String::new(), String::new()]);
    for one in names.clone() {
        for other in names.clone().filter(|other| *other != one) {
            let far = far(one, other);
            if far > found.0 {
                found = (far, [one.to_owned(), other.to_owned()]);
            }
        }
    }
    found.1
}

/// Whether the node at an endpoint takes reads and writes.
async fn serves(endpoint: String) -> bool {
    let Ok(client) = Calls::in_order(vec![endpoint]) else { return false };
    let state = client.status().await.ok().and_then(|status| Some(status.node?.state()));
    state == Some(NodeState::Serving)
}

#[cfg(test)]
mod tests {
    use tropism_placement::Regions;

    use super::{RegionsFile, USUAL_REGIONS, with_rules};

    #[test]
    fn the_usual_regions_take_the_rules_of_the_tour() {
        let text = Regions::shipped(USUAL_REGIONS).unwrap_or_default();
        let regions = Regions::parse(USUAL_REGIONS, text).unwrap_or_else(|errors| panic!("{errors}"));
        let text = with_rules(text, &regions);
        assert!(RegionsFile::parse(USUAL_REGIONS, &text).is_ok(), "{text}");
        assert!(text.contains("regions = [\"frankfurt\"]"), "{text}");
        assert!(text.find("demo-notes") < text.find("name = \"shop\""), "{text}");
    }
}
