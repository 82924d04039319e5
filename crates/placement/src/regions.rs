//! The regions file: which regions exist, how far apart they are, where clients sit, and the rules to start with.

use std::collections::BTreeSet;

use toml::de::DeValue;

use crate::config::{At, ConfigErrors, Reader, Table, number, string};
use crate::name::{MAX_REGION_NAME_BYTES, RegionName, check_label, echo};
use crate::rules::{MAX_RULES, Rules};

/// Most regions: a set of them fits a 64-bit mask.
pub const MAX_REGIONS: usize = 64;
/// Most places that are not regions: each needs a round trip to every region, and the file stays readable.
pub const MAX_PLACES: usize = 256;
/// Most nodes of a regions file: more than slots would leave some without work.
pub const MAX_NODES: usize = crate::scope::SLOTS as usize;
/// Longest round trip in milliseconds: light in fibre goes ten times around the world; more is a typing error.
pub const MAX_ROUND_TRIP_MS: f64 = 2000.0;
/// Longest node id in bytes: room for region and number; it is part of every change's origin.
pub const MAX_NODE_ID_BYTES: usize = 31;

/// Longest title of a place in bytes: one column of a table.
const MAX_TITLE_BYTES: usize = 64;
/// Longest `host:port` in bytes: a DNS name has at most 253.
const MAX_ADDRESS_BYTES: usize = 260;
/// Most round trips of a file: every place, regions included, with every region.
const MAX_ROUND_TRIPS: usize = MAX_REGIONS * (MAX_REGIONS + MAX_PLACES);

/// A point on the globe, in degrees.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Location {
    /// North is positive, -90 to 90.
    pub latitude: f64,
    /// East is positive, -180 to 180.
    pub longitude: f64,
}

/// A latency and failure domain.
#[derive(Debug, Clone, PartialEq)]
pub struct Region {
    /// Its name.
    pub name: RegionName,
    /// Where it is, for people: `Dallas, US`.
    pub place: String,
    /// Where it is, for maps.
    pub location: Option<Location>,
}

/// Where clients are. Every region is a place too.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    /// Its name, that of the region if it is one: `[a-z0-9][a-z0-9-]*`, at most 32 bytes.
    pub name: String,
    /// Its name for people.
    pub title: String,
    /// Where it is, for maps.
    pub location: Option<Location>,
    /// Round trips to the regions in file order, in milliseconds; 0 to the region it is itself.
    pub round_trips: Vec<f64>,
}

/// A node of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its id, unique: `[a-z0-9][a-z0-9-]*`, at most [`MAX_NODE_ID_BYTES`].
    pub id: String,
    /// The region it stands in.
    pub region: RegionName,
    /// `host:port` for clients.
    pub client: String,
    /// `host:port` for other nodes.
    pub peer: String,
}

/// What a regions file says, checked whole. The file is TOML:
///
/// ```toml
/// region = [
///     { name = "dallas", place = "Dallas, US" },
///     { name = "tokyo", place = "Tokyo, Japan", latitude = 35.68, longitude = 139.69 },
/// ]
/// place = [{ name = "london", title = "London, UK" }]  # clients are there, no region is
/// rtt = [                                              # every pair of regions, every place with every region
///     { between = ["dallas", "tokyo"], ms = 143.5 },
///     { between = ["dallas", "london"], ms = 113.0 },
///     { between = ["tokyo", "london"], ms = 243.5 },
/// ]
/// [[node]]                                             # optional: a development world makes its own
/// id = "dallas-1"
/// region = "dallas"
/// client = "10.1.0.1:7000"
/// peer = "10.1.0.1:7100"
/// [[rule]]                                             # in order, the first match wins
/// name = "everything"
/// pattern = "**"
/// kind = "document"
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Regions {
    regions: Vec<Region>,
    places: Vec<Place>,
    nodes: Vec<Node>,
    rules: Rules,
}

