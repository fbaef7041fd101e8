//! Whole synchronous calls: the answer to one request, to the elements of an array, or to one with its cost.

use std::rc::Rc;

use pgrx::PgSqlErrorCode;
use serde_json::{Map, Value};
use steadytext_engine::socket::MAX_MESSAGE_BYTES;
use steadytext_engine::{Verification, Verify, Work};

use super::call::{Call, News, count_found};
use super::checked::{Checked, about_text, check, check_engine};
use crate::cache::{self, CacheQuestion};
use crate::pg::catalog_cache::ModelRegistry;
use crate::pg::error::PgError;
use crate::pg::{access_counters, catalog_cache, interrupts};
use crate::registry::{self, ModelTask, Resolved};
use crate::request::{self, Answer, OnError, Subtasks, Usage};

/// The answer to a request: that of the cache, or the engine's.
///
/// # Errors
///
/// As [`Call::begin`] and [`Call::next`].
pub(super) fn answer(
    request_type: &str,
    text: Option<&str>,
    texts: Option<&[Option<&str>]>,
    params: Map<String, Value>,
) -> Result<Answer, PgError> {
    let named = |error: PgError| if error.lasting { about_text(error, request_type, text) } else { error };
    check(request_type, text, texts, params).map_err(named)?.settle(request_type)
}

/// The answer to work that was made up elsewhere, as a request of a type: that of the cache, or the engine's.
///
/// # Errors
///
/// As [`answer`].
pub(super) fn answer_of(
    request_type: &str,
    task: ModelTask,
    subtasks: Subtasks,
    params: Map<String, Value>,
) -> Result<Answer, PgError> {
    check_engine()?;
    let params = Value::Object(params);
    let (config, registry) = (catalog_cache::config()?, catalog_cache::models()?);
    let model = request::model(task, &params, &registry)?;
    let question = CacheQuestion::of(request_type, &params, &subtasks, &model, &config);
    Checked { subtasks, model, registry, question }.settle(request_type)
}

impl Checked {
    /// Its answer: that of the cache, or the engine's.
    fn settle(self, request_type: &str) -> Result<Answer, PgError> {
        if let Some(question) = &self.question {
            if let Some(answer) = question.answer() {
                count_found(request_type, &self.model);
                return Ok(answer);
            }
            access_counters::count_miss();
        }
        Call::start(request_type, self, false)?.finish()
    }
}

/// The deviations between the backends on a model, by its name in the registry, or on the one that generates.
///
/// # Errors
///
/// As [`answer`]; XX001 where the file is not the registered one.
pub(super) fn verification(name: Option<&str>, positions: usize) -> Result<Verification, PgError> {
    let registry = catalog_cache::models()?;
    let model = registry::of_any_task(name, &registry)?;
    let subtasks = Subtasks::One(Work::Verify(Verify { text: None, positions }));
    match outcome("verify", subtasks, model, registry)? {
        Answer::Verification(verified) => Ok(verified),
        _ => Err(request::unexpected()),
    }
}

/// An element of an array, as a request.
#[derive(Debug, Clone, Default)]
pub(super) struct Element<'a> {
    /// The text.
    pub(super) text: Option<&'a str>,
    /// The texts of a request that has several.
    pub(super) texts: Option<[Option<&'a str>; 2]>,
}

