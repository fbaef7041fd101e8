//! The queue's protocol for engines on other machines: a row as work for an engine, and what became of that as an answer.
//!
//! Both are made here, with the code that serves the server's own worker. A worker elsewhere knows models and work and
//! nothing of parameters, so there is one place that says what a row means.
//!
//! Invariant: what comes back can be anything. It is read within bounds and compared with what was asked.

use pgrx::prelude::*;
use pgrx::{Array, name};
use serde_json::Value;
use steadytext_engine::errand::{self, Errand, Prepared, Refusal, Report, Trouble};

use crate::pg::catalog_cache;
use crate::pg::error::{Failure, OrRaise, PgError};
use crate::pg::jsonb::Jsonb;
use crate::registry::{Resolved, default_names};
use crate::request::params::{self, Unused};
use crate::request::{
    Answer, Asked, Ended, Stages, Subtasks, Usage, batch_checks, subtasks_elsewhere, unexpected,
};

/// The texts of a row.
type Texts<'a> = Option<Array<'a, &'a str>>;

/// A row of the queue as work for an engine of the same version.
#[pg_extern(volatile, parallel_unsafe)]
fn prepared_work(
    version: Option<&str>,
    request_type: Option<&str>,
    prompt: Option<&str>,
    prompts: Texts<'_>,
    params: Option<Jsonb<'_>>,
) -> Vec<u8> {
    check_version(version).or_raise();
    let prepared = match work(request_type.unwrap_or_default(), prompt, prompts, params) {
        Ok((subtasks, model)) => Prepared::Errand(errand_of(&subtasks, &model)),
        Err(error) => Prepared::Refused(Refusal {
            message: with_hint(&error),
            code: error.sqlstate(),
            retry: error.is_transient(),
        }),
    };
    errand::encode(&prepared).map_err(|error| Failure::from(error).error).or_raise()
}