impl Regions {
    /// The names and texts of the regions files that come with the program, smallest first.
    pub const SHIPPED: [(&'static str, &'static str); 3] = [
        ("single", include_str!("../../../regions/single.toml")),
        ("three-continents", include_str!("../../../regions/three-continents.toml")),
        ("ten-cities", include_str!("../../../regions/ten-cities.toml")),
    ];

    /// The text of a regions file that comes with the program.
    pub fn shipped(name: &str) -> Option<&'static str> {
        Self::SHIPPED.into_iter().find(|(shipped, _)| *shipped == name).map(|(_, text)| text)
    }

    /// Reads and checks a regions file. `file` is its name in errors.
    pub fn parse(file: &str, text: &str) -> Result<Self, ConfigErrors> {
        let mut reader = Reader::new(file, text);
        let read = reader.root().map(|root| Self::read(&mut reader, root));
        match read {
            Some(regions) if !reader.failed() => Ok(regions),
            _ => Err(reader.into_errors()),
        }
    }

    /// The regions, in file order; at least one.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Where clients are: first the regions, in file order, then the other places.
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    /// The nodes, in file order; often none.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The rules the cluster starts with.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The place with this name.
    pub fn place(&self, name: &str) -> Option<&Place> {
        self.places.iter().find(|place| place.name == name)
    }

    /// The round trip in milliseconds between a region and a region or other place, in either order; 0 within a region.
    /// None if a name is unknown or neither is a region.
    pub fn rtt(&self, a: &str, b: &str) -> Option<f64> {
        let index = |name| self.regions.iter().position(|region| region.name.as_str() == name);
        match (index(a), index(b)) {
            (_, Some(b)) => self.place(a)?.round_trips.get(b).copied(),
            (Some(a), None) => self.place(b)?.round_trips.get(a).copied(),
            (None, None) => None,
        }
    }

    /// The region with the shortest round trip from a place; of equal ones the first in the file.
    pub fn nearest(&self, place: &str) -> Option<&Region> {
        let round_trips = &self.place(place)?.round_trips;
        let (_, region) = round_trips.iter().zip(&self.regions).min_by(|(a, _), (b, _)| a.total_cmp(b))?;
        Some(region)
    }

    fn read(reader: &mut Reader<'_>, mut root: Table<'_>) -> Self {
        let mut sites = Sites::default();
        for table in root.sections(reader, "region", MAX_REGIONS) {
            sites.read_region(reader, table);
        }
        if sites.regions.is_empty() && !reader.failed() {
            reader.fail(0, "region", "there is none; at least one is needed");
        }
        for table in root.sections(reader, "place", MAX_PLACES) {
            sites.read_place(reader, table);
        }
        for table in root.sections(reader, "rtt", MAX_ROUND_TRIPS) {
            sites.read_round_trip(reader, table);
        }
        let names: Vec<RegionName> = sites.regions.iter().map(|region| region.name.clone()).collect();
        let (regions, places) = sites.finish(reader);

        let mut nodes: Vec<Node> = Vec::new();
        let mut taken = BTreeSet::new();
        for table in root.sections(reader, "node", MAX_NODES) {
            nodes.extend(read_node(reader, table, &names, &mut taken));
        }
        let tables = root.sections(reader, "rule", MAX_RULES);
        let rules = Rules::read(reader, tables, &names);
        root.finish(reader);
        Self { regions, places, nodes, rules }
    }
}

/// Regions and places while their round trips come in.
#[derive(Default)]
struct Sites {
    regions: Vec<Region>,
    /// Regions first, with where each stands in the text.
    places: Vec<At<Place>>,
    /// Per place, per region: the round trip in milliseconds, once known.
    round_trips: Vec<Vec<Option<f64>>>,
}

