//! What a rule says of where its scopes may be and what moves them: mode, allowed regions, pins, bounds and prices.
//!
//! A rule that says nothing is `fixed`: its scopes stay in its `regions`, as in files from before there were modes.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{At, Reader, Table, number, string, whole};
use crate::name::{MAX_REGION_NAME_BYTES, RegionName, ScopeName, check_label, echo};
use crate::regions::MAX_REGIONS;
use crate::rules::{Rule, RuleError, parse_expiry, unique};

/// Half-life of recorded access unless the rule says otherwise: of 3 minutes to 12 hours, 15 and 30 minutes cost least in
/// the simulation, and 30 copy less.
pub const DEFAULT_HALF_LIFE: Duration = Duration::from_secs(30 * 60);
/// Shortest half-life: one evaluation apart, all is forgotten between two.
pub const MIN_HALF_LIFE: Duration = Duration::from_secs(5 * 60);
/// Longest half-life: a week-old habit is no reason to be anywhere.
pub const MAX_HALF_LIFE: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Highest price, in dollars of its unit: what costs more is a typing error.
pub const MAX_PRICE: f64 = 1000.0;

/// What decides where a scope is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Its use: the regions with the lowest total price.
    Follow,
    /// Its rule: the rule's regions.
    Fixed,
    /// Its rule: every allowed region.
    Everywhere,
}

impl FromStr for Mode {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        match text {
            "follow" => Ok(Self::Follow),
            "fixed" => Ok(Self::Fixed),
            "everywhere" => Ok(Self::Everywhere),
            _ => Err(RuleError(format!(
                "\"{}\" is no mode; allowed are follow, fixed, everywhere",
                echo(text)
            ))),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Follow => "follow",
            Self::Fixed => "fixed",
            Self::Everywhere => "everywhere",
        })
    }
}

/// Bounds and prices under one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Preset {
    /// 1 or 2 regions; a client's time is worth a tenth.
    Cheap,
    /// 2 or 3 regions.
    Balanced,
    /// 2 to 5 regions; a client's time is worth ten times as much.
    Fast,
}

impl Preset {
    fn least_and_most(self) -> (usize, usize) {
        match self {
            Self::Cheap => (1, 2),
            Self::Balanced => (2, 3),
            Self::Fast => (2, 5),
        }
    }

    fn prices(self) -> Prices {
        let usual = Prices::default();
        match self {
            Self::Cheap => Prices { latency: usual.latency / 10, ..usual },
            Self::Balanced => usual,
            Self::Fast => Prices { latency: usual.latency * 10, ..usual },
        }
    }
}

impl FromStr for Preset {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        match text {
            "cheap" => Ok(Self::Cheap),
            "balanced" => Ok(Self::Balanced),
            "fast" => Ok(Self::Fast),
            _ => {
                Err(RuleError(format!("\"{}\" is no preset; allowed are cheap, balanced, fast", echo(text))))
            }
        }
    }
}

/// What waiting, traffic and storage cost. Whole numbers, so that every node computes with the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prices {
    /// A request that waits a millisecond, in 10^-12 dollars. In files `price_latency`, in dollars for a million of them.
    pub latency: u64,
    /// A gigabyte (10^9 bytes) between two regions, in 10^-6 dollars. In files `price_network`, in dollars.
    pub network: u64,
    /// A gigabyte kept for a month of 30 days in one region, in 10^-6 dollars. In files `price_storage`, in dollars.
    pub storage: u64,
}

impl Default for Prices {
    /// 10^-8 dollars a millisecond (a person's hour is worth some 36 of them), 0.02 a gigabyte between regions, 0.10 a
    /// gigabyte and month: usual list prices of clouds.
    fn default() -> Self {
        Self { latency: 10_000, network: 20_000, storage: 100_000 }
    }
}

/// Where a rule's scopes may be and what decides it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placing {
    /// What decides.
    pub mode: Mode,
    /// Regions that may hold the scopes; nothing of them is written to disk elsewhere. Includes the rule's regions.
    pub allowed: Vec<RegionName>,
    /// Regions that always hold them; part of `allowed`.
    pub pins: Vec<RegionName>,
    /// Fewest regions of a scope, at least 1.
    pub min_regions: usize,
    /// Most regions of a scope, at most those allowed.
    pub max_regions: usize,
    /// Scopes of all rules with the same name here are placed as one, by their access together.
    pub with: Option<Arc<str>>,
    /// In how long recorded access counts half.
    pub half_life: Duration,
    /// What is weighed against what.
    pub prices: Prices,
}

