//! Sampling and system prompts: the parameters `system_prompt` and `options` of the functions that generate,
//! and their limits.
//!
//! In the queue each option is a parameter of its own. Options with default values are kept as they were
//! written: the key of an answer is made from the work for the engine, where they make no difference.

use serde_json::{Map, Value};
use steadytext_engine::{MAX_BIASES, MAX_STOP_BYTES, MAX_STOPS, Penalties, Sampling};

use super::params;
use super::values::{in_range, invalid, require, too_long};
use crate::pg::error::PgError;
use crate::pg::jsonb::{Item, Jsonb};

/// The names of all options.
const NAMES: [&str; 9] = [
    "top_p",
    "top_k",
    "min_p",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
    "stop",
    "thinking",
    "logit_bias",
];
/// Most bytes of options as they are stored: more than the limits of each of them allow.
const MAX_BYTES: usize = 256 << 10;
/// Highest bias, and highest penalty.
const MOST: f64 = 100.0;

/// Adds the system prompt and the options to the parameters of a generation. A JSON null counts as absent.
///
/// # Errors
///
/// 22023 for `options` that is no object, and for an unknown option; 54000 for too many bytes. The ranges of
/// values are checked with the other parameters.
pub(crate) fn with_options(
    mut params: Map<String, Value>,
    system_prompt: Option<&str>,
    options: Option<Jsonb<'_>>,
) -> Result<Map<String, Value>, PgError> {
    params.extend(system_prompt.map(|text| ("system_prompt".to_owned(), text.into())));
    let Some(options) = options else { return Ok(params) };
    if options.len() > MAX_BYTES {
        return Err(too_long(format!("options has {} bytes, {MAX_BYTES} are allowed", options.len()))
            .hint("Give fewer or shorter stop strings, or fewer tokens with a bias."));
    }
    let object = match options.root() {
        Some(Item::Object(object)) => object,
        Some(Item::Null) => return Ok(params),
        _ => return Err(invalid("options must be a JSON object").hint(hint())),
    };
    for pair in object.pairs() {
        let (name, item) = pair.ok_or_else(params::unreadable)?;
        if !NAMES.contains(&name) {
            let shown: String = name.chars().take(64).collect();
            return Err(invalid(format!("unknown option \"{shown}\"")).hint(hint()));
        }
        if !matches!(item, Item::Null) {
            params.insert(name.to_owned(), params::value_of_option(name, item)?);
        }
    }
    Ok(params)
}

fn hint() -> String {
    format!("Options are {}.", NAMES.join(", "))
}

/// Checks the value of a parameter, if it is an option; whether it is one.
///
/// # Errors
///
/// 22023 for a value of another type or out of range.
pub(super) fn check(name: &str, value: &Value) -> Result<bool, PgError> {
    check_value(name, value).map_err(|error| if error.hint.is_none() { error.hint(hint()) } else { error })
}

fn check_value(name: &str, value: &Value) -> Result<bool, PgError> {
    match name {
        "top_k" => require(
            value.as_i64().is_some_and(|k| (0..=1_000_000).contains(&k)),
            name,
            "an integer between 0 and 1000000",
        )?,
        "top_p" | "min_p" => require(in_range(value, 0.0, 1.0), name, "a number between 0 and 1")?,
        "repeat_penalty" => require(
            // The engine computes with f32, in which the smallest numbers are 0.
            value.as_f64().is_some_and(|penalty| penalty as f32 > 0.0 && penalty <= MOST),
            name,
            "a number greater than 0 and at most 100",
        )?,
        "presence_penalty" | "frequency_penalty" => {
            require(in_range(value, -MOST, MOST), name, "a number between -100 and 100")?;
        }
        "stop" => {
            let wanted = format!("an array of at most {MAX_STOPS} texts of 1 to {MAX_STOP_BYTES} bytes");
            let fits = |text: &str| (1..=MAX_STOP_BYTES).contains(&text.len());
            let all = value.as_array().is_some_and(|texts| {
                texts.len() <= MAX_STOPS && texts.iter().all(|text| text.as_str().is_some_and(fits))
            });
            require(all, name, &wanted)?;
        }
        "thinking" => require(value.is_boolean(), name, "true or false")?,
        "logit_bias" => {
            let is_bias =
                |(token, bias): (&String, &Value)| token_id(token).is_some() && in_range(bias, -MOST, MOST);
            let wanted = format!(
                "an object of at most {MAX_BIASES} numbers between -100 and 100 by the ids of tokens"
            );
            let all = value.as_object().is_some_and(|all| all.len() <= MAX_BIASES && all.iter().all(is_bias));
            require(all, name, &wanted).map_err(|error| {
                error.hint(
                    "steadytext_tokenize() shows the ids: {\"123\": -100} keeps token 123 out of the answer.",
                )
            })?;
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// The id that a key of logit_bias names: digits, without zeros before them.
fn token_id(key: &str) -> Option<u32> {
    let id: u32 = key.parse().ok()?;
    (id.to_string() == key).then_some(id)
}

/// The sampling parameters other than temperature and seed, from checked parameters.
pub(super) fn sampling(params: &Value) -> Sampling {
    let float = |name: &str| params.get(name).and_then(Value::as_f64).map(|value| value as f32);
    let usual = Sampling::default();
    let Penalties { repeat, presence, frequency } = usual.penalties;
    let biases = params.get("logit_bias").and_then(Value::as_object);
    let bias = |(token, bias): (&String, &Value)| Some((token_id(token)?, bias.as_f64()? as f32));
    let mut logit_bias: Vec<(u32, f32)> = biases.into_iter().flatten().filter_map(bias).collect();
    // The order of biases makes no difference, so they are sorted.
    logit_bias.sort_unstable_by_key(|(token, _)| *token);
    Sampling {
        top_k: params
            .get("top_k")
            .and_then(Value::as_u64)
            .and_then(|k| usize::try_from(k).ok())
            .unwrap_or(usual.top_k),
        top_p: float("top_p").unwrap_or(usual.top_p),
        min_p: float("min_p").unwrap_or(usual.min_p),
        penalties: Penalties {
            repeat: float("repeat_penalty").unwrap_or(repeat),
            presence: float("presence_penalty").unwrap_or(presence),
            frequency: float("frequency_penalty").unwrap_or(frequency),
        },
        logit_bias,
        ..usual
    }
}

/// The strings before which an answer ends, besides eos_string.
pub(super) fn stops(params: &Value) -> impl Iterator<Item = &str> {
    params.get("stop").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}