/// The answers to the elements of an array, which the engine works on together; `None` for those that are
/// `None`, and under [`OnError::Null`] for those that cannot be answered.
///
/// # Errors
///
/// As [`answer`], of the first element that cannot be answered.
pub(super) fn answers(
    request_type: &str,
    elements: &[Option<Element<'_>>],
    params: &Map<String, Value>,
    on_error: OnError,
) -> Result<Vec<Option<Answer>>, PgError> {
    let mut answers = vec![None; elements.len()];
    let (mut parts, mut questions, mut places) = (Vec::new(), Vec::new(), Vec::new());
    let (mut chosen, mut found) = (None, None);
    check_repeated(params, elements.len())?;
    for (place, element) in elements.iter().enumerate() {
        interrupts::check();
        let Some(Element { text, texts }) = element else { continue };
        let checked = check(request_type, *text, texts.as_ref().map(<[_; 2]>::as_slice), params.clone());
        let Checked { subtasks, model, registry, question } = match checked {
            Err(error) if on_error == OnError::Null && error.lasting => continue,
            Err(mut error) => {
                error.message = format!("element {}: {}", place + 1, error.message);
                return Err(error);
            }
            Ok(checked) => checked,
        };
        if let Some(question) = &question {
            answers[place] = question.answer();
            if answers[place].is_some() {
                found.get_or_insert(model);
                continue;
            }
            access_counters::count_miss();
        }
        parts.push(subtasks);
        questions.push(question);
        places.push(place);
        chosen.get_or_insert((model, registry));
    }
    let Some((model, registry)) = chosen else {
        found.iter().for_each(|model| count_found(request_type, model));
        return Ok(answers);
    };
    let checked = Checked {
        subtasks: Subtasks::Many(parts, places.clone(), on_error),
        model,
        registry,
        question: None,
    };
    let mut call = Call::prepare(request_type, checked, false)?;
    (call.questions, call.tolerant) = (questions, on_error == OnError::Null);
    call.begin_work()?;
    let Answer::Many(computed) = call.finish()? else { return Err(request::unexpected()) };
    for (place, answer) in places.into_iter().zip(computed) {
        answers[place] = answer;
    }
    Ok(answers)
}

/// Refuses parameters that are too much for so many elements, each of which is asked with all of them.
fn check_repeated(params: &Map<String, Value>, elements: usize) -> Result<(), PgError> {
    let bytes = serde_json::to_string(params).map_or(usize::MAX, |text| text.len()).saturating_mul(elements);
    if bytes <= MAX_MESSAGE_BYTES {
        return Ok(());
    }
    Err(PgError::new(
        PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
        format!("the parameters have {bytes} bytes for {elements} elements, {MAX_MESSAGE_BYTES} are allowed"),
    )
    .hint("Ask for fewer elements at a time, or with shorter examples and descriptions."))
}

/// An answer, its cost in tokens and time, and the model that has given it.
pub(super) struct Detailed {
    pub(super) answer: Answer,
    pub(super) usage: Usage,
    pub(super) total_ms: i32,
    /// The name of the model that has answered.
    pub(super) model: String,
}

/// The engine's answer to a request, whatever the cache has, with its cost.
///
/// # Errors
///
/// As [`Call::begin`] and [`Call::next`].
pub(super) fn answer_in_detail(
    request_type: &str,
    text: Option<&str>,
    texts: Option<&[Option<&str>]>,
    params: Map<String, Value>,
) -> Result<Detailed, PgError> {
    let named = |error: PgError| if error.lasting { about_text(error, request_type, text) } else { error };
    let name = Value::Object(params.clone());
    let checked = check(request_type, text, texts, params).map_err(named)?;
    let mut call = Call::start(request_type, checked, false)?;
    loop {
        if let News::Answer(answer) = call.next()? {
            return Ok(Detailed {
                answer,
                usage: call.usage,
                total_ms: i32::try_from(call.since.elapsed().as_millis()).unwrap_or(i32::MAX),
                model: cache::model_name(&name, &call.model.source),
            });
        }
    }
}

/// The answer to work that was checked.
///
/// # Errors
///
/// As [`Call::begin`] and [`Call::next`].
pub(super) fn outcome(
    request_type: &str,
    subtasks: Subtasks,
    model: Resolved,
    registry: Rc<ModelRegistry>,
) -> Result<Answer, PgError> {
    check_engine()?;
    Call::start(request_type, Checked { subtasks, model, registry, question: None }, false)?.finish()
}