impl Placing {
    /// The placing of scopes that stay where they are.
    pub fn fixed(regions: &[RegionName]) -> Self {
        Self {
            mode: Mode::Fixed,
            allowed: regions.to_vec(),
            pins: Vec::new(),
            min_regions: regions.len().max(1),
            max_regions: regions.len().max(1),
            with: None,
            half_life: DEFAULT_HALF_LIFE,
            prices: Prices::default(),
        }
    }

    /// What access to a scope is counted under, and what is placed as one.
    pub fn unit(&self, name: &ScopeName) -> Unit {
        self.with.clone().map_or_else(|| Unit::Scope(name.clone()), Unit::Group)
    }

    /// Reads the keys of a rule that say where its scopes are: the regions in which they begin, and the rest.
    pub(crate) fn read(
        reader: &mut Reader<'_>,
        table: &mut Table<'_>,
        all: &[RegionName],
        earlier: &[Rule],
    ) -> (Vec<RegionName>, Self) {
        let base = table.optional(reader, "inherit", |value| {
            let name = string(value)?;
            let found = earlier.iter().find(|rule| *rule.name == *name);
            found.cloned().ok_or_else(|| format!("there is no earlier rule \"{}\"", echo(&name)))
        });
        let preset = table.optional(reader, "preset", crate::rules::parsed::<Preset>);
        if let (Some(_), Some(preset)) = (&base, &preset) {
            reader.fail(
                preset.at,
                &table.path("preset"),
                "cannot stand beside `inherit`: each gives the rest",
            );
        }
        let mode = table.optional(reader, "mode", crate::rules::parsed::<Mode>);
        let keys = Keys {
            regions: region_list(reader, table, "regions", all, true),
            allowed: region_list(reader, table, "allowed", all, true),
            pins: region_list(reader, table, "pins", all, false),
            least: table.optional(reader, "min_regions", |value| whole(value, 1, MAX_REGIONS as u64)),
            most: table.optional(reader, "max_regions", |value| whole(value, 1, MAX_REGIONS as u64)),
            with: table.optional(reader, "with", |value| {
                let name = string(value)?;
                check_label("group name", &name, MAX_REGION_NAME_BYTES).map_err(|error| error.to_string())?;
                Ok(name)
            }),
            half_life: table.optional(reader, "half_life", |value| {
                let time = parse_expiry(&string(value)?).map_err(|error| error.to_string())?;
                if (MIN_HALF_LIFE..=MAX_HALF_LIFE).contains(&time) {
                    return Ok(time);
                }
                Err("is outside 5m to 7d".to_owned())
            }),
            latency: price(reader, table, "price_latency"),
            network: price(reader, table, "price_network"),
            storage: price(reader, table, "price_storage"),
        };
        let base = base.map(|base| base.value);
        let inherited = base.as_ref().map(|rule| rule.placing.as_ref());
        let mode = mode
            .map(|mode| mode.value)
            .or(inherited.map(|placing| placing.mode))
            .unwrap_or(if preset.is_some() { Mode::Follow } else { Mode::Fixed });
        if mode == Mode::Follow {
            return keys.follow(reader, table, all, base.as_ref(), preset.map(|preset| preset.value));
        }
        keys.still(reader, table, all, base.as_ref(), preset.map(|preset| preset.at), mode)
    }
}

/// What access is counted under: a scope, or scopes that are placed together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unit {
    /// One scope.
    Scope(ScopeName),
    /// All scopes of the rules with this name for `with`.
    Group(Arc<str>),
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scope(name) => f.pad(name.as_str()),
            Self::Group(name) => write!(f, "group {name}"),
        }
    }
}

/// The keys of one rule, as given.
struct Keys {
    regions: Option<At<Vec<RegionName>>>,
    allowed: Option<At<Vec<RegionName>>>,
    pins: Option<At<Vec<RegionName>>>,
    least: Option<At<u64>>,
    most: Option<At<u64>>,
    with: Option<At<String>>,
    half_life: Option<At<Duration>>,
    latency: Option<At<u64>>,
    network: Option<At<u64>>,
    storage: Option<At<u64>>,
}

