//! Requests in flight: what was claimed and handed to the engine.
//!
//! Every row has a subtask in the engine; what room is left goes to rows in the order in which they were claimed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Sender;
use steadytext_engine::errand::{Errand, Refusal, Report, Trouble, WantedModel};
use steadytext_engine::{
    Engine, Error, Event, EventKind, ModelSource, Output, Reply, Request, Standing, Ticket, Work, hex,
};

use crate::protocol::Held;

/// Subtasks that the engine has, of a database.
const MAX_SUBTASKS: usize = 512;

/// A row that is worked on.
struct Row {
    held: Held,
    model: WantedModel,
    source: ModelSource,
    standing: Standing,
    salt: u64,
    /// Outputs of the stages before.
    before: Vec<Output>,
    /// Those that were not handed over.
    works: Vec<Option<Work>>,
    next: usize,
    under_way: usize,
    outputs: Vec<Option<Output>>,
    done: usize,
    trouble: Option<Trouble>,
    ticket: Ticket,
    has_begun: bool,
    since: Instant,
    prompt_tokens: Option<u64>,
    cached_tokens: Option<u64>,
    first_token_ms: Option<u64>,
}

/// How a row goes on, where there is another stage.
pub(crate) struct Again {
    source: ModelSource,
    standing: Standing,
    salt: u64,
}

/// A row whose last event has come.
pub(crate) struct Ended {
    pub(crate) held: Held,
    pub(crate) report: Report,
    pub(crate) again: Again,
    /// The model's name, where its file is not the one that is meant.
    pub(crate) spoiled: Option<String>,
}

/// All of them.
#[derive(Default)]
pub(crate) struct Flight {
    /// In the order of the claims.
    rows: BTreeMap<u64, Row>,
    /// By the engine's key.
    subtasks: HashMap<u64, (u64, usize)>,
    /// Neither is ever used twice, so that late events are nobody's.
    last_key: u64,
    last_order: u64,
}

impl Flight {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Those that are held.
    pub(crate) fn held(&self) -> Vec<Held> {
        let mut held: Vec<Held> = self.rows.values().map(|row| row.held).collect();
        held.sort_unstable();
        held
    }

    /// Adds a row.
    pub(crate) fn add(
        &mut self,
        held: Held,
        errand: Errand,
        source: ModelSource,
        standing: Standing,
        salt: u64,
    ) {
        let Errand { model, works } = errand;
        self.last_order += 1;
        let row = Row {
            held,
            model,
            source,
            standing,
            salt,
            before: Vec::new(),
            outputs: vec![None; works.len()],
            works: works.into_iter().map(Some).collect(),
            next: 0,
            under_way: 0,
            done: 0,
            trouble: None,
            ticket: Ticket::new(),
            has_begun: false,
            since: Instant::now(),
            prompt_tokens: None,
            cached_tokens: None,
            first_token_ms: None,
        };
        self.rows.insert(self.last_order, row);
    }

    /// Goes on with the next stage of a row, whose report up to now is this one.
    pub(crate) fn go_on(&mut self, held: Held, errand: Errand, again: Again, report: Report) {
        self.add(held, errand, again.source, again.standing, again.salt);
        if let Some(row) = self.rows.get_mut(&self.last_order) {
            row.has_begun = true;
            row.before = report.outputs.unwrap_or_default();
            row.prompt_tokens = report.prompt_tokens;
            row.cached_tokens = report.cached_tokens;
            row.first_token_ms = report.first_token_ms;
        }
    }

    /// Hands subtasks over.
    pub(crate) fn hand_over(&mut self, engine: &Arc<Engine>, events: &Sender<Event>) {
        // First one of each row, then what there is room for.
        for most in [1, usize::MAX] {
            for (order, row) in &mut self.rows {
                while row.trouble.is_none()
                    && row.next < row.works.len()
                    && (if most == 1 { row.under_way == 0 } else { self.subtasks.len() < MAX_SUBTASKS })
                {
                    let index = row.next;
                    row.next += 1;
                    let Some(work) = row.works.get_mut(index).and_then(Option::take) else { continue };
                    row.under_way += 1;
                    self.last_key += 1;
                    self.subtasks.insert(self.last_key, (*order, index));
                    let request = Request {
                        key: self.last_key,
                        model: row.source.clone(),
                        salt: row.salt,
                        dedup_key: None,
                        work,
                    };
                    let reply = Reply::new(events.clone());
                    engine.submit_as(request, row.standing, reply, row.ticket.clone());
                }
            }
        }
    }