/// What a worker says of a row that it has computed, in the form in which the protocol's other functions take it.
#[pg_extern(volatile, parallel_unsafe)]
#[allow(clippy::type_complexity, reason = "the columns of a table function")]
fn read_report(
    request_type: Option<&str>,
    prompt: Option<&str>,
    prompts: Texts<'_>,
    params: Option<Jsonb<'_>>,
    report: Option<&[u8]>,
) -> TableIterator<
    'static,
    (
        name!(result, Option<String>),
        name!(numbers, Option<Vec<f32>>),
        name!(vector_length, i32),
        name!(vector_count, Option<i32>),
        name!(list, Option<Vec<String>>),
        name!(prompt_tokens, Option<i32>),
        name!(cached_tokens, Option<i32>),
        name!(generated_tokens, Option<i32>),
        name!(finish_reason, Option<&'static str>),
        name!(first_token_ms, Option<i32>),
        name!(error, Option<String>),
        name!(error_code, Option<String>),
        name!(retry, bool),
        name!(more, Option<Vec<u8>>),
    ),
> {
    let failed = |failure: Failure| {
        let (error, code) = (with_hint(&failure.error), failure.error.sqlstate());
        let retry = failure.retry;
        (None, None, 0, None, None, None, None, None, None, None, Some(error), Some(code), retry, None)
    };
    let row = match outcome(request_type.unwrap_or_default(), prompt, prompts, params, report) {
        Err(failure) => failed(failure),
        Ok(Outcome::More(more)) => {
            (None, None, 0, None, None, None, None, None, None, None, None, None, false, Some(more))
        }
        Ok(Outcome::Answer(answer, usage)) => {
            let list = answer.list().map(|list| list.into_iter().map(str::to_owned).collect());
            let (text, vectors, is_many) = match answer {
                Answer::Text(text) => (Some(text), Vec::new(), false),
                Answer::Embedding(vector) => (None, vec![vector], false),
                Answer::Embeddings(vectors) => (None, vectors, true),
                Answer::Ranking(ranking) => (Some(ranking.json()), Vec::new(), false),
                Answer::Categories(categories) => (Some(categories.json()), Vec::new(), false),
                // No row of the queue asks for these.
                Answer::Tokens(_) | Answer::Chunks(_) | Answer::Many(_) | Answer::Verification(_) => {
                    (None, Vec::new(), false)
                }
            };
            let count = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
            (
                text,
                (!vectors.is_empty()).then(|| vectors.concat()),
                count(vectors.first().map_or(0, Vec::len)),
                is_many.then(|| count(vectors.len())),
                list,
                usage.prompt_tokens,
                usage.cached_tokens,
                usage.generated_tokens,
                usage.finish_reason,
                usage.first_token_ms,
                None,
                None,
                false,
                None,
            )
        }
    };
    TableIterator::once(row)
}

/// The models of a placement.
#[pg_extern(stable, parallel_unsafe, strict)]
fn models_placed(placement: &str) -> Vec<String> {
    let models = catalog_cache::models().or_raise();
    models.iter().filter(|model| model.placement == placement).map(|model| model.name.clone()).collect()
}

/// The models that requests get which name none: for generation, for embeddings, for ranking.
#[pg_extern(volatile, parallel_unsafe)]
fn default_models() -> Vec<Option<String>> {
    default_names(&*catalog_cache::models().or_raise()).to_vec()
}

fn check_version(version: Option<&str>) -> Result<(), PgError> {
    if version == Some(errand::VERSION) {
        return Ok(());
    }
    let shown: String = version.unwrap_or("none").chars().take(16).collect();
    Err(PgError::new(
        PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
        format!("the worker has version {shown}, the server's library has {}", errand::VERSION),
    )
    .hint("Run a worker of the same version: another one may compute other bytes."))
}

/// What a row asks. Its owner can have stored anything.
fn work(
    request_type: &str,
    prompt: Option<&str>,
    prompts: Texts<'_>,
    params: Option<Jsonb<'_>>,
) -> Result<(Subtasks, Resolved), PgError> {
    let config = catalog_cache::config()?;
    if let Some(prompts) = &prompts {
        batch_checks::check_count(prompts.len(), batch_checks::name_of_prompts(request_type), &config)?;
    }
    let prompts: Option<Vec<Option<&str>>> = prompts.as_ref().map(|prompts| prompts.iter().collect());
    let bytes = prompts.iter().flatten().flatten().fold(0, |bytes, text| text.len().saturating_add(bytes));
    batch_checks::check_stored(bytes, &config)?;
    let params: Value = params::read(request_type, params, Unused::Skipped, &config)?;
    let asked = Asked { request_type, prompt, prompts: prompts.as_deref(), params: &params };
    subtasks_elsewhere(asked, &config, &*catalog_cache::models()?)
}

/// What a report makes.
enum Outcome {
    /// The end.
    Answer(Answer, Usage),
    /// The next stage of the work, as [`prepared_work`] gives the first.
    More(Vec<u8>),
}

/// The present stage of the work.
fn errand_of(subtasks: &Subtasks, model: &Resolved) -> Errand {
    Errand {
        model: model.wanted_model(),
        works: (0..subtasks.len()).map(|index| subtasks.work_for(index, model)).collect(),
    }
}

/// What becomes of a request that is reported. A report has the outputs of all stages up to now, so that nothing is kept here.
fn outcome(
    request_type: &str,
    prompt: Option<&str>,
    prompts: Texts<'_>,
    params: Option<Jsonb<'_>>,
    report: Option<&[u8]>,
) -> Result<Outcome, Failure> {
    let lasting = |error: PgError| Failure { error, retry: false };
    let report: Report = errand::decode(report.unwrap_or_default()).map_err(Failure::from)?;
    if let Err(Trouble::Model(refusal)) = report.outputs {
        let error = PgError::new(PgSqlErrorCode::ERRCODE_IO_ERROR, refusal.message);
        return Err(Failure { error, retry: refusal.retry });
    }
    let (subtasks, model) = work(request_type, prompt, prompts, params).map_err(lasting)?;
    let outputs = match report.outputs {
        Ok(outputs) => outputs,
        Err(Trouble::Model(_)) => return Err(lasting(unexpected())),
        Err(Trouble::Failed { subtask, error }) => {
            let Failure { error, retry } = Failure::from(error);
            let error = if subtask < subtasks.len() { subtasks.blame(subtask, error) } else { error };
            return Err(Failure { error, retry });
        }
    };
    let mut stages = Stages::new(subtasks);
    let mut outputs = outputs.into_iter();
    let ended = loop {
        if stages.is_handed_over() {
            return Err(lasting(unexpected()));
        }
        // Where outputs end, a stage must.
        let count = stages.now().len();
        if outputs.len() == 0 {
            let more = Prepared::Errand(errand_of(stages.now(), &model));
            let more = errand::encode(&more).map_err(Failure::from)?;
            return Ok(Outcome::More(more));
        }
        if outputs.len() < count {
            return Err(lasting(unexpected()));
        }
        let mut ended = None;
        for (index, output) in outputs.by_ref().take(count).enumerate() {
            stages.take_next();
            ended = stages.store(index, output).map_err(lasting)?;
        }
        if let Some(ended) = ended {
            break ended;
        }
    };
    if outputs.len() > 0 {
        return Err(lasting(unexpected()));
    }
    let Ended { answer, text, .. } = ended;
    let mut usage = Usage::told(report.prompt_tokens, report.cached_tokens, report.first_token_ms);
    usage.ended(text, std::time::Instant::now());
    // The type text has no place for it.
    if matches!(&answer, Answer::Text(text) if text.contains('\0')) {
        return Err(lasting(unexpected()));
    }
    Ok(Outcome::Answer(answer, usage))
}

fn with_hint(error: &PgError) -> String {
    match &error.hint {
        Some(hint) => format!("{}\nHINT: {hint}", error.message),
        None => error.message.clone(),
    }
}
