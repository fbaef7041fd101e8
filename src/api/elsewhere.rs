//! The queue's protocol for engines on other machines: a row as work for an engine, and the report as an
//! answer.
//!
//! Both are made here, with the code that serves the server's own worker. A worker elsewhere knows models and
//! work and nothing of parameters, so there is one place that defines the meaning of a row.
//!
//! Invariant: reports are not trusted. They are read within bounds and compared with their requests.

use pgrx::prelude::*;
use pgrx::{Array, name};
use serde_json::Value;
use steadytext_engine::remote_job::{self, JobFailure, JobRefusal, PreparedRow, RemoteJob, Report};
use steadytext_engine::{Error, Generate, Output, Work};

use super::context::width_of;
use crate::pg::catalog_cache;
use crate::pg::error::{OrRaise, PgError, RequestFailure};
use crate::pg::jsonb::Jsonb;
use crate::registry::{Resolved, default_names};
use crate::request::params::{self, Unused};
use crate::request::{
    Answer, EndedRequest, RawRequest, Stages, Subtasks, Usage, batch_checks, flaw_of_vectors,
    subtasks_elsewhere, unexpected,
};

/// Subtasks that travel together, in bytes: more come when they are asked for, so that what a claim brings is
/// bounded by what rows hold, whatever becomes of it.
const MAX_PART_BYTES: usize = 256 << 10;
/// Most bytes of a value, and of a report, whose vectors are the longest part.
const MAX_VALUE_BYTES: usize = 512 << 20;
const MAX_REPORT_BYTES: usize = 256 << 20;
/// Most characters of what a worker says about an error.
const MAX_MESSAGE_CHARACTERS: usize = 10_000;
/// Most bytes of a text for each token that an answer may have.
const MAX_BYTES_PER_TOKEN: usize = 1024;
/// Most characters of the address of another engine.
const MAX_ADDRESS_CHARACTERS: usize = 255;
/// Tokens of a piece of work that nobody doubts: what templates and instructions of models put around a text.
const TOKENS_AROUND: u64 = 16_384;
/// A byte may be several tokens where a tokenizer normalises it first.
const TOKENS_PER_BYTE: u64 = 4;
/// An answer that was thought about, or stands in a document, takes more tokens than it has.
const ANSWER_TOKENS: u64 = 16;

/// The texts of a row.
pub(super) type RowTexts<'a> = Option<Array<'a, &'a str>>;

/// A row of the queue as work for an engine of the same version.
#[pg_extern(volatile, parallel_unsafe)]
fn prepared_work(
    version: Option<&str>,
    request_type: Option<&str>,
    prompt: Option<&str>,
    prompts: RowTexts<'_>,
    params: Option<Jsonb<'_>>,
) -> Vec<u8> {
    check_version(version).or_raise();
    let prepared = match work(request_type.unwrap_or_default(), prompt, prompts, params) {
        Ok((subtasks, model)) => part(&subtasks, &model, 0),
        Err(error) => refused(&error),
    };
    encoded(&prepared).or_raise()
}

/// A row that is no work, whatever keeps it from being some.
#[pg_extern(volatile, parallel_unsafe)]
fn refused_work(
    version: Option<&str>,
    message: Option<&str>,
    code: Option<&str>,
    retry: Option<bool>,
) -> Vec<u8> {
    check_version(version).or_raise();
    let refusal = JobRefusal {
        message: shown(message.unwrap_or_default()),
        code: code.unwrap_or_default().chars().take(5).collect(),
        retry: retry.unwrap_or(false),
    };
    encoded(&PreparedRow::Refused(refusal)).or_raise()
}

/// More subtasks of a row, from the one with number `first` on: of its first stage, or, where there is a
/// report of all stages before, of the one behind them.
#[pg_extern(volatile, parallel_unsafe)]
fn further_work(
    request_type: Option<&str>,
    prompt: Option<&str>,
    prompts: RowTexts<'_>,
    params: Option<Jsonb<'_>>,
    first: i32,
    report: Option<&[u8]>,
) -> Vec<u8> {
    let first = usize::try_from(first).unwrap_or(0);
    let prepared = match further(request_type.unwrap_or_default(), prompt, prompts, params, first, report) {
        Ok(prepared) => prepared,
        Err(error) => refused(&error),
    };
    encoded(&prepared).or_raise()
}

/// Reads a worker's report about a row that it has computed, and returns it as the columns that the
/// protocol's other functions take.
#[pg_extern(volatile, parallel_unsafe)]
#[allow(clippy::type_complexity, reason = "the columns of a table function")]
fn read_report(
    request_type: Option<&str>,
    prompt: Option<&str>,
    prompts: RowTexts<'_>,
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
        name!(endpoint, Option<String>),
        name!(error, Option<String>),
        name!(error_code, Option<String>),
        name!(retry, bool),
        name!(more, Option<Vec<u8>>),
    ),
