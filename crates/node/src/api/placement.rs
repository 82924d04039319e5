//! Where scopes go, and why: `PlacementService`.

use tonic::{Request, Response, Status, async_trait};
use tropism_placement::{Mode, RegionName};
use tropism_wire::v1::placement_service_server::PlacementService;
use tropism_wire::{FORWARDED_METADATA, Problem, Reason, v1};

use super::{Api, Call, Inner, scope_bytes, stopping, unreadable};
use crate::placement::{About, explained, unmoved};

#[async_trait]
impl PlacementService for Api {
    async fn explain_scope(
        &self,
        request: Request<v1::ExplainScopeRequest>,
    ) -> Result<Response<v1::ExplainScopeResponse>, Status> {
        let record = self.known_record(&request.get_ref().name)?;
        let name = record.scope.name.clone();
        let published = self.handle.published();
        let unit = self.placement.unit(&name);
        let steward = unit.as_ref().and_then(|(unit, _)| self.placement.steward_of(unit, &published));
        let asked_once = request.metadata().contains_key(FORWARDED_METADATA);
        if let Some(steward) = steward.filter(|steward| *steward != self.node && !asked_once) {
            let deadline = Call::deadline(request.extensions());
            let route = self.way(steward, deadline);
            let route = route.ok_or_else(|| self.no_steward(&record.serving))?;
            return route
                .placement(request, |mut c, request| async move { c.explain_scope(request).await })
                .await;
        }
        if steward.is_none() {
            return Err(self.no_steward(&record.serving).into());
        }
        let (unit, mode) = unit.ok_or_else(|| Problem::internal("a record without a rule"))?;
        let rule = record.rule.clone();
        let regions: Vec<RegionName> =
            self.regions.regions().iter().map(|region| region.name.clone()).collect();
        let about = About {
            scope: name.as_str(),
            unit: unit.to_string(),
            rule: &rule,
            mode,
            steward: self.node.as_str(),
            pace: self.placement.pace(),
            moves: self.placement.moves(),
            regions: &regions,
            now: self.placement.now(),
        };
        if mode != Mode::Follow {
            return Ok(Response::new(unmoved(&about)));
        }
        let bytes = match self.placement.size(&name) {
            Some(bytes) => bytes,
            None => {
                let (reader, record) = (published.clone(), record.clone());
                let counted = tokio::task::spawn_blocking(move || scope_bytes(&reader, &record));
                let bytes = counted.await.map_err(|_| stopping())?.map_err(unreadable)?;
                self.placement.sized(&name, bytes);
                bytes
            }
        };
        let why = self.placement.explain(&unit, &published.records, bytes);
        let answer = match why {
            Some((why, ages, round_trips)) => explained(&about, &why, &ages, &round_trips),
            None => unmoved(&about),
        };
        Ok(Response::new(answer))
    }

    async fn list_placement_events(
        &self,
        request: Request<v1::ListPlacementEventsRequest>,
    ) -> Result<Response<v1::ListPlacementEventsResponse>, Status> {
        let (_, v1::ListPlacementEventsRequest { after }) = Call::of(request)?;
        Ok(Response::new(v1::ListPlacementEventsResponse { events: self.placement.events(after) }))
    }
}

impl Inner {
    fn no_steward(&self, serving: &[RegionName]) -> Problem {
        let names: Vec<&str> = serving.iter().map(RegionName::as_str).collect();
        let message = format!("the scope's steward is in {}, and no node there is heard", names.join(", "));
        Problem::unavailable(Reason::NotServedHere, std::time::Duration::from_secs(1), message)
            .with("regions", names.join(","))
    }
}