impl Keys {
    /// Scopes that no use moves.
    fn still(
        self,
        reader: &mut Reader<'_>,
        table: &Table<'_>,
        all: &[RegionName],
        base: Option<&Rule>,
        preset: Option<usize>,
        mode: Mode,
    ) -> (Vec<RegionName>, Placing) {
        let idle = [
            ("preset", preset),
            ("pins", at(&self.pins)),
            ("min_regions", at(&self.least)),
            ("max_regions", at(&self.most)),
            ("with", at(&self.with)),
            ("half_life", at(&self.half_life)),
            ("price_latency", at(&self.latency)),
            ("price_network", at(&self.network)),
            ("price_storage", at(&self.storage)),
        ];
        for (key, at) in idle {
            if let Some(at) = at {
                reader.fail(at, &table.path(key), format!("is for mode \"follow\"; the mode is \"{mode}\""));
            }
        }
        let given = self.allowed.as_ref().map(|list| list.value.clone());
        let allowed = given.or_else(|| {
            // A rule's own regions bind more than what it inherits.
            let inherited = base.map(|rule| rule.placing.allowed.clone());
            if self.regions.is_some() && inherited.is_none() { None } else { inherited }
        });
        let regions = match (&self.regions, &allowed, mode) {
            (Some(regions), _, _) => regions.value.clone(),
            (None, Some(allowed), Mode::Everywhere) => allowed.clone(),
            (None, _, _) if base.is_some() => base.map(|rule| rule.regions.clone()).unwrap_or_default(),
            (None, Some(allowed), _) => allowed.clone(),
            (None, None, _) => all.to_vec(),
        };
        let allowed = allowed.unwrap_or_else(|| regions.clone());
        let place = at(&self.regions).or(at(&self.allowed)).unwrap_or(table.at);
        outside(reader, place, &table.path("regions"), &regions, &allowed);
        if mode == Mode::Everywhere && regions.len() < allowed.len() {
            let reason = "leaves out allowed regions; with mode \"everywhere\" give only one of the two";
            reader.fail(place, &table.path("regions"), reason);
        }
        let placing = Placing { mode, allowed, ..Placing::fixed(&regions) };
        (regions, placing)
    }

    /// Scopes that follow their use.
    fn follow(
        self,
        reader: &mut Reader<'_>,
        table: &Table<'_>,
        all: &[RegionName],
        base: Option<&Rule>,
        preset: Option<Preset>,
    ) -> (Vec<RegionName>, Placing) {
        let inherited = base.map(|rule| rule.placing.as_ref()).filter(|placing| placing.mode == Mode::Follow);
        let preset = preset.unwrap_or(Preset::Balanced);
        let places = [at(&self.regions), at(&self.pins), at(&self.allowed), at(&self.most), at(&self.least)];
        let [of_regions, of_pins, of_allowed, of_most, of_least] = places.map(|at| at.unwrap_or(table.at));

        let allowed = value(self.allowed)
            .or_else(|| base.map(|rule| rule.placing.allowed.clone()))
            .unwrap_or_else(|| all.to_vec());
        let pins =
            value(self.pins).or_else(|| inherited.map(|placing| placing.pins.clone())).unwrap_or_default();
        outside(reader, of_pins, &table.path("pins"), &pins, &allowed);

        // What a preset or another rule gives is bent to the regions there are; what the rule itself says is not.
        let (least, most) =
            inherited.map_or(preset.least_and_most(), |placing| (placing.min_regions, placing.max_regions));
        let own_most = value(self.most).map(|most| most as usize); // at most MAX_REGIONS
        let own_least = value(self.least).map(|least| least as usize);
        let most_now = own_most.unwrap_or_else(|| most.max(own_least.unwrap_or(1)).min(allowed.len().max(1)));
        let least_now = own_least.unwrap_or_else(|| least.min(most_now));
        if most_now > allowed.len() {
            let reason = format!("{most_now} is more than the allowed regions, {}", allowed.len());
            reader.fail(
                if own_most.is_some() { of_most } else { of_allowed },
                &table.path("max_regions"),
                reason,
            );
        }
        if least_now > most_now {
            let reason = format!("{least_now} is more than max_regions, {most_now}");
            reader.fail(of_least, &table.path("min_regions"), reason);
        }
        if pins.len() > most_now {
            let reason = format!("{} regions; max_regions is {most_now}", pins.len());
            reader.fail(of_pins, &table.path("pins"), reason);
        }

        let regions = value(self.regions).or_else(|| base.map(|rule| rule.regions.clone()));
        let regions = regions.unwrap_or_else(|| allowed.clone());
        outside(reader, of_regions, &table.path("regions"), &regions, &allowed);
        if !(least_now..=most_now).contains(&regions.len()) && least_now <= most_now {
            let reason = format!(
                "new scopes would begin in {} regions; give {least_now} to {most_now} in which they begin",
                regions.len()
            );
            reader.fail(of_regions, &table.path("regions"), reason);
        }
        if let Some(pin) = pins.iter().find(|pin| !regions.contains(pin)) {
            let reason = format!("\"{pin}\" is pinned and not among the regions in which scopes begin");
            reader.fail(of_pins, &table.path("pins"), reason);
        }

        let usual = inherited.map_or(preset.prices(), |placing| placing.prices);
        let prices = Prices {
            latency: value(self.latency).unwrap_or(usual.latency),
            network: value(self.network).unwrap_or(usual.network),
            storage: value(self.storage).unwrap_or(usual.storage),
        };
        let with =
            value(self.with).map(Arc::from).or_else(|| inherited.and_then(|placing| placing.with.clone()));
        let half_life =
            value(self.half_life).unwrap_or(inherited.map_or(DEFAULT_HALF_LIFE, |placing| placing.half_life));
        let placing = Placing {
            mode: Mode::Follow,
            allowed,
            pins,
            min_regions: least_now,
            max_regions: most_now,
            with,
            half_life,
            prices,
        };
        (regions, placing)
    }
}

