//! A scope's placement record, as this node adopted it from the directory.

use bytes::Bytes;
use tropism_crdt::codec::{DecodeError, Reader, put_bytes, put_varint};
use tropism_placement::{Hold, Kind, MAX_REGIONS, Membership, RegionName, ScopeId, ScopeName, StoredRecord};

use crate::rows::Row;

/// Name, incarnation, epoch, flags (1 dropped, 2 has a goal), hold, kind, spread, rule, then the lists of regions: serving,
/// learners, leaving, and the goal if there is one.
impl Row for StoredRecord {
    fn encode_fields(&self, out: &mut Vec<u8>) {
        put_bytes(out, self.scope.name.as_str().as_bytes());
        put_varint(out, self.scope.incarnation);
        put_varint(out, self.members.epoch);
        out.push(u8::from(self.dropped) | u8::from(self.goal.is_some()) << 1);
        out.push(match self.hold {
            Hold::Free => 0,
            Hold::Pinned => 1,
            Hold::Frozen => 2,
        });
        out.push(self.kind.code());
        put_varint(out, self.spread.into());
        put_bytes(out, self.rule.as_bytes());
        let Membership { serving, learners, leaving, .. } = &self.members;
        for list in [serving, learners, leaving].into_iter().chain(&self.goal) {
            put_varint(out, list.len() as u64);
            list.iter().for_each(|region| put_bytes(out, region.as_str().as_bytes()));
        }
    }

    fn decode_fields(r: &mut Reader<'_>, _: &Bytes) -> Result<Self, DecodeError> {
        let name = ScopeName::new(r.str("scope")?).map_err(|_| r.invalid("scope"))?;
        let scope = ScopeId { name, incarnation: r.varint("incarnation")? };
        let epoch = r.varint("epoch")?;
        let flags = r.u8("flags")?;
        let hold = match r.u8("hold")? {
            0 => Hold::Free,
            1 => Hold::Pinned,
            2 => Hold::Frozen,
            _ => return Err(r.invalid("hold")),
        };
        let kind = Kind::from_code(r.u8("kind")?).ok_or_else(|| r.invalid("kind"))?;
        let spread = u16::try_from(r.varint("spread")?).map_err(|_| r.invalid("spread"))?;
        let rule = r.str("rule")?.into();
        let list = |r: &mut Reader<'_>| {
            let count = r.varint("regions")?;
            if count > MAX_REGIONS as u64 {
                return Err(r.invalid("regions"));
            }
            (0..count)
                .map(|_| RegionName::new(r.str("region")?).map_err(|_| r.invalid("region")))
                .collect::<Result<Vec<_>, _>>()
        };
        let (serving, learners, leaving) = (list(r)?, list(r)?, list(r)?);
        let goal = if flags & 2 != 0 { Some(list(r)?) } else { None };
        let members = Membership { epoch, serving, learners, leaving };
        let record = Self { scope, rule, kind, spread, members, goal, hold, dropped: flags & 1 != 0 };
        if flags > 3 || record.check().is_err() {
            return Err(r.invalid("record"));
        }
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_stored_record_has_golden_bytes_and_comes_back() {
        let region = |name: &str| RegionName::new(name).unwrap();
        let record = StoredRecord {
            scope: ScopeId { name: ScopeName::new("a/b").unwrap(), incarnation: 1 },
            rule: "all".into(),
            kind: Kind::Counter,
            spread: 300 / 2,
            members: Membership {
                epoch: 7,
                serving: vec![region("x")],
                learners: vec![region("y")],
                leaving: vec![],
            },
            goal: Some(vec![region("y")]),
            hold: Hold::Pinned,
            dropped: false,
        };
        let bytes = record.encode();
        let fields = b"\x03a/b\x01\x07\x02\x01\x03\x96\x01\x03all\x01\x01x\x01\x01y\x00\x01\x01y";
        assert_eq!(bytes[..bytes.len() - 8], *fields);
        assert_eq!(StoredRecord::decode(&bytes), Ok(record.clone()));
        let dropped = record.dropped();
        assert_eq!(StoredRecord::decode(&dropped.encode()), Ok(dropped));
        let mut nobody = record;
        nobody.members.serving.clear();
        assert!(StoredRecord::decode(&nobody.encode()).is_err());
    }
}