impl Sites {
    fn read_region(&mut self, reader: &mut Reader<'_>, mut table: Table<'_>) {
        let at = table.at;
        let name = table.required(reader, "name", |value| {
            RegionName::new(&string(value)?).map_err(|error| error.to_string())
        });
        let title = table.required(reader, "place", title);
        let location = read_location(reader, &mut table);
        table.finish(reader);
        let (Some(At { at: name_at, value: name }), Some(At { value: title, .. })) = (name, title) else {
            return;
        };
        let place =
            Place { name: name.as_str().to_owned(), title: title.clone(), location, round_trips: Vec::new() };
        if self.add(reader, "region.name", name_at, At { at, value: place }) {
            self.regions.push(Region { name, place: title, location });
        }
    }

    fn read_place(&mut self, reader: &mut Reader<'_>, mut table: Table<'_>) {
        let at = table.at;
        let name = table.required(reader, "name", |value| label("place name", MAX_REGION_NAME_BYTES, value));
        let title = table.required(reader, "title", title);
        let location = read_location(reader, &mut table);
        table.finish(reader);
        let (Some(name), Some(title)) = (name, title) else { return };
        let place = Place { name: name.value, title: title.value, location, round_trips: Vec::new() };
        self.add(reader, "place.name", name.at, At { at, value: place });
    }

    fn add(&mut self, reader: &mut Reader<'_>, key: &str, name_at: usize, place: At<Place>) -> bool {
        if self.position(&place.value.name).is_some() {
            reader.fail(name_at, key, format!("\"{}\" is already a region or place", place.value.name));
            return false;
        }
        self.places.push(place);
        true
    }

    fn position(&self, name: &str) -> Option<usize> {
        self.places.iter().position(|place| place.value.name == name)
    }

    fn read_round_trip(&mut self, reader: &mut Reader<'_>, mut table: Table<'_>) {
        let at = table.at;
        table.require(reader, "between");
        let between = table.list(reader, "between", 2, |text| {
            self.position(text).ok_or_else(|| format!("unknown region or place \"{}\"", echo(text)))
        });
        let ms = table.required(reader, "ms", |value| {
            let ms = number(value)?;
            if ms > 0.0 && ms <= MAX_ROUND_TRIP_MS {
                return Ok(ms);
            }
            Err(format!(
                "{ms} is no round trip; it must be above 0 and at most {MAX_ROUND_TRIP_MS} milliseconds"
            ))
        });
        table.finish(reader);
        let Some(between) = between else { return };
        let &[At { value: a, .. }, At { value: b, .. }] = between.value.as_slice() else {
            reader.fail(between.at, "rtt.between", "must name two, regions or a region and a place");
            return;
        };
        if a == b {
            reader.fail(between.at, "rtt.between", "names one twice; the round trip within a region is 0");
            return;
        }
        let regions = self.regions.len();
        if a >= regions && b >= regions {
            reader.fail(between.at, "rtt.between", "one of the two must be a region");
            return;
        }
        let Some(At { value: ms, .. }) = ms else { return };
        self.round_trips.resize_with(self.places.len(), || vec![None; regions]);
        let mut known = false;
        for (place, region) in [(a, b), (b, a)] {
            if let Some(slot) = self.round_trips[place].get_mut(region) {
                known |= slot.replace(ms).is_some();
            }
        }
        if known {
            let (a, b) = (&self.places[a].value.name, &self.places[b].value.name);
            reader.fail(
                at,
                "rtt.between",
                format!("the round trip between \"{a}\" and \"{b}\" is given twice"),
            );
        }
    }

    /// Reports the pairs without a round trip and gives out what is complete.
    fn finish(mut self, reader: &mut Reader<'_>) -> (Vec<Region>, Vec<Place>) {
        self.round_trips.resize_with(self.places.len(), || vec![None; self.regions.len()]);
        let mut places = Vec::new();
        for (i, (At { at, value: mut place }, round_trips)) in
            self.places.into_iter().zip(self.round_trips).enumerate()
        {
            for (j, (round_trip, region)) in round_trips.into_iter().zip(&self.regions).enumerate() {
                if round_trip.is_none() && j < i {
                    let reason =
                        format!("no round trip between \"{}\" and \"{}\" is given", region.name, place.name);
                    reader.fail(at, "rtt", reason);
                }
                place.round_trips.push(round_trip.unwrap_or(0.0)); // to itself; else the file is refused
            }
            places.push(place);
        }
        (self.regions, places)
    }
}