fn at<T>(given: &Option<At<T>>) -> Option<usize> {
    given.as_ref().map(|given| given.at)
}

fn value<T>(given: Option<At<T>>) -> Option<T> {
    given.map(|given| given.value)
}

/// Reports the first region that is not allowed.
fn outside(reader: &mut Reader<'_>, at: usize, path: &str, list: &[RegionName], allowed: &[RegionName]) {
    if let Some(region) = list.iter().find(|region| !allowed.contains(region)) {
        reader.fail(at, path, format!("\"{region}\" is not among the allowed regions"));
    }
}

/// Takes a list of regions. What is not one is reported.
fn region_list(
    reader: &mut Reader<'_>,
    table: &mut Table<'_>,
    key: &str,
    all: &[RegionName],
    needed: bool,
) -> Option<At<Vec<RegionName>>> {
    let path = table.path(key);
    let list = table.list(reader, key, MAX_REGIONS, |text| {
        all.iter().find(|region| region.as_str() == text).cloned().ok_or_else(|| {
            let known: Vec<&str> = all.iter().map(RegionName::as_str).collect();
            format!("unknown region \"{}\"; the regions are {}", echo(text), known.join(", "))
        })
    })?;
    if needed && list.value.is_empty() {
        reader.fail(list.at, &path, "is empty; a scope needs at least one region");
    }
    unique(reader, &path, &list.value);
    Some(At { at: list.at, value: list.value.into_iter().map(|region| region.value).collect() })
}

