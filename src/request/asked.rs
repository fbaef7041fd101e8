//! Requests as a row of the queue, or a synchronous call, gives them.

use serde_json::Value;
use steadytext_engine::Purpose;

use super::defaults;
use crate::registry::{AUTO, RequestedModel};

/// The parameter in which a queued request keeps the default of the session that enqueued it. It is no part
/// of the question: the key of the cache does not contain it.
pub(crate) const DEFAULT_MODEL: &str = "default_model";

/// A request as a row, or a call, gives it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RawRequest<'a> {
    /// `generate`, `embed`, …
    pub(crate) request_type: &'a str,
    /// The text.
    pub(crate) prompt: Option<&'a str>,
    /// The texts of a request of many subtasks.
    pub(crate) prompts: Option<&'a [Option<&'a str>]>,
    /// The parameters.
    pub(crate) params: &'a Value,
}

/// The parameters that name a model, the first one before the second.
const NAMES: [&str; 2] = ["model", "size"];

/// The name of the model that a request wants, if it does not leave the choice to the server, as `auto` does.
pub(crate) fn named_model(params: &Value) -> Option<&str> {
    NAMES.iter().filter_map(|name| params.get(*name)?.as_str()).find(|name| *name != AUTO)
}

/// Takes the word `auto` out of the parameters that name a model: a request with it is one that names none,
/// also to those who claim rows by the model that they name. Whether it was there.
pub(crate) fn leave_choice(params: &mut Value) -> bool {
    let Value::Object(params) = params else { return false };
    let before = params.len();
    params.retain(|name, value| !(NAMES.contains(&name.as_str()) && value.as_str() == Some(AUTO)));
    params.len() < before
}

/// The model that a request wants: the one it names, or else the one that was the default where it was
/// enqueued.
pub(crate) fn wanted(params: &Value) -> RequestedModel<'_> {
    let remembered = || params.get(DEFAULT_MODEL).and_then(Value::as_str).map(RequestedModel::Remembered);
    named_model(params).map(RequestedModel::Named).or_else(remembered).unwrap_or(RequestedModel::Default)
}

/// Whether texts that are too long are cut.
pub(super) fn truncates(params: &Value) -> bool {
    params.get("truncate").and_then(Value::as_bool).unwrap_or(defaults::TRUNCATE)
}

/// The number of elements of a vector that are wanted, where not all are.
pub(super) fn dimensions(params: &Value) -> Option<usize> {
    params.get("dimensions").and_then(Value::as_u64).and_then(|count| usize::try_from(count).ok())
}

/// The purpose of an embedding. A task makes it a query's, unless the mode says otherwise.
pub(super) fn purpose(params: &Value) -> Purpose {
    let text = |name: &str| params.get(name).and_then(Value::as_str);
    match (text("mode"), text("task")) {
        (Some("query"), task) | (None, task @ Some(_)) => Purpose::Query { task: task.map(str::to_owned) },
        (Some("passage"), _) => Purpose::Document,
        _ => Purpose::Passage,
    }
}
