//! Requests in flight: claimed, and handed to the engine or an endpoint.
//!
//! Every row has a subtask in the engine; the remaining room goes to rows in the order in which they were
//! claimed. Of a row with many subtasks a part comes with the claim; the next part is asked for when all of
//! it was handed over.
//!
//! Invariant: a row takes no more memory than the bytes in which the server describes it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Sender;
use steadytext_engine::remote_job::{
    self, JobFailure, JobRefusal, PreparedRow, RemoteJob, Report, WantedModel,
};
use steadytext_engine::{
    Engine, Error, Event, EventKind, ModelSource, Output, Reply, Request, Standing, Ticket, Work, hex,
};

use crate::endpoints::{Endpoint, EndpointEvent, EndpointEventKind, EndpointJob};
use crate::protocol::HeldRow;

/// Subtasks that the engine has, of a database, and those that endpoints have.
const MAX_SUBTASKS: usize = 512;

/// The computing side of a row: the engine or an endpoint.
#[derive(Debug, Clone)]
pub(crate) enum Computer {
    /// The engine, with this model.
    Engine(ModelSource),
    /// An endpoint.
    Endpoint(Arc<Endpoint>),
}

/// A row that is worked on.
struct RowInFlight {
    held: HeldRow,
    model: WantedModel,
    computer: Computer,
    standing: Standing,
    salt: u64,
    /// Outputs of the stages before.
    before: Vec<Output>,
    /// Work that is here and was not handed over yet.
    works: VecDeque<Work>,
    /// Number of all subtasks, and of those that were handed over.
    count: usize,
    next: usize,
    under_way: usize,
    outputs: BTreeMap<usize, Output>,
    end: Option<RowEnd>,
    ticket: Ticket,
    has_begun: bool,
    since: Instant,
    prompt_tokens: Option<u64>,
    cached_tokens: Option<u64>,
    first_token_ms: Option<u64>,
}

/// The reason why no more is done for a row.
enum RowEnd {
    /// The engine, or the model, is why.
    Failed(JobFailure),
    /// The server made no work of it, or an endpoint nothing of that.
    Refused(JobRefusal),
    /// The endpoint takes nothing now.
    NotNow,
}

/// The circumstances under which a row goes on, where there is another stage.
pub(crate) struct Again {
    computer: Computer,
    standing: Standing,
    salt: u64,
}

/// A row for which there is nothing more to be done.
pub(crate) struct EndedRow {
    pub(crate) held: HeldRow,
    pub(crate) outcome: RowOutcome,
    pub(crate) again: Again,
    /// The model, where its file is no good.
    pub(crate) spoiled: Option<SpoiledModel>,
}

/// The outcome of a row.
pub(crate) enum RowOutcome {
    /// The outputs of an engine, which may be errors.
    Report(Report),
    /// The request has no answer, and this is why.
    Refused(JobRefusal),
    /// No outcome: the row is given back.
    NotNow,
}

/// A model that is not to be served with the file that it has.
pub(crate) struct SpoiledModel {
    pub(crate) name: String,
    pub(crate) source: ModelSource,
    pub(crate) reason: String,
}

/// A request for more of the work of a row.
pub(crate) struct WorkRequest {
    order: u64,
    pub(crate) held: HeldRow,
    /// Number of the first subtask that it wants.
    pub(crate) first: usize,
    /// A report with the outputs of the stages before, if there are any.
    pub(crate) report: Option<Vec<u8>>,
}

impl RowInFlight {
    /// Cancels what is left of its work.
    fn stop(&self) {
        self.ticket.cancel();
        if let Computer::Endpoint(endpoint) = &self.computer {
            endpoint.look_after_cancelled();
        }
    }

    /// The first reason tells why; the other subtasks are cancelled, and that is no reason.
    fn fail(&mut self, end: RowEnd) {
        if self.end.is_none() {
            self.end = Some(end);
            self.stop();
        }
    }
}

