//! Rows of the queue that this worker has claimed: their contents, and their outcomes.

use std::rc::Rc;
use std::time::Duration;

use pgrx::{PgSqlErrorCode, pg_sys};
use serde_json::Value as Json;
use uuid::Uuid;

use crate::pg::catalog_cache::{DatabaseConfig, ModelRegistry};
use crate::pg::error::{PgError, RequestFailure};
use crate::pg::spi::Row;
use crate::request::params::{self, Unused};
use crate::request::{Answer, RequestMetrics, Usage, batch_checks};

/// A row that this worker has claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct HeldRequest {
    /// steadytext_queue.id.
    pub(super) id: i64,
    /// The attempt that fences it.
    pub(super) attempt: i32,
}

/// A claimed request.
pub(super) struct ClaimedRequest {
    /// The row, and the attempt that fences what is written to it.
    pub(super) held: HeldRequest,
    /// Its public id.
    pub(super) request_id: Uuid,
    /// `generate`, `embed`, …
    pub(super) request_type: String,
    /// The content of the request; an error where that cannot be read, or is too much.
    pub(super) content: Result<RequestContent, PgError>,
    /// The role that the request belongs to.
    pub(super) owner: pg_sys::Oid,
    /// The priority, from 1 to 10; the highest goes first.
    pub(super) priority: u8,
    /// Length of its texts and parameters.
    pub(super) bytes: usize,
    /// Time that it has been in the queue.
    pub(super) waited: Duration,
}

impl ClaimedRequest {
    /// The figures of the request. The time in the queue is that of its first attempt.
    pub(super) fn metrics(&self, model: Option<&str>) -> RequestMetrics {
        let is_new = self.held.attempt <= 1;
        let waited = if is_new { self.waited } else { Duration::ZERO };
        RequestMetrics::begin(&self.request_type, model, is_new).of_queue(self.request_id, waited)
    }
}

/// The content of a request.
pub(super) struct RequestContent {
    /// The text.
    pub(super) prompt: Option<String>,
    /// The texts of a request of many subtasks.
    pub(super) prompts: Option<Vec<Option<String>>>,
    /// The parameters.
    pub(super) params: Json,
}

/// The result of a claim.
pub(super) struct Claims {
    /// The requests; none while paused.
    pub(super) requests: Vec<ClaimedRequest>,
    /// The configuration at that moment.
    pub(super) config: Rc<DatabaseConfig>,
    /// The registry at that moment.
    pub(super) models: Rc<ModelRegistry>,
}

impl RequestContent {
    /// Reads the content of a claimed row, with the columns in the order of [`super::protocol::claim`].
    /// Lengths and counts are looked at before anything is fetched or copied: owners of the table can store
    /// anything, and rows come from dumps.
    pub(super) fn read(
        row: &Row,
        request_type: &str,
        config: &DatabaseConfig,
    ) -> Result<RequestContent, PgError> {
        const PROMPT: i32 = 5;
        const PARAMS: i32 = 6;
        const PROMPTS: i32 = 8;
        params::check_bytes(request_type, row.bytes(PARAMS), config)?;
        batch_checks::check_stored(row.bytes(PROMPTS), config)?;
        let most = usize::try_from(config.max_batch_size).unwrap_or(usize::MAX);
        let prompts = match row.texts(PROMPTS, most) {
            Ok(prompts) => prompts,
            Err(count) => {
                batch_checks::check_count(count, batch_checks::name_of_prompts(request_type), config)?;
                None
            }
        };
        let params = params::read(request_type, row.get(PARAMS), Unused::Skipped, config)?;
        Ok(RequestContent { prompt: row.get(PROMPT), prompts, params })
    }
}

/// The outcome of a request.
#[derive(Debug, Clone)]
pub(super) enum Verdict {
    /// The request has an answer, which took so much.
    Answered(Answer, Usage),
    /// The request has failed, and has no result.
    Failed(RequestFailure),
}

impl Verdict {
    /// About how many bytes it takes.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Verdict::Answered(answer, _) => answer.bytes(),
            Verdict::Failed(failure) => failure.error.message.len(),
        }
    }
}

/// A result that waits to be stored.
#[derive(Debug, Clone)]
pub(super) struct Outcome {
    /// The row.
    pub(super) held: HeldRequest,
    /// The role that the request belongs to.
    pub(super) owner: pg_sys::Oid,
    /// The outcome itself.
    pub(super) verdict: Verdict,
    /// The figures that are counted when that is stored.
    pub(super) metrics: Option<RequestMetrics>,
}

/// A request that never reached the engine.
pub(super) fn refused(held: HeldRequest, owner: pg_sys::Oid, error: PgError, retry: bool) -> Outcome {
    Outcome { held, owner, verdict: Verdict::Failed(RequestFailure { error, retry }), metrics: None }
}

impl Outcome {
    /// Counts it, as it is stored: ended, or to be tried again.
    pub(super) fn count(&self, is_retried: bool) {
        let Some(metrics) = &self.metrics else { return };
        match &self.verdict {
            Verdict::Answered(_, usage) => metrics.completed(usage),
            Verdict::Failed(RequestFailure { error, .. }) if is_retried => metrics.retried(error),
            Verdict::Failed(RequestFailure { error, .. }) => metrics.failed(error),
        }
    }

    /// Counts it where the table has refused what was to be stored, so that the request has failed.
    pub(super) fn count_refused(&self) {
        if let Some(metrics) = &self.metrics {
            metrics.failed(&PgError::new(
                PgSqlErrorCode::ERRCODE_TRIGGERED_ACTION_EXCEPTION,
                "the table refused it",
            ));
        }
    }

    /// Counts that its row is somebody else's by now, or was cancelled.
    pub(super) fn count_lost(&self) {
        if let Some(metrics) = &self.metrics {
            metrics.cancelled();
        }
    }
}