    /// Takes note of an event; the row if it has ended.
    pub(crate) fn take(&mut self, event: Event) -> Option<Ended> {
        let (order, index) = *self.subtasks.get(&event.key)?;
        let row = self.rows.get_mut(&order)?;
        let mut spoiled = None;
        match event.kind {
            EventKind::Loading | EventKind::Progress { .. } => return None,
            EventKind::Started { prompt_tokens, model } => {
                row.has_begun = true;
                row.prompt_tokens = Some(row.prompt_tokens.unwrap_or(0).saturating_add(prompt_tokens as u64));
                if row.model.sha256.is_some_and(|sha256| sha256 != model.hash) && row.trouble.is_none() {
                    row.trouble = Some(Trouble::Model(Refusal {
                        message: format!(
                            "the file of model \"{}\" on the worker's machine is not the server's: its SHA-256 is {}",
                            row.model.name,
                            hex(&model.hash)
                        ),
                        code: "58030".to_owned(),
                        retry: true,
                    }));
                    row.ticket.cancel();
                }
                return None;
            }
            EventKind::FirstToken { cached_tokens } => {
                row.cached_tokens = Some(row.cached_tokens.unwrap_or(0).saturating_add(cached_tokens as u64));
                if row.first_token_ms.is_none() {
                    row.first_token_ms = u64::try_from(row.since.elapsed().as_millis()).ok();
                }
                return None;
            }
            EventKind::Done(output) => {
                if let Some(place @ None) = row.outputs.get_mut(index) {
                    *place = Some(output);
                    row.done += 1;
                }
            }
            EventKind::Failed(error) => {
                // The first one tells why; the others are cancelled, and that is no reason.
                if row.trouble.is_none() {
                    row.trouble = Some(Trouble::Failed { subtask: index, error });
                    row.ticket.cancel();
                }
            }
        }
        self.subtasks.remove(&event.key);
        row.under_way -= 1;
        let is_whole = row.done == row.outputs.len();
        if row.under_way > 0 || (row.trouble.is_none() && !is_whole) {
            return None;
        }
        let row = self.rows.remove(&order)?;
        if let Some(Trouble::Model(_)) = &row.trouble {
            spoiled = Some(row.model.name.clone());
        }
        let report = Report {
            outputs: match row.trouble {
                Some(trouble) => Err(trouble),
                None => Ok(row.before.into_iter().chain(row.outputs.into_iter().flatten()).collect()),
            },
            prompt_tokens: row.prompt_tokens,
            cached_tokens: row.cached_tokens,
            first_token_ms: row.first_token_ms,
        };
        let again = Again { source: row.source, standing: row.standing, salt: row.salt };
        Some(Ended { held: row.held, report, again, spoiled })
    }

    /// Stops work on rows; how many there were.
    pub(crate) fn abandon(&mut self, lost: &[Held]) -> usize {
        let before = self.rows.len();
        let rows = std::mem::take(&mut self.rows);
        let (gone, kept): (BTreeMap<_, _>, _) =
            rows.into_iter().partition(|(_, row)| lost.contains(&row.held));
        self.rows = kept;
        gone.values().for_each(|row| row.ticket.cancel());
        self.subtasks.retain(|_, (order, _)| !gone.contains_key(order));
        before - self.rows.len()
    }

    /// Those of which the engine has computed nothing yet.
    pub(crate) fn not_begun(&self) -> Vec<Held> {
        self.rows.values().filter(|row| !row.has_begun).map(|row| row.held).collect()
    }
}

/// Whether an engine has ended under a request.
pub(crate) fn is_of_the_engine(report: &Report) -> bool {
    matches!(&report.outputs, Err(Trouble::Failed { error: Error::Stopped, .. }))
}