/// The rows in flight.
#[derive(Default)]
pub(crate) struct RowsInFlight {
    /// The rows in the order of their claims.
    rows: BTreeMap<u64, RowInFlight>,
    /// The row and the number of a subtask, by the key of its events.
    subtasks: HashMap<u64, (u64, usize)>,
    /// Number of the rows that endpoints have.
    at_endpoints: usize,
    /// Neither number is ever used twice, so that late events are nobody's.
    last_key: u64,
    last_order: u64,
}

impl RowsInFlight {
    /// The number of rows.
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// The rows that are held.
    pub(crate) fn held(&self) -> Vec<HeldRow> {
        let mut held: Vec<HeldRow> = self.rows.values().map(|row| row.held).collect();
        held.sort_unstable();
        held
    }

    /// Adds a row.
    pub(crate) fn add(
        &mut self,
        held: HeldRow,
        job: RemoteJob,
        computer: Computer,
        standing: Standing,
        salt: u64,
    ) {
        let RemoteJob { model, count, works } = job;
        self.last_order += 1;
        let row = RowInFlight {
            held,
            model,
            computer,
            standing,
            salt,
            before: Vec::new(),
            outputs: BTreeMap::new(),
            // More than are said to be there are none of it.
            works: works.into_iter().take(count).collect(),
            count,
            next: 0,
            under_way: 0,
            end: None,
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
    pub(crate) fn go_on(&mut self, held: HeldRow, job: RemoteJob, again: Again, report: Report) {
        self.add(held, job, again.computer, again.standing, again.salt);
        if let Some(row) = self.rows.get_mut(&self.last_order) {
            row.has_begun = true;
            row.before = report.outputs.unwrap_or_default();
            row.prompt_tokens = report.prompt_tokens;
            row.cached_tokens = report.cached_tokens;
            row.first_token_ms = report.first_token_ms;
        }
    }

    /// Hands subtasks over, to the engine and to endpoints.
    pub(crate) fn hand_over(
        &mut self,
        engine: &Arc<Engine>,
        events: &Sender<Event>,
        endpoint_events: &Sender<EndpointEvent>,
    ) {
        let mut calls: Vec<(Arc<Endpoint>, Vec<EndpointJob>)> = Vec::new();
        // First one of each row, then what there is room for.
        for most in [1, usize::MAX] {
            for (order, row) in &mut self.rows {
                loop {
                    let held = match row.computer {
                        Computer::Engine(_) => self.subtasks.len() - self.at_endpoints,
                        Computer::Endpoint(_) => self.at_endpoints,
                    };
                    let has_room = if most == 1 { row.under_way == 0 } else { held < MAX_SUBTASKS };
                    if row.end.is_some() || !has_room {
                        break;
                    }
                    let Some(work) = row.works.pop_front() else { break };
                    let index = row.next;
                    row.next += 1;
                    row.under_way += 1;
                    self.last_key += 1;
                    let key = self.last_key;
                    self.subtasks.insert(key, (*order, index));
                    match &row.computer {
                        Computer::Endpoint(endpoint) => {
                            self.at_endpoints += 1;
                            let job = EndpointJob {
                                key,
                                work,
                                ticket: row.ticket.clone(),
                                to: endpoint_events.clone(),
                            };
                            match calls.iter_mut().find(|(known, _)| Arc::ptr_eq(known, endpoint)) {
                                Some((_, jobs)) => jobs.push(job),
                                None => calls.push((Arc::clone(endpoint), vec![job])),
                            }
                        }
                        Computer::Engine(source) => {
                            let (model, salt) = (source.clone(), row.salt);
                            let request = Request { key, model, salt, dedup_key: None, work };
                            #[cfg(feature = "noop-engine")]
                            crate::noop::answer(&request, events);
                            #[cfg(not(feature = "noop-engine"))]
                            engine.submit_as(
                                request,
                                row.standing,
                                Reply::new(events.clone()),
                                row.ticket.clone(),
                            );
                        }
                    }
                }
            }
        }
        // All at once, so that those that go into one call find each other.
        calls.into_iter().for_each(|(endpoint, jobs)| endpoint.submit(jobs));
    }

    /// The number of rows that an endpoint has.
    pub(crate) fn count_at(&self, endpoint: &Arc<Endpoint>) -> usize {
        let is_there = |row: &&RowInFlight| matches!(&row.computer, Computer::Endpoint(known) if Arc::ptr_eq(known, endpoint));
        self.rows.values().filter(is_there).count()
    }

    /// A row of which everything that is here was handed over, and not all is here.
    pub(crate) fn work_request(&self) -> Option<WorkRequest> {
        let wants = |row: &RowInFlight| row.end.is_none() && row.works.is_empty() && row.next < row.count;
        let (order, row) = self.rows.iter().find(|(_, row)| wants(row))?;
        let before = || Report {
            outputs: Ok(row.before.clone()),
            prompt_tokens: None,
            cached_tokens: None,
            first_token_ms: None,
            endpoint: None,
        };
        let report = (!row.before.is_empty()).then(|| remote_job::encode(&before()).unwrap_or_default());
        Some(WorkRequest { order: *order, held: row.held, first: row.next, report })
    }

    /// Takes in the answer to a request for work. Returns the row if it has ended.
    pub(crate) fn receive(&mut self, request: &WorkRequest, prepared: PreparedRow) -> Option<EndedRow> {
        let row = self.rows.get_mut(&request.order)?;
        match prepared {
            PreparedRow::Job(job)
                if job.count == row.count
                    && (1..=row.count - row.next).contains(&job.works.len())
                    && job.model == row.model =>
            {
                row.works.extend(job.works);
                return None;
            }
            // Somebody has changed what the model is meanwhile, or the server speaks nonsense.
            PreparedRow::Job(_) => {
                row.end.get_or_insert(RowEnd::Refused(JobRefusal {
                    message: "the work of the request has changed while it was done".to_owned(),
                    code: "55000".to_owned(),
                    retry: true,
                }));
            }
            PreparedRow::Refused(refusal) => {
                row.end.get_or_insert(RowEnd::Refused(refusal));
            }
        }
        row.stop();
        self.end(request.order)
    }

    /// Takes note of an event; the row if it has ended.
    pub(crate) fn take(&mut self, event: Event) -> Option<EndedRow> {
        let (order, index) = *self.subtasks.get(&event.key)?;
        let row = self.rows.get_mut(&order)?;
        match event.kind {
            EventKind::Loading | EventKind::Progress { .. } => return None,
            EventKind::Started { prompt_tokens, model } => {
                row.has_begun = true;
                row.prompt_tokens = Some(row.prompt_tokens.unwrap_or(0).saturating_add(prompt_tokens as u64));
                let is_other =
                    |wanted: Option<[u8; 32]>, is: &[u8; 32]| wanted.is_some_and(|sha256| sha256 != *is);
                let name = &row.model.name;
                let other = if is_other(row.model.sha256, &model.own_hash) {
                    Some(format!(
                        "the file of model \"{name}\" on the worker's machine is not the server's: its SHA-256 is {}",
                        hex(&model.own_hash)
                    ))
                } else if is_other(row.model.with_adapters, &model.hash) {
                    Some(format!(
                        "the adapters beside model \"{name}\" on the worker's machine are not the server's: together with its file their SHA-256 is {}",
                        hex(&model.hash)
                    ))
                } else {
                    None
                };
                if let Some(reason) = other.filter(|_| row.end.is_none()) {
                    row.end = Some(RowEnd::Failed(of_model(reason)));
                    row.stop();
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
                row.outputs.entry(index).or_insert(output);
            }
            EventKind::Failed(error) => {
                row.fail(RowEnd::Failed(if is_of_the_file(&error) {
                    of_model(format!("model \"{}\" on the worker's machine: {error}", row.model.name))
                } else {
                    JobFailure::Failed { subtask: index, error }
                }));
            }
        }
        self.subtasks.remove(&event.key);
        row.under_way -= 1;
        self.end(order)
    }

    /// Takes note of what an endpoint says; the row if it has ended.
    pub(crate) fn take_endpoint_event(&mut self, event: EndpointEvent) -> Option<EndedRow> {
        let (order, index) = *self.subtasks.get(&event.key)?;
        let row = self.rows.get_mut(&order)?;
        match event.kind {
            EndpointEventKind::Began => {
                row.has_begun = true;
                return None;
            }
            EndpointEventKind::Done { output, prompt_tokens, cached_tokens } => {
                let add = |sum: &mut Option<u64>, more: Option<u32>| {
                    if let Some(more) = more {
                        *sum = Some(sum.unwrap_or(0).saturating_add(u64::from(more)));
                    }
                };
                add(&mut row.prompt_tokens, prompt_tokens);
                add(&mut row.cached_tokens, cached_tokens);
                row.outputs.entry(index).or_insert(output);
            }
            EndpointEventKind::Failed(error) => {
                row.fail(RowEnd::Failed(JobFailure::Failed { subtask: index, error }))
            }
            EndpointEventKind::Refused(refusal) => row.fail(RowEnd::Refused(refusal)),
            EndpointEventKind::NotNow => row.fail(RowEnd::NotNow),
        }
        self.subtasks.remove(&event.key);
        self.at_endpoints -= 1;
        row.under_way -= 1;
        self.end(order)
    }

    /// Takes a row out if nothing more is to be done for it.
    fn end(&mut self, order: u64) -> Option<EndedRow> {
        let row = self.rows.get(&order)?;
        if row.under_way > 0 || (row.end.is_none() && row.outputs.len() < row.count) {
            return None;
        }
        let row = self.rows.remove(&order)?;
        let mut spoiled = None;
        if let (Some(RowEnd::Failed(JobFailure::Model(refusal))), Computer::Engine(source)) =
            (&row.end, &row.computer)
        {
            let (name, reason) = (row.model.name.clone(), refusal.message.clone());
            spoiled = Some(SpoiledModel { name, source: source.clone(), reason });
        }
        let endpoint = match &row.computer {
            Computer::Engine(_) => None,
            Computer::Endpoint(endpoint) => Some(endpoint.address().to_owned()),
        };
        let report = |outputs| {
            RowOutcome::Report(Report {
                outputs,
                prompt_tokens: row.prompt_tokens,
                cached_tokens: row.cached_tokens,
                first_token_ms: row.first_token_ms,
                endpoint,
            })
        };
        let outcome = match row.end {
            None => report(Ok(row.before.into_iter().chain(row.outputs.into_values()).collect())),
            Some(RowEnd::Failed(failure)) => report(Err(failure)),
            Some(RowEnd::Refused(refusal)) => RowOutcome::Refused(refusal),
            Some(RowEnd::NotNow) => RowOutcome::NotNow,
        };
        let again = Again { computer: row.computer, standing: row.standing, salt: row.salt };
        Some(EndedRow { held: row.held, outcome, again, spoiled })
    }

    /// Stops work on rows; how many there were.
    pub(crate) fn abandon(&mut self, lost: &[HeldRow]) -> usize {
        let before = self.rows.len();
        let rows = std::mem::take(&mut self.rows);
        let (gone, kept): (BTreeMap<_, _>, _) =
            rows.into_iter().partition(|(_, row)| lost.contains(&row.held));
        self.rows = kept;
        gone.values().for_each(RowInFlight::stop);
        let at_endpoints = &mut self.at_endpoints;
        self.subtasks.retain(|_, (order, _)| match gone.get(order) {
            None => true,
            Some(row) => {
                *at_endpoints -= usize::from(matches!(row.computer, Computer::Endpoint(_)));
                false
            }
        });
        before - self.rows.len()
    }

    /// The rows of which nothing is computed yet.
    pub(crate) fn not_begun(&self) -> Vec<HeldRow> {
        self.rows.values().filter(|row| !row.has_begun).map(|row| row.held).collect()
    }
}

/// Whether an engine has ended under a request.
pub(crate) fn is_of_the_engine(report: &Report) -> bool {
    matches!(&report.outputs, Err(JobFailure::Failed { error: Error::Stopped, .. }))
}

/// Whether an error is about this machine's file of a model, so that another machine may do better.
fn is_of_the_file(error: &Error) -> bool {
    matches!(
        error,
        Error::ModelFile { .. }
            | Error::CorruptModel { .. }
            | Error::UnsupportedModel { .. }
            | Error::Template { .. }
    )
}

fn of_model(message: String) -> JobFailure {
    JobFailure::Model(JobRefusal { message, code: "58030".to_owned(), retry: true })
}
