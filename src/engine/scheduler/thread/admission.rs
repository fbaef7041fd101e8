//! Which of the waiting requests begin, and when.

use super::{EngineThread, Waiting, in_use, takes_long};
use crate::panic::catch;
use crate::scheduler::models::Missing;
use crate::scheduler::running::{Plan, Running};
use crate::{Error, EventKind, ModelSource};

impl EngineThread {
    /// Admits what fits.
    pub(super) fn admit_all(&mut self) {
        self.plan_ahead();
        // Models whose requests have to wait; those of the others go on.
        let mut coming: Vec<ModelSource> = Vec::new();
        // Requests that need keys and values wait in their order; texts on encoders need none.
        let mut blocked = false;
        // Requests that are tokenized or compiled on other threads are overtaken, but no more of these than may run.
        let mut planning = 0;
        let mut index = 0;
        while !self.stopping() {
            let Some(source) = self.waiting.get(index).map(|waiting| &waiting.submission.request.model)
            else {
                break;
            };
            let full = blocked || self.running.len() >= self.max_running;
            if coming.contains(source) || (full && !self.models.is_encoder(source)) {
                index += 1;
                continue;
            }
            let Some(next) = self.waiting.remove(index) else { break };
            match self.try_admit(next) {
                Some(later) => {
                    let source = later.submission.request.model.clone();
                    let is_planned = later.planning.is_some();
                    planning += usize::from(is_planned);
                    self.waiting.insert(index, later);
                    if is_planned && planning <= self.max_running {
                        index += 1;
                    } else if is_planned || self.models.is_coming(&source) || self.models.is_encoder(&source)
                    {
                        coming.push(source);
                    } else {
                        blocked = true;
                    }
                }
                None => {}
            }
        }
    }

    /// Begins a request or fails it; returns it where it has to wait. A panic is that request's.
    fn try_admit(&mut self, waiting: Waiting) -> Option<Waiting> {
        match catch(|| self.admit(waiting)) {
            Ok(later) => later,
            Err(_) => {
                // The request was told when it was dropped, and its place in the queue is free again.
                self.shared.statistics.panicked();
                None
            }
        }
    }

    /// Has long texts tokenized and constraints compiled on other threads before it is their turn.
    fn plan_ahead(&mut self) {
        let mut ahead = 0;
        for waiting in &mut self.waiting {
            let request = &waiting.submission.request;
            if !self.models.has(&request.model) {
                continue;
            }
            ahead += 1;
            if ahead > self.max_running {
                break;
            }
            if waiting.plan.is_none() && waiting.planning.is_none() && takes_long(&request.work) {
                let Some(texts) = self.models.texts(&request.model) else { continue };
                self.planned += 1;
                waiting.planning = Some(self.planned);
                self.helpers.plan(self.planned, request.work.clone(), texts);
            }
        }
    }

    /// Begins a request or fails it; returns it where it has to wait.
    fn admit(&mut self, mut waiting: Waiting) -> Option<Waiting> {
        self.fault("admit");
        let own: u64 = self.running.iter().map(Running::own_bytes).sum();
        let reserved = own + self.models.held_bytes();
        let source = waiting.submission.request.model.clone();
        let (running, encodings) = (&self.running, &self.encodings);
        if !self.models.renew(&source, &|source| in_use(running, encodings, source)) {
            return Some(waiting);
        }
        if !self.models.has(&source) {
            // What was tokenized for it belongs to a model that is gone.
            let same = self.waiting.iter_mut().filter(|other| other.submission.request.model == source);
            for waiting in same.chain([&mut waiting]) {
                (waiting.plan, waiting.planning) = (None, None);
            }
            if matches!(source, ModelSource::File(_)) && !waiting.told_loading {
                waiting.told_loading = true;
                waiting.submission.send(EventKind::Loading);
            }
        }
        let mut plan = match self.plan(&mut waiting, &source, reserved) {
            Ok(planned) => planned,
            Err(Missing::NoRoom | Missing::Coming) => return Some(waiting),
            Err(Missing::Failed(error)) => {
                waiting.submission.fail(error);
                return None;
            }
        };
        if let Some(output) = plan.take_output() {
            waiting.submission.send(EventKind::Started {
                prompt_tokens: plan.prompt_tokens(),
                model: self.models.identity(&source),
            });
            waiting.submission.send(EventKind::Done(output));
            return None;
        }
        if self.models.is_encoder(&source) {
            if self.encodings.is_full() {
                waiting.plan = Some(plan);
                return Some(waiting);
            }
            self.encodings.add(waiting.submission, plan, self.models.identity(&source));
            return None;
        }
        let Some(loaded) = self.models.get(&source) else { return Some(waiting) };
        let beginning = plan.begin(&waiting.submission.request, loaded, self.prefix_reuse);
        let (new, whole) = (beginning.own_bytes(), loaded.model.cache_shape().bytes(plan.positions));
        // Kept blocks that nobody holds make room; those that the request itself has found are held now.
        let most = self.kv_budget.min(self.models.room(0));
        let held = self.models.held_bytes();
        if own.saturating_add(held).saturating_add(new) > most {
            // What does not fit beside nothing never will.
            if whole <= most && reserved > 0 {
                waiting.plan = Some(plan);
                return Some(waiting);
            }
            waiting.submission.fail(Error::OutOfMemory {
                what: format!("the key-value cache for {} tokens", plan.positions),
                needed_mb: whole.div_ceil(1 << 20),
                limit_mb: Some(most >> 20),
            });
            return None;
        }
        self.models.trim_prefixes(most - own - new);
        self.shared.statistics.reused(beginning.reused());
        let identity = self.models.identity(&source);
        if let Some(loaded) = self.models.get(&source) {
            self.running.push(Running::new(waiting.submission, plan, beginning, loaded, identity));
        }
        None
    }

    /// Loads the model and tokenizes the request, unless that is done already.
    fn plan(&mut self, waiting: &mut Waiting, source: &ModelSource, reserved: u64) -> Result<Plan, Missing> {
        let (running, encodings, models, helpers) =
            (&self.running, &self.encodings, &mut self.models, &self.helpers);
        let number = self.planned + 1;
        let planned = catch(|| {
            models.load(source, &|source| in_use(running, encodings, source), reserved)?;
            if waiting.planning.is_some() {
                return Err(Missing::Coming);
            }
            match waiting.plan.take() {
                Some(plan) => Ok(plan),
                None if takes_long(&waiting.submission.request.work) => {
                    let texts = models.texts(source).ok_or(Missing::NoRoom)?;
                    waiting.planning = Some(number);
                    helpers.plan(number, waiting.submission.request.work.clone(), texts);
                    Err(Missing::Coming)
                }
                None => {
                    let texts = models.texts(source).ok_or(Missing::NoRoom)?;
                    texts.plan(&waiting.submission.request.work).map_err(Missing::Failed)
                }
            }
        });
        self.planned = number;
        planned.map_err(Missing::Failed)?
    }
}