fn read_node(
    reader: &mut Reader<'_>,
    mut table: Table<'_>,
    regions: &[RegionName],
    taken: &mut BTreeSet<(&'static str, String)>,
) -> Option<Node> {
    let id = table.required(reader, "id", |value| label("node id", MAX_NODE_ID_BYTES, value));
    let region = table.required(reader, "region", |value| {
        let name = string(value)?;
        let region = regions.iter().find(|region| region.as_str() == name).cloned();
        region.ok_or_else(|| format!("unknown region \"{}\"", echo(&name)))
    });
    let client = table.required(reader, "client", address);
    let peer = table.required(reader, "peer", address);
    for (what, key, value) in [("id", "id", &id), ("address", "client", &client), ("address", "peer", &peer)]
    {
        if let Some(value) = value
            && !taken.insert((what, value.value.clone()))
        {
            reader.fail(value.at, &table.path(key), format!("\"{}\" is already taken", echo(&value.value)));
        }
    }
    table.finish(reader);
    Some(Node { id: id?.value, region: region?.value, client: client?.value, peer: peer?.value })
}

fn read_location(reader: &mut Reader<'_>, table: &mut Table<'_>) -> Option<Location> {
    let latitude = table.optional(reader, "latitude", |value| degrees(value, 90.0));
    let longitude = table.optional(reader, "longitude", |value| degrees(value, 180.0));
    match (latitude, longitude) {
        (Some(latitude), Some(longitude)) => {
            Some(Location { latitude: latitude.value, longitude: longitude.value })
        }
        (None, None) => None,
        (Some(At { at, .. }), None) | (None, Some(At { at, .. })) => {
            reader.fail(
                at,
                &table.path("latitude"),
                "latitude and longitude are given together or not at all",
            );
            None
        }
    }
}

fn degrees(value: DeValue<'_>, most: f64) -> Result<f64, String> {
    match number(value)? {
        degrees if (-most..=most).contains(&degrees) => Ok(degrees),
        degrees => Err(format!("{degrees} is outside -{most} to {most} degrees")),
    }
}

/// A short name as text.
fn label(what: &'static str, limit: usize, value: DeValue<'_>) -> Result<String, String> {
    let text = string(value)?;
    check_label(what, &text, limit).map_err(|error| error.to_string())?;
    Ok(text)
}

/// A name for people: short, one line.
fn title(value: DeValue<'_>) -> Result<String, String> {
    let text = string(value)?;
    if text.is_empty() || text.len() > MAX_TITLE_BYTES || text.chars().any(char::is_control) {
        return Err(format!(
            "\"{}\" must have 1 to {MAX_TITLE_BYTES} bytes and no control characters",
            echo(&text)
        ));
    }
    Ok(text)
}

/// `host:port`, an IPv6 host in brackets.
fn address(value: DeValue<'_>) -> Result<String, String> {
    let text = string(value)?;
    let good = text.len() <= MAX_ADDRESS_BYTES
        && text.rsplit_once(':').is_some_and(|(host, port)| {
            let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
            let host_good = match bare {
                Some(ip) => ip.parse::<std::net::Ipv6Addr>().is_ok(),
                None => {
                    !host.is_empty()
                        && host.bytes().all(|b| matches!(b, b'-' | b'.' | b'_') || b.is_ascii_alphanumeric())
                }
            };
            host_good
                && port.bytes().all(|b| b.is_ascii_digit())
                && port.parse::<u16>().is_ok_and(|port| port > 0)
        });
    if good {
        Ok(text)
    } else {
        Err(format!("\"{}\" is no host:port with a port from 1 to 65535", echo(&text)))
    }
}
