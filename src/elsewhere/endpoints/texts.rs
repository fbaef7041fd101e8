//! Texts: generations as calls of `/chat/completions` and `/completions`, and their answers as outputs of an
//! engine.
//!
//! Messages go as messages: the endpoint puts its own template around them, and nothing of ours is put around
//! them before.

use serde::Deserialize;
use serde_json::{Map, Value, json};
use steadytext_engine::{Constraint, Error, Finish, Generate, Likelihoods, Output, Sampling};

use super::client::CallFailure;
use super::endpoint_answers::{EndpointAnswer, EndpointUsage, Refused, unreadable};
use super::guided::{self, Form, NoField};
use super::settings::{Api, EndpointSettings, SamplingFields};

/// The tags around thoughts, where an endpoint does not separate them from the answer.
const THOUGHTS: [&str; 2] = ["<think>", "</think>"];
/// The logarithm of no probability at all, as far as a number can say it.
const UNLIKELY: f64 = -1e3;
/// Tokens that a choice may take besides one for each of its bytes, which another tokenizer and a document
/// around it need.
const TOKENS_BESIDE_CHOICE: usize = 16;
const TOKENS_AROUND_CHOICE: usize = 32;
/// Longer than any token of a vocabulary that is in use.
const MAX_BYTES_PER_TOKEN: usize = 512;

/// The body of a call, and the form of its answer.
pub(super) struct CallBody {
    pub(super) body: Map<String, Value>,
    form: Form,
}

#[derive(Deserialize)]
struct Completion {
    choices: Vec<ChoiceJson>,
    #[serde(default)]
    usage: EndpointUsage,
}

#[derive(Deserialize)]
struct ChoiceJson {
    message: Option<MessageJson>,
    text: Option<String>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct MessageJson {
    content: Option<String>,
    refusal: Option<String>,
}

/// The path of texts.
pub(super) fn path(api: Api) -> &'static str {
    if api == Api::Completions { "/completions" } else { "/chat/completions" }
}

/// The question of a generation.
///
/// # Errors
///
/// [`Refused`] for parameters that the endpoint's protocol has no field for.
pub(super) fn question(settings: &EndpointSettings, how: &Generate) -> Result<CallBody, Refused> {
    let mut body = Map::new();
    body.insert("model".to_owned(), settings.model.as_str().into());
    let is_alone = how.system.as_deref().unwrap_or_default().is_empty() && how.history.is_empty();
    match settings.api {
        Api::Completions if is_alone => {
            body.insert("prompt".to_owned(), how.prompt.as_str().into());
        }
        Api::Completions => return Err(Refused::unsupported("conversations and system prompts")),
        _ => {
            body.insert("messages".to_owned(), messages(how));
        }
    }
    body.insert("stream".to_owned(), false.into());
    add_sampling(&mut body, settings, &how.sampling)?;
    if !how.stop.is_empty() {
        body.insert("stop".to_owned(), json!(how.stop));
    }
    let form = match &how.constraint {
        None => Form::Plain,
        Some(constraint) => guided::add(&mut body, constraint, settings).map_err(|error| match error {
            NoField::Unknown(what) => Refused::unsupported(what),
            NoField::Invalid(error) => Refused::Engine(error),
        })?,
    };
    let max_tokens = match form {
        Form::Plain => how.max_tokens,
        // The document's text is escaped, and takes up to twice as many tokens.
        Form::Wrapped => how.max_tokens.saturating_mul(2).saturating_add(TOKENS_AROUND_CHOICE),
    };
    body.insert(settings.max_tokens_field.clone(), max_tokens.into());
    Ok(CallBody { body, form })
}

fn messages(how: &Generate) -> Value {
    let system = how.system.as_deref().filter(|system| !system.is_empty());
    let system = system.map(|system| json!({ "role": "system", "content": system }));
    let said = how.history.iter().map(|said| json!({ "role": said.role.name(), "content": said.text }));
    let prompt = json!({ "role": "user", "content": how.prompt });
    system.into_iter().chain(said).chain([prompt]).collect()
}

