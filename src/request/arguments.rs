//! Making the parameters of a request from the arguments of the SQL functions.
//!
//! Parameters with default values are left out, so that requests that ask for the same look the same,
//! whichever function wrote them down.

use serde_json::{Map, Value};

use super::defaults;

/// The parameters of a generation that differ from the defaults.
pub(crate) fn generate_params(
    max_tokens: Option<i64>,
    use_cache: Option<bool>,
    seed: Option<i64>,
    eos_string: Option<&str>,
    model: Option<&str>,
    size: Option<&str>,
    temperature: Option<f64>,
) -> Map<String, Value> {
    let temperature = temperature.filter(|value| *value != defaults::TEMPERATURE);
    // An explicit seed is kept wherever it matters, so that a changed default never alters what was asked
    // for.
    let seed = seed.filter(|seed| *seed != defaults::SEED || temperature.is_some());
    params([
        ("max_tokens", max_tokens.map(Value::from)),
        ("use_cache", use_cache.filter(|use_cache| *use_cache != defaults::USE_CACHE).map(Value::from)),
        ("seed", seed.map(Value::from)),
        ("eos_string", eos_string.filter(|text| *text != defaults::EOS_STRING).map(Value::from)),
        ("model", model.map(Value::from)),
        ("size", size.map(Value::from)),
        ("temperature", temperature.map(number)),
    ])
}

/// The parameters of an embedding that differ from the defaults.
#[allow(clippy::too_many_arguments, reason = "the predecessor's signature, and more")]
pub(crate) fn embed_params(
    use_cache: Option<bool>,
    seed: Option<i64>,
    model: Option<&str>,
    mode: Option<&str>,
    task: Option<&str>,
    truncate: Option<bool>,
    dimensions: Option<i64>,
) -> Map<String, Value> {
    params([
        ("use_cache", use_cache.filter(|use_cache| *use_cache != defaults::USE_CACHE).map(Value::from)),
        ("seed", seed.filter(|seed| *seed != defaults::SEED).map(Value::from)),
        ("model", model.map(Value::from)),
        ("mode", mode.map(Value::from)),
        ("task", task.map(Value::from)),
        ("truncate", truncate.filter(|truncate| *truncate != defaults::TRUNCATE).map(Value::from)),
        ("dimensions", dimensions.map(Value::from)),
    ])
}

/// The parameters of a reranking that differ from the defaults.
pub(crate) fn rerank_params(
    task: Option<&str>,
    return_scores: Option<bool>,
    seed: Option<i64>,
    model: Option<&str>,
    truncate: Option<bool>,
) -> Map<String, Value> {
    params([
        ("task", task.filter(|task| *task != defaults::RERANK_TASK).map(Value::from)),
        ("return_scores", return_scores.filter(|scores| *scores != defaults::RETURN_SCORES).map(Value::from)),
        ("seed", seed.filter(|seed| *seed != defaults::SEED).map(Value::from)),
        ("model", model.map(Value::from)),
        ("truncate", truncate.filter(|truncate| *truncate != defaults::TRUNCATE).map(Value::from)),
    ])
}

/// The parameters of a judgement that differ from the defaults.
pub(crate) fn verb_params(
    use_cache: Option<bool>,
    seed: Option<i64>,
    model: Option<&str>,
) -> Map<String, Value> {
    params([
        ("use_cache", use_cache.filter(|use_cache| *use_cache != defaults::USE_CACHE).map(Value::from)),
        ("seed", seed.filter(|seed| *seed != defaults::SEED).map(Value::from)),
        ("model", model.map(Value::from)),
    ])
}

/// The parameters of a classification besides [`verb_params`], as far as they differ from the defaults.
pub(crate) fn classify_params(
    task_description: Option<&str>,
    method: Option<&str>,
    threshold: Option<f64>,
) -> Map<String, Value> {
    params([
        ("task_description", task_description.map(Value::from)),
        ("method", method.filter(|method| *method != defaults::METHOD).map(Value::from)),
        ("threshold", threshold.filter(|threshold| *threshold != defaults::THRESHOLD).map(number)),
    ])
}

fn params<const N: usize>(given: [(&str, Option<Value>); N]) -> Map<String, Value> {
    given.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
}

/// JSON knows no infinities; as texts they meet the trigger's own message.
fn number(value: f64) -> Value {
    serde_json::Number::from_f64(value).map_or_else(|| Value::from(value.to_string()), Value::Number)
}
