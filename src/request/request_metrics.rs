//! A request as the figures and the log count it, from its beginning to its end.

use std::time::{Duration, Instant};

use uuid::Uuid;

use super::Usage;
use crate::pg::error::PgError;
use crate::pg::request_log;
use crate::pg::request_statistics::{self, CountedRequest};

/// Most characters of a name that are kept.
const MAX_NAME_CHARS: usize = 128;

/// A request that was counted and has not ended, or just has.
#[derive(Debug, Clone)]
pub(crate) struct RequestMetrics {
    request_type: String,
    /// Empty where none is known.
    model: String,
    request_id: Option<Uuid>,
    /// Time that it had waited in the queue.
    waited: Duration,
    since: Instant,
    /// Time from `since` to its end.
    took: Option<Duration>,
    is_cached: bool,
}

impl RequestMetrics {
    /// A request whose work begins now. It is counted, unless this is another attempt at one that was.
    pub(crate) fn begin(request_type: &str, model: Option<&str>, is_new: bool) -> RequestMetrics {
        let metrics = RequestMetrics {
            request_type: cut(request_type),
            model: model.map_or_else(String::new, label),
            request_id: None,
            waited: Duration::ZERO,
            since: Instant::now(),
            took: None,
            is_cached: false,
        };
        if is_new {
            metrics.count(CountedRequest { requests: 1, ..CountedRequest::default() });
        }
        metrics
    }

    /// Adds a request's id in the queue, and how long it has waited there.
    pub(crate) fn of_queue(mut self, request_id: Uuid, waited: Duration) -> RequestMetrics {
        (self.request_id, self.waited) = (Some(request_id), waited);
        self
    }

    /// Changes the model that answers the request.
    pub(crate) fn name_model(&mut self, model: &str) {
        self.model = label(model);
    }

    /// The cache has answered it.
    pub(crate) fn found(&mut self) {
        self.is_cached = true;
    }

    /// Stops the clock, as what follows takes no time of its own.
    pub(crate) fn stop(&mut self) {
        self.took.get_or_insert_with(|| self.since.elapsed());
    }

    /// Counts its answer.
    pub(crate) fn completed(&self, usage: &Usage) {
        if self.is_cached {
            self.count(CountedRequest { completed: 1, cache_hits: 1, ..CountedRequest::default() });
            return self.log("completed", Some(usage));
        }
        let [begun, first_token] = [usage.begun, usage.first_token].map(|time| Some(time? + self.waited));
        let times = [begun, first_token, Some(self.took() + self.waited)];
        self.count(CountedRequest { completed: 1, times, ..tokens(usage) });
        self.log("completed", Some(usage));
    }

    /// Counts its error.
    pub(crate) fn failed(&self, error: &PgError) {
        self.count(CountedRequest { failed: 1, ..CountedRequest::default() });
        self.log(&format!("failed ({})", error.sqlstate()), None);
    }

    /// Counts an error after which it is tried again.
    pub(crate) fn retried(&self, error: &PgError) {
        self.count(CountedRequest { retried: 1, ..CountedRequest::default() });
        self.log(&format!("failed and is tried again ({})", error.sqlstate()), None);
    }

    /// Counts that nobody wants its answer any more.
    pub(crate) fn cancelled(&self) {
        self.count(CountedRequest { cancelled: 1, ..CountedRequest::default() });
        self.log("was cancelled", None);
    }

    fn took(&self) -> Duration {
        self.took.unwrap_or_else(|| self.since.elapsed())
    }

    fn count(&self, counted: CountedRequest) {
        request_statistics::count(&self.model, &self.request_type, &counted);
    }

    fn log(&self, outcome: &str, usage: Option<&Usage>) {
        use std::fmt::Write;
        let took = self.took();
        if !request_log::is_wanted(took) {
            return;
        }
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        let mut line = match self.request_id {
            Some(id) => format!("pg_steadytext request {id}"),
            None => "pg_steadytext call".to_owned(),
        };
        let model = if self.model.is_empty() { "no model" } else { &self.model };
        let _ = write!(line, " ({}, {model}) {outcome}: {:.3} ms", self.request_type, milliseconds(took));
        if self.request_id.is_some() {
            let _ = write!(line, ", {:.3} ms in the queue", milliseconds(self.waited));
        }
        if self.is_cached {
            line.push_str(", from the cache");
        } else if let Some(usage) = usage {
            for (time, what) in [(usage.begun, "to its beginning"), (usage.first_token, "to the first token")]
            {
                if let Some(time) = time {
                    let _ = write!(line, ", {:.3} ms {what}", milliseconds(time));
                }
            }
            let count = |tokens: Option<i32>| tokens.unwrap_or(0);
            let _ = write!(line, ", {} tokens of prompt", count(usage.prompt_tokens));
            if let Some(cached) = usage.cached_tokens {
                let _ = write!(line, " ({cached} cached)");
            }
            let _ = write!(line, ", {} generated", count(usage.generated_tokens));
        }
        request_log::write(&line);
    }
}

fn tokens(usage: &Usage) -> CountedRequest {
    let number = |tokens: Option<i32>| tokens.and_then(|tokens| u64::try_from(tokens).ok()).unwrap_or(0);
    CountedRequest {
        prompt_tokens: number(usage.prompt_tokens),
        cached_tokens: number(usage.cached_tokens),
        generated_tokens: number(usage.generated_tokens),
        known_cached: usage.cached_tokens.is_some().into(),
        ..CountedRequest::default()
    }
}

/// The name of a model as a label of metrics: without the directories of a path that a setting names.
fn label(model: &str) -> String {
    cut(model.rsplit('/').next().unwrap_or(model))
}

/// The beginning of a name: rows of a dump may say anything.
fn cut(name: &str) -> String {
    name.chars().take(MAX_NAME_CHARS).collect()
}
