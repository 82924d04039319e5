//! What differs from world to world besides luck: regions, rules, sizes, and what may break.

use tropism_placement::{Kind, RegionName, Regions, Rules, ScopeName};

use crate::rng::Rng;
use crate::world::FaultKind;

/// How long the log is kept in most worlds, ms: longer than any of them lasts, also by a clock that is an hour ahead.
const LONG_MS: u64 = 10_000_000;

/// Nodes of a world: more make it slow, and show nothing new.
const MOST_NODES: usize = 6;

/// One world's configuration, drawn from its seed.
pub(crate) struct Config {
    pub(crate) rules: Rules,
    pub(crate) regions: Vec<RegionName>,
    /// The region of each node.
    pub(crate) homes: Vec<RegionName>,
    pub(crate) scopes: Vec<(ScopeName, Kind)>,
    /// Keys of a scope.
    pub(crate) keys: u64,
    /// Clients with sessions.
    pub(crate) clients: usize,
    /// How often a client goes to another region, percent.
    pub(crate) hops: u64,
    pub(crate) cache_bytes: usize,
    pub(crate) log_keep_ms: u64,
    /// How long it is kept for peers that lack it.
    pub(crate) log_cap_ms: u64,
    /// Bytes of a part of a shard, and keys that are merged at once.
    pub(crate) part_bytes: usize,
    pub(crate) settle_keys: usize,
    /// How long a sync takes, us.
    pub(crate) sync_us: (u64, u64),
    /// Whether scopes move.
    pub(crate) moves: bool,
    /// What may break: each world leaves some of it out, so that what hides behind it is seen.
    pub(crate) menu: Vec<FaultKind>,
}

impl Config {
    pub(crate) fn draw(rng: &mut Rng) -> Self {
        let count = rng.between(2, 4) as usize;
        let (rules, regions) = rules_for(count);
        let mut scopes = vec![
            ("stats/visits", Kind::Counter),
            ("wide/things", Kind::Register),
            ("shop/carts", Kind::Document),
            ("shop/notes", Kind::Document),
            ("pages", Kind::Register),
            ("pair/of-two", Kind::Register),
        ];
        while scopes.len() > 1 && rng.chance(60) {
            scopes.swap_remove(rng.index(scopes.len()));
        }
        let scopes = scopes
            .into_iter()
            .map(|(name, kind)| (ScopeName::new(name).unwrap_or_else(|e| panic!("{e}")), kind))
            .collect();
        let log_keep_ms = *rng.pick(&[500, 5_000, LONG_MS, LONG_MS]);
        let log_cap_ms = *rng.pick(&[1_000, 10_000, LONG_MS]);
        let hostile = rng.chance(25);
        let mut menu: Vec<FaultKind> = Vec::new();
        while menu.len() < 4 {
            menu = FaultKind::ALL
                .into_iter()
                .filter(|_| rng.chance(75))
                .filter(|kind| hostile || *kind != FaultKind::Hostile)
                .collect();
        }
        Self {
            rules,
            homes: regions.clone(),
            regions,
            scopes,
            keys: rng.between(1, 12),
            clients: rng.between(1, 12) as usize,
            hops: *rng.pick(&[5, 30, 80]),
            // Now and then so small that documents are read back all the time.
            cache_bytes: *rng.pick(&[0, 60_000, 100_000_000]),
            log_keep_ms: log_keep_ms.min(log_cap_ms),
            log_cap_ms,
            part_bytes: *rng.pick(&[150, 2_000, 200_000]),
            settle_keys: *rng.pick(&[1, 3, 64]),
            sync_us: (50, *rng.pick(&[300, 3_000, 40_000])),
            moves: false,
            menu,
        }
    }
}

impl Config {
    /// Puts more nodes into some regions, in a third of the worlds; drawn apart, too.
    pub(crate) fn draw_neighbours(&mut self, rng: &mut Rng) {
        if !rng.chance(35) {
            return;
        }
        while self.homes.len() < MOST_NODES {
            self.homes.push(rng.pick(&self.regions).clone());
            if rng.chance(30) {
                break;
            }
        }
    }

    /// Lets scopes move in half of the worlds where they can. Drawn apart, so that a seed's world is otherwise the same.
    pub(crate) fn draw_moves(&mut self, rng: &mut Rng) {
        // What rotted or was forged stays with the only member that has it, if the others leave.
        let breaks = |kind: &FaultKind| matches!(kind, FaultKind::BitRot | FaultKind::Hostile);
        self.moves = self.regions.len() > 2 && rng.chance(70) && !self.menu.iter().any(breaks);
    }
}

/// Regions and rules of a world with `count` regions.
fn rules_for(count: usize) -> (Rules, Vec<RegionName>) {
    let names: Vec<String> = (0..count).map(|i| format!("r{i}")).collect();
    let mut text = String::new();
    for name in &names {
        text.push_str(&format!("[[region]]\nname = \"{name}\"\nplace = \"{name}\"\n"));
    }
    for (i, a) in names.iter().enumerate() {
        for b in &names[i + 1..] {
            text.push_str(&format!("[[rtt]]\nbetween = [\"{a}\", \"{b}\"]\nms = 100\n"));
        }
    }
    for (name, pattern, kind, more) in [
        ("counts", "stats/**", "counter", ""),
        ("spread", "wide/**", "register", "spread = 3\n"),
        ("shop", "shop/**", "document", "counters = [\"/n\"]\ntext = [\"/text\"]\nspread = 2\n"),
        ("pair", "pair/**", "register", "regions = [\"r1\", \"r0\"]\n"),
        ("cache", "**", "register", ""),
    ] {
        text.push_str(&format!(
            "[[rule]]\nname = \"{name}\"\npattern = \"{pattern}\"\nkind = \"{kind}\"\n{more}"
        ));
    }
    let regions = Regions::parse("simulated", &text).unwrap_or_else(|errors| panic!("{errors}"));
    let names = regions.regions().iter().map(|region| region.name.clone()).collect();
    (regions.rules().clone(), names)
}
