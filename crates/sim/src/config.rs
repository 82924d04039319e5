//! What differs from world to world besides luck: regions and rules.

use tropism_placement::{RegionName, Regions, Rules};

/// Regions, rules and node names of a world with `count` regions.
pub(crate) fn rules_for(count: usize) -> (Rules, Vec<RegionName>) {
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