> {
    let failed = |failure: RequestFailure, usage: Usage| {
        let (error, code) = (with_hint(&failure.error), failure.error.sqlstate());
        let retry = failure.retry;
        let (prompt, cached, generated) = (usage.prompt_tokens, usage.cached_tokens, usage.generated_tokens);
        let (error, code) = (Some(error), Some(code));
        (None, None, 0, None, None, prompt, cached, generated, None, None, None, error, code, retry, None)
    };
    let row = match outcome(request_type.unwrap_or_default(), prompt, prompts, params, report) {
        Err(failure) => failed(failure, Usage::default()),
        Ok(ReportOutcome::Failed(failure, usage)) => failed(failure, usage),
        Ok(ReportOutcome::More(more)) => {
            (None, None, 0, None, None, None, None, None, None, None, None, None, None, false, Some(more))
        }
        Ok(ReportOutcome::Answer(answer, usage, endpoint)) => {
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
                endpoint,
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
    default_names(&catalog_cache::models().or_raise()).to_vec()
}

fn check_version(version: Option<&str>) -> Result<(), PgError> {
    if version == Some(remote_job::VERSION) {
        return Ok(());
    }
    let shown: String = version.unwrap_or("none").chars().take(16).collect();
    Err(PgError::new(
        PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
        format!("the worker has version {shown}, the server's library has {}", remote_job::VERSION),
    )
    .hint("Run a worker of the same version: another one may compute other bytes."))
}

/// The work of a row. Its owner can have stored anything.
///
/// # Errors
///
/// The reason why the row is no valid request.
pub(super) fn work(
    request_type: &str,
    prompt: Option<&str>,
    prompts: RowTexts<'_>,
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
    let asked = RawRequest { request_type, prompt, prompts: prompts.as_deref(), params: &params };
    subtasks_elsewhere(asked, &config, &*catalog_cache::models()?)
}

/// The outcome of a report.
enum ReportOutcome {
    /// The end, and the address of the engine that has answered, where it is none of ours.
    Answer(Answer, Usage, Option<String>),
    /// The next stage of the work, as [`prepared_work`] gives the first.
    More(Vec<u8>),
    /// An error of the engine, and what it took to get there.
    Failed(RequestFailure, Usage),
}

/// A stage of the work, from a subtask on, as far as there is room for it.
fn part(subtasks: &Subtasks, model: &Resolved, first: usize) -> PreparedRow {
    let mut works = Vec::new();
    let mut bytes = 0_usize;
    for index in first..subtasks.len() {
        let work = subtasks.work_for(index, model);
        bytes = bytes.saturating_add(remote_job::encoded_bytes(&work).unwrap_or(usize::MAX));
        if bytes > MAX_PART_BYTES && !works.is_empty() {
            break;
        }
        works.push(work);
    }
    PreparedRow::Job(RemoteJob { model: model.wanted_model(), count: subtasks.len(), works })
}

fn refused(error: &PgError) -> PreparedRow {
    PreparedRow::Refused(JobRefusal {
        message: with_hint(error),
        code: error.sqlstate(),
        retry: error.is_transient(),
    })
}

fn encoded(prepared: &PreparedRow) -> Result<Vec<u8>, PgError> {
    let bytes = remote_job::encode(prepared).map_err(|error| RequestFailure::from(error).error)?;
    if bytes.len() <= MAX_VALUE_BYTES {
        return Ok(bytes);
    }
    // No value of this length exists; an error here would be that of all rows that are claimed with this one.
    let error = PgError::new(
        PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
        "the request is too long for a worker elsewhere",
    );
    remote_job::encode(&refused(&error)).map_err(|error| RequestFailure::from(error).error)
}

fn further(
    request_type: &str,
    prompt: Option<&str>,
    prompts: RowTexts<'_>,
    params: Option<Jsonb<'_>>,
    first: usize,
    report: Option<&[u8]>,
) -> Result<PreparedRow, PgError> {
    let (subtasks, model) = work(request_type, prompt, prompts, params)?;
    let mut stages = Stages::new(subtasks);
    if let Some(report) = report {
        let report = read(report).map_err(|failure| failure.error)?;
        let outputs = report.outputs.map_err(|_| unexpected())?;
        check_texts(&outputs)?;
        if replay(&mut stages, outputs, &model, &mut TokenLimits::new(None))?.is_some() {
            return Err(unexpected());
        }
    }
    if first >= stages.now().len() {
        return Err(unexpected());
    }
    Ok(part(stages.now(), &model, first))
}

/// Goes through the outputs of stages, each of which must be whole. Returns the result, if that was the last
/// stage.
///
/// # Errors
///
/// XX000 for outputs that do not belong to the request, 22000 for a text that does not match what it has to.
fn replay(
    stages: &mut Stages,
    outputs: Vec<Output>,
    model: &Resolved,
    limits: &mut TokenLimits,
) -> Result<Option<EndedRequest>, PgError> {
    let mut outputs = outputs.into_iter();
    while outputs.len() > 0 {
        let count = stages.now().len();
        if count == 0 || outputs.len() < count {
            return Err(unexpected());
        }
        limits.prompt = limits.prompt.saturating_add(most_tokens(stages.now(), model, limits.reported));
        let mut ended = None;
        for (index, output) in outputs.by_ref().take(count).enumerate() {
            stages.take_next();
            if let Output::Text { text, generated_tokens, .. } = &output {
                let work = stages.work(index, model);
                check_constraint(&work, text)?;
                limits.answer = limits.answer.saturating_add(most_of_answer(&work, *generated_tokens as u64));
            }
            ended = stages.store(index, output)?;
        }
        if ended.is_some() {
            return if outputs.len() == 0 { Ok(ended) } else { Err(unexpected()) };
        }
    }
    Ok(None)
}

/// Limits on the token counts that a worker reports: they are charged to the role that has asked, so a worker
/// is believed no more than the request can have taken.
struct TokenLimits {
    /// The reported tokens of the prompts.
    reported: Option<u64>,
    prompt: u64,
    answer: u64,
}

impl TokenLimits {
    fn new(reported: Option<u64>) -> TokenLimits {
        TokenLimits { reported, prompt: 0, answer: 0 }
    }
}

/// The most tokens that the prompts of a stage can have; enough, where fewer are reported than anybody
/// doubts.
fn most_tokens(subtasks: &Subtasks, model: &Resolved, reported: Option<u64>) -> u64 {
    let around = TOKENS_AROUND.saturating_mul(subtasks.len() as u64);
    if reported.is_none_or(|reported| reported <= around) {
        return around;
    }
    let bytes = |index| subtasks.work_for(index, model).text_bytes() as u64;
    (0..subtasks.len())
        .fold(around, |most, index| most.saturating_add(bytes(index).saturating_mul(TOKENS_PER_BYTE)))
}

/// The most tokens that the answers of a stage can have taken.
fn most_answer_tokens(subtasks: &Subtasks, model: &Resolved, reported: u64) -> u64 {
    let of = |index| most_of_answer(&subtasks.work_for(index, model), reported);
    (0..subtasks.len()).fold(0, |most: u64, index| most.saturating_add(of(index)))
}

/// The most tokens that the answer of one piece of work can have taken.
fn most_of_answer(work: &Work, reported: u64) -> u64 {
    match work {
        Work::Generate(how) => {
            reported.min((how.max_tokens as u64).saturating_mul(ANSWER_TOKENS).saturating_add(TOKENS_AROUND))
        }
        _ => 0,
    }
}

fn believed(
    prompt_tokens: Option<u64>,
    cached_tokens: Option<u64>,
    first_token_ms: Option<u64>,
    most: u64,
) -> Usage {
    let prompt_tokens = prompt_tokens.map(|tokens| tokens.min(most));
    let cached_tokens = cached_tokens.map(|tokens| tokens.min(prompt_tokens.unwrap_or(0)));
    Usage::reported(prompt_tokens, cached_tokens, first_token_ms)
}

/// Refuses a text that does not match the schema, the pattern or the choices of its work, as far as that is
/// seen in little time.
fn check_constraint(work: &Work, text: &str) -> Result<(), PgError> {
    let Work::Generate(Generate { constraint: Some(constraint), .. }) = work else { return Ok(()) };
    if !constraint.refutes(text) {
        return Ok(());
    }
    let reason = "the worker's answer is not what was asked for".to_owned();
    Err(RequestFailure::from(Error::Mismatch { reason }).error)
}

/// Refuses texts that are longer than any answer: what is made of them takes time that grows with their
/// lengths.
fn check_texts(outputs: &[Output]) -> Result<(), PgError> {
    let tokens = usize::try_from(catalog_cache::config()?.max_tokens_limit).unwrap_or(0);
    let most = tokens.saturating_mul(MAX_BYTES_PER_TOKEN).max(MAX_PART_BYTES);
    let is_fit = |output: &Output| !matches!(output, Output::Text { text, .. } if text.len() > most);
    if outputs.iter().all(is_fit) { Ok(()) } else { Err(unexpected()) }
}

fn read(report: &[u8]) -> Result<Report, RequestFailure> {
    if report.len() > MAX_REPORT_BYTES {
        let error = PgError::new(
            PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
            format!(
                "the report of a worker elsewhere has {} bytes, {MAX_REPORT_BYTES} are read",
                report.len()
            ),
        );
        return Err(RequestFailure { error, retry: false });
    }
    remote_job::decode(report).map_err(RequestFailure::from)
}

/// The outcome of a reported request. A report has the outputs of all stages up to now, so that nothing is
/// kept here.
fn outcome(
    request_type: &str,
    prompt: Option<&str>,
    prompts: RowTexts<'_>,
    params: Option<Jsonb<'_>>,
    report: Option<&[u8]>,
) -> Result<ReportOutcome, RequestFailure> {
    let lasting = |error: PgError| RequestFailure { error, retry: false };
    let Report { outputs, prompt_tokens, cached_tokens, first_token_ms, endpoint } =
        read(report.unwrap_or_default())?;
    let outputs = match outputs {
        Ok(outputs) => outputs,
        Err(JobFailure::Model(refusal)) => {
            let error = PgError::new(PgSqlErrorCode::ERRCODE_IO_ERROR, shown(&refusal.message));
            return Err(RequestFailure { error, retry: refusal.retry });
        }
        Err(JobFailure::Failed { subtask, error }) => {
            let (subtasks, model) = work(request_type, prompt, prompts, params).map_err(lasting)?;
            let most = most_tokens(&subtasks, &model, prompt_tokens);
            let mut usage = believed(prompt_tokens, cached_tokens, None, most);
            if let Error::Unfinished { generated_tokens } = &error {
                let most = most_answer_tokens(&subtasks, &model, *generated_tokens as u64);
                usage.generated_tokens = i32::try_from((*generated_tokens as u64).min(most)).ok();
            }
            let RequestFailure { error, retry } = RequestFailure::from(error);
            let error = PgError { message: shown(&error.message), ..error };
            let error = if subtask < subtasks.len() { subtasks.blame(subtask, error) } else { error };
            return Ok(ReportOutcome::Failed(RequestFailure { error, retry }, usage));
        }
    };
    check_texts(&outputs).map_err(lasting)?;
    let (subtasks, model) = work(request_type, prompt, prompts, params).map_err(lasting)?;
    let mut stages = Stages::new(subtasks);
    let mut limits = TokenLimits::new(prompt_tokens);
    let Some(ended) = replay(&mut stages, outputs, &model, &mut limits).map_err(lasting)? else {
        let more = encoded(&part(stages.now(), &model, 0)).map_err(lasting)?;
        return Ok(ReportOutcome::More(more));
    };
    let EndedRequest { answer, text, .. } = ended;
    let text = text
        .map(|(tokens, finish)| (tokens.min(usize::try_from(limits.answer).unwrap_or(usize::MAX)), finish));
    let mut usage = believed(prompt_tokens, cached_tokens, first_token_ms, limits.prompt);
    let first_token_ms = usage.first_token_ms;
    usage.ended(text, std::time::Instant::now());
    // The time to the first token is the endpoint's, as this process has not waited for it.
    usage.first_token_ms = first_token_ms;
    // An endpoint may have another model of that name, and vectors that were asked for in another length have
    // been compared with that.
    let is_whole = endpoint.is_none() && stages.whole().dimensions().is_none();
    let width = if is_whole { width_of(&model.source) } else { None };
    let is_fit = match &answer {
        // The type text has no place for it.
        Answer::Text(text) => !text.contains('\0'),
        Answer::Embedding(vector) => flaw_of_vectors(vector, 1, width).is_none(),
        // All vectors come as one array.
        Answer::Embeddings(vectors) => vectors.iter().all(|vector| {
            Some(vector.len()) == vectors.first().map(Vec::len) && flaw_of_vectors(vector, 1, width).is_none()
        }),
        _ => true,
    };
    if !is_fit {
        return Err(lasting(unexpected()));
    }
    let endpoint = endpoint.map(|address| shown(&address).chars().take(MAX_ADDRESS_CHARACTERS).collect());
    Ok(ReportOutcome::Answer(answer, usage, endpoint))
}

/// A worker's error message made fit to be shown: it is untrusted text, so control characters are replaced,
/// and it is cut.
fn shown(message: &str) -> String {
    let printable = |character: char| match character {
        '\n' | '\t' => character,
        _ if character.is_control() => ' ',
        _ => character,
    };
    message.chars().take(MAX_MESSAGE_CHARACTERS).map(printable).collect()
}

fn with_hint(error: &PgError) -> String {
    match &error.hint {
        Some(hint) => format!("{}\nHINT: {hint}", error.message),
        None => error.message.clone(),
    }
}
