//! The choice of what is claimed: which models, of which types, for the engine and for each endpoint.

use std::sync::Arc;
use std::time::Instant;

use super::{ClaimedSet, DatabaseThread};
use crate::log::Severity;
use crate::protocol::ClaimFilter;

impl DatabaseThread<'_> {
    /// Chooses what is claimed: the models of this machine for the engine, and for each endpoint its own,
    /// with the types that it can answer. Says what is asked for and not there.
    pub(super) fn choose_sets(&mut self) {
        let shared = self.shared;
        let types = shared.options.types.as_deref();
        let names = self.models.names(&self.registered, &shared.endpoints);
        let mut complaints: Vec<String> = Vec::new();
        for missing in self.models.missing(&names, &shared.endpoints) {
            complaints.push(format!(
                "model \"{missing}\" of --models is answered by no file and no endpoint of this machine"
            ));
        }
        let mut sets = Vec::with_capacity(1 + shared.endpoints.len());
        for endpoint in shared.endpoints.iter().filter(|endpoint| self.models.is_chosen(endpoint.name())) {
            let name = endpoint.name();
            let row = self.registered.iter().find(|model| model.name.eq_ignore_ascii_case(name));
            match row {
                // Bytes that are promised come from the file that has them.
                Some(row) if row.is_elsewhere && !row.has_sha256 => {}
                Some(row) if row.is_elsewhere => {
                    complaints.push(format!(
                        "model \"{name}\" has a sha256 in steadytext_models, which no endpoint can vouch for: it is left to others"
                    ));
                    continue;
                }
                _ => {
                    complaints.push(format!(
                        "model \"{name}\" of the endpoints has no row in steadytext_models with placement = 'elsewhere': it is left to others"
                    ));
                    continue;
                }
            }
            let can = endpoint.types().iter().copied();
            let of_set = can.filter(|can| types.is_none_or(|types| types.iter().any(|wanted| wanted == can)));
            let of_set: Vec<String> = of_set.map(str::to_owned).collect();
            if !of_set.is_empty() {
                let (models, types) = (vec![name.to_owned()], Some(of_set));
                sets.push(ClaimedSet {
                    models,
                    types,
                    endpoint: Some(Arc::clone(endpoint)),
                    is_claimed_out: false,
                });
            }
        }
        if !names.is_empty() {
            let types = types.map(<[String]>::to_vec);
            sets.push(ClaimedSet { models: names, types, endpoint: None, is_claimed_out: false });
        }
        if sets.is_empty() {
            complaints.push("there is no model on this machine that could be served".to_owned());
        }
        let claims =
            sets.iter().map(|set| ClaimFilter::new(&set.models, set.types.as_deref())).collect::<Vec<_>>();
        if claims != self.claims {
            self.claims = claims;
            // The next heartbeat is due now: the server tells by it which requests nobody claims.
            self.heartbeat_at = Instant::now();
        }
        self.sets = sets;
        if complaints != self.complaints {
            let level = if self.sets.is_empty() { Severity::Error } else { Severity::Warning };
            complaints.iter().for_each(|complaint| self.say(level, complaint));
            self.complaints = complaints;
        }
    }
}