/// Adds the sampling parameters. Those without effect are left out, except where the endpoint's own default
/// would differ.
fn add_sampling(
    body: &mut Map<String, Value>,
    settings: &EndpointSettings,
    sampling: &Sampling,
) -> Result<(), Refused> {
    let Sampling { temperature, top_k, top_p, min_p, seed, penalties, logit_bias } = sampling;
    let mut add = |field: &str, value: Value| drop(body.insert(field.to_owned(), value));
    // The number is written with the digits of f32, and not with the many that it has as f64.
    let number = |value: f32| value.to_string().parse::<f64>().unwrap_or(f64::from(value));
    let is_greedy = sampling.is_greedy();
    add("temperature", if is_greedy { 0.0 } else { number(*temperature) }.into());
    if !is_greedy {
        add("top_p", number(*top_p).into());
        // Servers keep seeds in 64 bits with a sign, and some in 32.
        add("seed", i64::try_from(*seed).unwrap_or(i64::MAX).into());
    }
    let repeat_field = match settings.sampling {
        SamplingFields::Openai => None,
        SamplingFields::Vllm => Some("repetition_penalty"),
        SamplingFields::Llama => Some("repeat_penalty"),
    };
    match repeat_field {
        Some(field) => {
            add(field, number(penalties.repeat).into());
            if !is_greedy {
                add("top_k", (*top_k).into());
                add("min_p", number(*min_p).into());
            }
        }
        None if penalties.repeat != 1.0 => return Err(Refused::unsupported("repeat_penalty")),
        None if !is_greedy && *top_k != 0 => return Err(Refused::unsupported("top_k")),
        None if !is_greedy && *min_p != 0.0 => return Err(Refused::unsupported("min_p")),
        None => {}
    }
    if penalties.presence != 0.0 {
        add("presence_penalty", number(penalties.presence).into());
    }
    if penalties.frequency != 0.0 {
        add("frequency_penalty", number(penalties.frequency).into());
    }
    if !logit_bias.is_empty() {
        let biases = logit_bias.iter().map(|(token, bias)| (token.to_string(), number(*bias).into()));
        add("logit_bias", Value::Object(biases.collect()));
    }
    Ok(())
}

/// Reads the endpoint's answer to a generation.
///
/// # Errors
///
/// [`CallFailure`] for an answer that cannot be read. An error that the engine would have raised as well is
/// in the [`EndpointAnswer`].
pub(super) fn answer(
    how: &Generate,
    question: &CallBody,
    bytes: &[u8],
) -> Result<EndpointAnswer, CallFailure> {
    let completion: Completion = serde_json::from_slice(bytes).map_err(|error| unreadable(&error))?;
    let usage = completion.usage;
    let [choice] = <[ChoiceJson; 1]>::try_from(completion.choices)
        .map_err(|_| CallFailure::Broken("the endpoint's answer has not one text".to_owned()))?;
    let ChoiceJson { message, text, finish_reason } = choice;
    let (content, refusal) = match message {
        Some(MessageJson { content, refusal }) => (content, refusal),
        None => (text, None),
    };
    // Some endpoints that translate other protocols to this one give the words of those.
    let reason = finish_reason.as_deref().map(|reason| match reason {
        "max_tokens" | "MAX_TOKENS" | "max_output_tokens" => "length",
        reason => reason,
    });
    let generated_tokens = usage.completion_tokens.unwrap_or(0) as usize;
    if refusal.is_some() || reason == Some("content_filter") {
        return Err(CallFailure::Request("the endpoint's model refuses to answer".to_owned()));
    }
    // Thoughts have used it all up.
    let content = match content {
        None if reason == Some("length") => String::new(),
        content => {
            content.ok_or_else(|| CallFailure::Broken("the endpoint's answer has no text".to_owned()))?
        }
    };
    let text = if how.thinking { content } else { without_thoughts(content) };
    let is_cut = reason == Some("length");
    let outcome = match &how.constraint {
        Some(constraint) => constrained(constraint, question.form, text, generated_tokens, is_cut),
        None => {
            let own_tokens = generated_tokens.saturating_sub(usage.thought_tokens.unwrap_or(0) as usize);
            let (text, is_too_long) = within_length(text, own_tokens, how.max_tokens);
            Ok(stopped(how, text, generated_tokens, is_cut || is_too_long))
        }
    };
    let outcome = outcome.and_then(|output| match &output {
        Output::Text { text, .. } => match text.find('\0') {
            Some(position) => Err(Error::InvalidText { position }),
            None => Ok(output),
        },
        _ => Ok(output),
    });
    Ok(EndpointAnswer { outcome, usage })
}