/// Takes a price in dollars as millionths of them.
fn price(reader: &mut Reader<'_>, table: &mut Table<'_>, key: &str) -> Option<At<u64>> {
    table.optional(reader, key, |value| match number(value)? {
        dollars if (0.0..=MAX_PRICE).contains(&dollars) => Ok((dollars * 1e6).round() as u64),
        dollars => Err(format!("{dollars} is outside 0 to {MAX_PRICE} dollars")),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)] // a failed assumption of a test is a failed test
    use std::time::Duration;

    use super::{Mode, Prices, Unit};
    use crate::{Regions, Rule, Rules, ScopeName};

    fn read(rules: &str) -> Result<Rules, String> {
        let text = format!(
            "region = [{{ name = \"a\", place = \"A\" }}, {{ name = \"b\", place = \"B\" }}, {{ name = \"c\", \
             place = \"C\" }}, {{ name = \"d\", place = \"D\" }}]\nrtt = [{}]\n{rules}",
            ["ab", "ac", "ad", "bc", "bd", "cd"]
                .map(|pair| format!("{{ between = [\"{}\", \"{}\"], ms = 10 }}", &pair[..1], &pair[1..]))
                .join(", ")
        );
        Regions::parse("p.toml", &text).map(|file| file.rules().clone()).map_err(|errors| errors.to_string())
    }

    fn rule(keys: &str) -> Result<Rule, String> {
        let rules = read(&format!("[[rule]]\nname = \"r\"\npattern = \"**\"\nkind = \"counter\"\n{keys}"))?;
        Ok(rules.get("r").unwrap().clone())
    }

    fn names(list: &[crate::RegionName]) -> String {
        list.iter().map(|region| region.as_str()).collect()
    }

    #[test]
    fn a_rule_that_says_nothing_keeps_its_scopes_where_they_are() {
        let silent = rule("").unwrap();
        assert_eq!((silent.placing.mode, names(&silent.regions).as_str()), (Mode::Fixed, "abcd"));
        let some = rule("regions = [\"c\", \"a\"]").unwrap();
        assert_eq!((names(&some.regions), names(&some.placing.allowed)), ("ca".into(), "ca".into()));
    }

    #[test]
    fn what_a_rule_says_is_what_it_gives() {
        let full = "mode = \"follow\"\nregions = [\"b\", \"a\"]\nallowed = [\"a\", \"b\", \"c\"]\npins = [\"b\"]\n\
            min_regions = 1\nmax_regions = 2\nwith = \"team\"\nhalf_life = \"15m\"\nprice_latency = 0.02\n\
            price_network = 0.09\nprice_storage = 0";
        let rule = rule(full).unwrap();
        let placing = &rule.placing;
        assert_eq!(
            (names(&rule.regions), names(&placing.allowed), names(&placing.pins)),
            ("ba".into(), "abc".into(), "b".into())
        );
        assert_eq!((placing.min_regions, placing.max_regions), (1, 2));
        assert_eq!(placing.half_life, Duration::from_secs(900));
        assert_eq!(placing.prices, Prices { latency: 20_000, network: 90_000, storage: 0 });
        let name = ScopeName::new("x/y").unwrap();
        assert_eq!(placing.unit(&name), Unit::Group("team".into()));
        assert_eq!(
            Rule { placing: super::Placing::fixed(&[]).into(), ..rule }.placing.unit(&name).to_string(),
            "x/y"
        );
    }

    #[test]
    fn presets_give_bounds_and_prices_that_keys_override() {
        let bounds = |keys: &str| {
            let rule = rule(keys).unwrap();
            (
                rule.placing.mode,
                rule.placing.min_regions,
                rule.placing.max_regions,
                rule.placing.prices.latency,
            )
        };
        assert_eq!(bounds("preset = \"cheap\"\nregions = [\"a\"]"), (Mode::Follow, 1, 2, 1_000));
        assert_eq!(bounds("preset = \"balanced\"\nregions = [\"a\", \"b\"]"), (Mode::Follow, 2, 3, 10_000));
        assert_eq!(bounds("preset = \"fast\""), (Mode::Follow, 2, 4, 100_000), "five of four are four");
        assert_eq!(
            bounds("preset = \"fast\"\nmax_regions = 2\nregions = [\"a\", \"b\"]"),
            (Mode::Follow, 2, 2, 100_000)
        );
        assert_eq!(bounds("mode = \"follow\"\nregions = [\"a\", \"b\"]"), (Mode::Follow, 2, 3, 10_000));
        assert_eq!(bounds("mode = \"follow\"\nallowed = [\"a\"]"), (Mode::Follow, 1, 1, 10_000));
    }

    #[test]
    fn a_rule_inherits_only_what_it_names_and_only_from_before() {
        let base = "[[rule]]\nname = \"x\"\npattern = \"x/**\"\nkind = \"counter\"\nmode = \"follow\"\n\
            regions = [\"a\", \"b\"]\nallowed = [\"a\", \"b\", \"c\"]\npins = [\"a\"]\nprice_latency = 3\n";
        let next = |keys: &str| {
            format!("{base}[[rule]]\nname = \"y\"\npattern = \"y/**\"\nkind = \"counter\"\n{keys}\n")
        };
        let rules = read(&next("inherit = \"x\"\nmax_regions = 2")).unwrap();
        let (x, y) = (rules.get("x").unwrap(), rules.get("y").unwrap());
        assert_eq!((y.placing.max_regions, x.placing.max_regions), (2, 3));
        assert_eq!(
            (&y.regions, &y.placing.pins, y.placing.prices),
            (&x.regions, &x.placing.pins, x.placing.prices)
        );
        let rules = read(&next("")).unwrap();
        assert_eq!(rules.get("y").unwrap().placing.mode, Mode::Fixed, "nothing by itself");
        assert_eq!(
            read(&next("inherit = \"z\"")).unwrap_err(),
            "p.toml:16: rule.inherit: there is no earlier rule \"z\""
        );
    }

    #[test]
    fn contradictions_are_named_with_line_and_key() {
        for (keys, wanted) in [
            ("mode = \"follows\"", "7: rule.mode: \"follows\" is no mode"),
            ("preset = \"best\"", "7: rule.preset: \"best\" is no preset"),
            ("pins = [\"a\"]", "7: rule.pins: is for mode \"follow\"; the mode is \"fixed\""),
            ("mode = \"everywhere\"\nmax_regions = 2", "8: rule.max_regions: is for mode \"follow\""),
            (
                "mode = \"everywhere\"\nallowed = [\"a\", \"b\"]\nregions = [\"a\"]",
                "9: rule.regions: leaves out",
            ),
            ("regions = [\"a\"]\nallowed = [\"b\"]", "7: rule.regions: \"a\" is not among the allowed"),
            ("mode = \"follow\"", "3: rule.regions: new scopes would begin in 4 regions; give 2 to 3"),
            (
                "mode = \"follow\"\nallowed = [\"a\", \"b\"]\npins = [\"c\"]",
                "9: rule.pins: \"c\" is not among",
            ),
            (
                "mode = \"follow\"\nregions = [\"a\", \"b\"]\npins = [\"c\"]",
                "9: rule.pins: \"c\" is pinned and not",
            ),
            (
                "mode = \"follow\"\nallowed = [\"a\", \"b\"]\nmax_regions = 3",
                "9: rule.max_regions: 3 is more than",
            ),
            (
                "mode = \"follow\"\nregions = [\"a\"]\nmin_regions = 3\nmax_regions = 2",
                "9: rule.min_regions: 3 is more",
            ),
            (
                "mode = \"follow\"\nregions = [\"a\", \"b\"]\nhalf_life = \"4m\"",
                "9: rule.half_life: is outside 5m to 7d",
            ),
            (
                "mode = \"follow\"\nregions = [\"a\", \"b\"]\nprice_network = -1",
                "9: rule.price_network: -1 is outside",
            ),
            (
                "mode = \"follow\"\nregions = [\"a\", \"b\"]\nprice_network = nan",
                "9: rule.price_network: NaN is outside",
            ),
            (
                "mode = \"follow\"\nregions = [\"a\", \"b\"]\ndurability = \"regions:3\"",
                "9: rule.durability: regions:3 is more",
            ),
            ("preset = \"fast\"\nallowed = [\"e\"]", "8: rule.allowed: unknown region \"e\""),
            ("preset = \"fast\"\nwith = \"A\"", "8: rule.with: "),
        ] {
            let errors = rule(keys).expect_err(keys);
            assert!(errors.contains(wanted), "{keys}: wanted {wanted}, got\n{errors}");
        }
    }

    #[test]
    fn a_group_has_one_placing() {
        let group = |second: &str| {
            read(&format!(
                "[[rule]]\nname = \"x\"\npattern = \"x/**\"\nkind = \"counter\"\nmode = \"follow\"\nregions = [\"a\", \"b\"]\n\
                 with = \"g\"\n[[rule]]\nname = \"y\"\npattern = \"y/**\"\nkind = \"document\"\n{second}"
            ))
        };
        assert!(group("inherit = \"x\"").is_ok());
        let errors = group("inherit = \"x\"\nmax_regions = 2").unwrap_err();
        assert!(
            errors.contains("rule.with: the group \"g\" is placed by the rule \"x\" in another way"),
            "{errors}"
        );
    }
}
