//! Sampling parameters of a request.

use serde::ser::SerializeStruct;
use serde::{Deserialize, Serialize, Serializer};

/// The seed of requests that give none.
pub const DEFAULT_SEED: u64 = 42;

/// The choice of the next token from the logits: bias, penalties, top-k, top-p, min-p, temperature, in this
/// order.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Sampling {
    /// 0 is greedy: the most likely token, the lowest id of equals.
    pub temperature: f32,
    /// Only the `top_k` most likely tokens; 0 switches the limit off.
    pub top_k: usize,
    /// Only the most likely tokens whose probabilities add up to `top_p`; 1 switches the limit off.
    pub top_p: f32,
    /// Only tokens at least `min_p` times as likely as the most likely one; 0 switches the limit off.
    pub min_p: f32,
    /// One uniform number is drawn per (seed, position).
    pub seed: u64,
    /// Penalties for tokens that the answer has already.
    pub penalties: Penalties,
    /// Biases that are added to the logits of some tokens, each of which is given once.
    pub logit_bias: Vec<(u32, f32)>,
}

/// Penalties that make the answer's own tokens, not those of the prompt, less likely to come again, or more
/// likely.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Penalties {
    /// A logit above 0 is divided by it, another one multiplied; 1 switches it off.
    pub repeat: f32,
    /// Subtracted from the logit; 0 switches it off.
    pub presence: f32,
    /// Subtracted from the logit for each time that the token is there; 0 switches it off.
    pub frequency: f32,
}

impl Penalties {
    /// Whether there are none.
    pub fn are_off(&self) -> bool {
        *self == Penalties::default()
    }
}

impl Default for Penalties {
    fn default() -> Self {
        Penalties { repeat: 1.0, presence: 0.0, frequency: 0.0 }
    }
}

impl Sampling {
    /// Whether the most likely token is taken always, so that seed and filters do not matter.
    pub fn is_greedy(&self) -> bool {
        self.temperature <= 0.0 || self.top_k == 1
    }

    /// Whether the logits are used without biases and penalties.
    pub fn takes_logits_as_they_are(&self) -> bool {
        self.penalties.are_off() && self.logit_bias.is_empty()
    }
}

/// As with [`crate::Generate`]: text formats omit fields that were added later, where they are not used.
impl Serialize for Sampling {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let whole = !serializer.is_human_readable();
        let Sampling { temperature, top_k, top_p, min_p, seed, penalties, logit_bias } = self;
        let added = [whole || !penalties.are_off(), whole || !logit_bias.is_empty()];
        let count = 5 + added.iter().filter(|added| **added).count();
        let mut fields = serializer.serialize_struct("Sampling", count)?;
        fields.serialize_field("temperature", temperature)?;
        fields.serialize_field("top_k", top_k)?;
        fields.serialize_field("top_p", top_p)?;
        fields.serialize_field("min_p", min_p)?;
        fields.serialize_field("seed", seed)?;
        if added[0] {
            fields.serialize_field("penalties", penalties)?;
        }
        if added[1] {
            fields.serialize_field("logit_bias", logit_bias)?;
        }
        fields.end()
    }
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: DEFAULT_SEED,
            penalties: Penalties::default(),
            logit_bias: Vec::new(),
        }
    }
}