fn constrained(
    constraint: &Constraint,
    form: Form,
    text: String,
    generated_tokens: usize,
    is_cut: bool,
) -> Result<Output, Error> {
    let text = guided::unwrapped(form, text);
    let checked = match &text {
        Some(text) => constraint.check_answer(text),
        None => Err(Error::Mismatch { reason: "it is not in the form that was asked for".to_owned() }),
    };
    match (text, checked) {
        (Some(text), Ok(())) => {
            Ok(Output::Text { text, generated_tokens, finish: Finish::Complete, out_of_context: false })
        }
        (_, Err(Error::Mismatch { .. })) if is_cut => Err(Error::Unfinished { generated_tokens }),
        (_, Err(error)) => Err(error),
        (None, Ok(())) => Err(Error::Unfinished { generated_tokens }),
    }
}

/// A text that ends before the first of the strings where it is to end, whether the endpoint has seen to it
/// or not.
fn stopped(how: &Generate, mut text: String, generated_tokens: usize, is_cut: bool) -> Output {
    let end = how.stop.iter().filter_map(|stop| text.find(stop.as_str())).min();
    if let Some(end) = end {
        text.truncate(end);
    }
    let finish = match end {
        Some(_) => Finish::Stop,
        None if is_cut => Finish::Length,
        None => Finish::EndOfText,
    };
    Output::Text { text, generated_tokens, finish, out_of_context: false }
}

/// A text of an endpoint that heeds no `max_tokens`: as much of it as so many tokens are, going by its own
/// count, or by its bytes where it has none. Whether something was cut off.
fn within_length(mut text: String, tokens: usize, max_tokens: usize) -> (String, bool) {
    let most = if tokens > max_tokens {
        let share = text.len() as u128 * max_tokens as u128 / tokens as u128;
        usize::try_from(share).unwrap_or(text.len())
    } else {
        max_tokens.saturating_mul(MAX_BYTES_PER_TOKEN)
    };
    if text.len() <= most {
        return (text, false);
    }
    let end = (0..=most).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text.truncate(end);
    (text, true)
}

fn without_thoughts(text: String) -> String {
    let [begin, end] = THOUGHTS;
    match text.trim_start().strip_prefix(begin) {
        None => text,
        Some(rest) => match rest.split_once(end) {
            Some((_, answer)) => answer.trim_start().to_owned(),
            // An answer that ended in the middle of its thoughts has no text.
            None => String::new(),
        },
    }
}

/// The likelihoods of answers as a choice among them: the generation that makes it. `None` where nothing need
/// be asked: what the model would say without a text is nothing that a choice tells.
///
/// # Errors
///
/// [`Refused`] for an answer that has begun already.
pub(super) fn choice(how: &Likelihoods) -> Result<Option<Generate>, Refused> {
    if how.prompt.is_empty() && how.repeated {
        return Ok(None);
    }
    if !how.begin.is_empty() {
        return Err(Refused::unsupported("answers that have begun already"));
    }
    let longest = how.answers.iter().map(String::len).max().unwrap_or(0);
    Ok(Some(Generate {
        prompt: how.prompt.clone(),
        system: how.system.clone(),
        max_tokens: longest + TOKENS_BESIDE_CHOICE,
        constraint: Some(Constraint::Choice(how.answers.clone())),
        ..Generate::default()
    }))
}

/// The likelihoods that a choice stands for: it is certain. Without one, all are equal.
pub(super) fn likelihoods(how: &Likelihoods, chosen: Option<&str>) -> Output {
    let even = -(how.answers.len().max(1) as f64).ln();
    Output::LogProbabilities(match chosen {
        None => vec![even; how.answers.len()],
        Some(chosen) => {
            how.answers.iter().map(|answer| if answer == chosen { 0.0 } else { UNLIKELY }).collect()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_longer_than_was_asked_for_is_cut_and_says_so() {
        let cut = |text: &str, tokens, most| within_length(text.to_owned(), tokens, most);
        assert_eq!(cut("abcdefgh", 8, 8), ("abcdefgh".to_owned(), false));
        assert_eq!(cut("abcdefgh", 8, 2), ("ab".to_owned(), true));
        // In the middle of a character, before it.
        assert_eq!(cut("ééééé", 10, 5), ("éé".to_owned(), true));
        assert_eq!(cut("", 10, 5), (String::new(), false));
        // The number of tokens is unknown.
        assert_eq!(cut(&"x".repeat(5000), 0, 2), ("x".repeat(1024), true));
    }
}
