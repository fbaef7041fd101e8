//! A text, and what it took.

use pgrx::prelude::*;

use super::answers;
use super::prompt;
use crate::pg::error::OrRaise;
use crate::pg::jsonb::Jsonb;
use crate::request::OnError;
use crate::request::arguments::generate_params;
use crate::request::options::with_options;

/// Generates a text and tells what that took: one row, or none where there is no prompt. It is computed
/// whatever the cache has.
#[pg_extern(volatile, parallel_restricted)]
#[allow(clippy::too_many_arguments, reason = "those of generate")]
#[allow(clippy::type_complexity, reason = "the columns of a table function")]
fn generate_details(
    prompt: Option<&str>,
    max_tokens: Option<i64>,
    use_cache: Option<bool>,
    seed: Option<i64>,
    eos_string: Option<&str>,
    model: Option<&str>,
    size: Option<&str>,
    temperature: Option<f64>,
    on_error: Option<&str>,
    system_prompt: Option<&str>,
    options: Option<Jsonb<'_>>,
    variables: Option<Jsonb<'_>>,
) -> TableIterator<
    'static,
    (
        name!(text, String),
        name!(finish_reason, Option<String>),
        name!(prompt_tokens, Option<i32>),
        name!(cached_tokens, Option<i32>),
        name!(generated_tokens, Option<i32>),
        name!(first_token_ms, Option<i32>),
        name!(total_ms, i32),
        name!(model, String),
    ),
> {
    let on_error = OnError::of(on_error);
    let params = generate_params(max_tokens, use_cache, seed, eos_string, model, size, temperature);
    let params = with_options(params, system_prompt, options).or_raise();
    let prompt = prompt::filled(prompt, variables).or_raise();
    let detailed = prompt.and_then(|prompt| {
        let detailed = answers::answer_in_detail("generate", Some(&prompt), None, params);
        let with_text = detailed.and_then(|detailed| Ok((detailed.answer.clone().into_text()?, detailed)));
        on_error.settle(with_text)
    });
    TableIterator::new(detailed.into_iter().map(|(text, detailed)| {
        let usage = detailed.usage;
        (
            text,
            usage.finish_reason.map(str::to_owned),
            usage.prompt_tokens,
            usage.cached_tokens,
            usage.generated_tokens,
            usage.first_token_ms,
            detailed.total_ms,
            detailed.model,
        )
    }))
}
