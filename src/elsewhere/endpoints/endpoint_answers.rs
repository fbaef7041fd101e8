//! Answers of endpoints, and refusals of requests that an endpoint is not even asked.

use serde::Deserialize;
use serde_json::Value;
use steadytext_engine::remote_job::JobRefusal;
use steadytext_engine::{Error, Output};

use super::client::CallFailure;

/// The most tokens that a call is believed to have taken.
const MAX_TOKENS: f64 = 1e8;

/// The token counts that an endpoint reports for an answer. Servers report them differently, and that is no
/// reason to lose an answer: a count that cannot be read is unknown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "Value")]
pub(super) struct EndpointUsage {
    pub(super) prompt_tokens: Option<u32>,
    pub(super) completion_tokens: Option<u32>,
    pub(super) cached_tokens: Option<u32>,
    /// The tokens of the answer that were thoughts, where they are counted apart.
    pub(super) thought_tokens: Option<u32>,
}

impl From<Value> for EndpointUsage {
    fn from(usage: Value) -> EndpointUsage {
        let number = |path: &str| count(usage.pointer(path)?);
        let prompt_tokens = number("/prompt_tokens").or_else(|| number("/input_tokens"));
        let completion_tokens = number("/completion_tokens").or_else(|| number("/output_tokens"));
        // An endpoint that does not count the tokens of answers tells them by the rest.
        let rest = || number("/total_tokens")?.checked_sub(prompt_tokens?);
        EndpointUsage {
            prompt_tokens,
            completion_tokens: completion_tokens.or_else(rest),
            cached_tokens: number("/prompt_tokens_details/cached_tokens"),
            thought_tokens: number("/completion_tokens_details/reasoning_tokens"),
        }
    }
}

/// A number of tokens, as a number of any kind or as its digits.
fn count(value: &Value) -> Option<u32> {
    let number = match value {
        Value::Number(number) => number.as_f64()?,
        Value::String(digits) if digits.len() <= 16 => digits.trim().parse().ok()?,
        _ => return None,
    };
    (0.0..=MAX_TOKENS).contains(&number).then_some(number.round() as u32)
}

impl EndpointUsage {
    /// The share of each of the texts that were sent together, by its length: all of them together have what
    /// the endpoint says.
    pub(super) fn shares(self, lengths: &[usize]) -> Vec<EndpointUsage> {
        let whole: u64 = lengths.iter().map(|length| *length as u64 + 1).sum();
        let (mut before, mut counted) = (0_u64, 0_u32);
        let share = |length: &usize| {
            before += *length as u64 + 1;
            let tokens = self.prompt_tokens.map(|tokens| {
                let upto = u64::from(tokens) * before / whole.max(1);
                let upto = u32::try_from(upto).unwrap_or(tokens);
                let own = upto - counted;
                counted = upto;
                own
            });
            EndpointUsage { prompt_tokens: tokens, ..EndpointUsage::default() }
        };
        lengths.iter().map(share).collect()
    }
}

/// The result of a piece of work.
pub(super) struct EndpointAnswer {
    /// The same output or error as the engine would have given.
    pub(super) outcome: Result<Output, Error>,
    pub(super) usage: EndpointUsage,
}

/// The reason why an endpoint is not asked.
#[derive(Debug)]
pub(super) enum Refused {
    /// The endpoint's protocol has no words for something that is asked.
    Unsupported(String),
    /// The engine would refuse it as well.
    Engine(Error),
}

impl Refused {
    pub(super) fn unsupported(what: &str) -> Refused {
        Refused::Unsupported(format!("the endpoint of the model does not take {what}"))
    }
}

/// The refusal that the row of a request gets when no endpoint has answered it.
pub(super) fn refusal(message: String, code: &str, retry: bool) -> JobRefusal {
    JobRefusal { message, code: code.to_owned(), retry }
}

/// An answer that is none.
pub(super) fn unreadable(error: &serde_json::Error) -> CallFailure {
    // The error's own message may quote the endpoint's answer, so only its place is reported.
    let what = match error.classify() {
        serde_json::error::Category::Data => "has not the form that was asked for",
        _ => "is no JSON document",
    };
    CallFailure::Broken(format!(
        "the endpoint's answer {what}: line {} column {}",
        error.line(),
        error.column()
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn usage(value: Value) -> EndpointUsage {
        serde_json::from_value(value).expect("anything can be read")
    }

    #[test]
    fn what_servers_say_of_tokens_is_read_however_they_say_it() {
        let counts = |prompt, completion, cached, thoughts| EndpointUsage {
            prompt_tokens: prompt,
            completion_tokens: completion,
            cached_tokens: cached,
            thought_tokens: thoughts,
        };
        for (said, read) in [
            (json!({ "prompt_tokens": 7, "completion_tokens": 3 }), counts(Some(7), Some(3), None, None)),
            (json!({ "prompt_tokens": 7.0, "completion_tokens": "3" }), counts(Some(7), Some(3), None, None)),
            (json!({ "prompt_tokens": 7, "total_tokens": 12 }), counts(Some(7), Some(5), None, None)),
            (json!({ "input_tokens": 4, "output_tokens": 2 }), counts(Some(4), Some(2), None, None)),
            (
                json!({ "prompt_tokens": 7, "completion_tokens": null, "prompt_tokens_details": null,
                    "completion_tokens_details": { "reasoning_tokens": 2 } }),
                counts(Some(7), None, None, Some(2)),
            ),
            (
                json!({ "prompt_tokens": 9, "prompt_tokens_details": { "cached_tokens": 8 } }),
                counts(Some(9), None, Some(8), None),
            ),
            (json!({ "prompt_tokens": -1, "completion_tokens": 1e300 }), EndpointUsage::default()),
            (json!({ "prompt_tokens": [1], "completion_tokens": {} }), EndpointUsage::default()),
            (json!([7, 3]), EndpointUsage::default()),
            (json!("many"), EndpointUsage::default()),
            (json!(null), EndpointUsage::default()),
        ] {
            assert_eq!(usage(said.clone()), read, "{said}");
        }
    }

    #[test]
    fn shares_of_texts_that_were_sent_together_are_all_of_it() {
        let usage = usage(json!({ "prompt_tokens": 10 }));
        let shares = usage.shares(&[0, 100, 3]);
        let tokens: Vec<u32> = shares.iter().filter_map(|share| share.prompt_tokens).collect();
        assert_eq!((tokens.len(), tokens.iter().sum::<u32>()), (3, 10), "{tokens:?}");
        assert!(tokens[1] > tokens[2], "{tokens:?}");
        assert_eq!(EndpointUsage::default().shares(&[1, 2]), vec![EndpointUsage::default(); 2]);
    }
}
