//! The sizes and constants of a model, from the metadata of its file.

use crate::Error;
use crate::gguf::Gguf;
use crate::kernels::attention::Heads;
use crate::kernels::rope::{Pairs, Rope};

/// Longest context of any request, whatever the model declares.
pub(crate) const MAX_CONTEXT_LENGTH: usize = 32_768;
/// Upper bound of every size in the metadata. What is really there is checked with the tensors; this only
/// keeps products of two sizes far from overflow.
const MAX_SIZE: u32 = 1 << 24;

/// The families of models that the decoder knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Architecture {
    /// Llama, Mistral and others with their layout.
    Llama,
    /// Qwen 2 and 2.5: biases on queries, keys and values.
    Qwen2,
    /// Qwen 3: queries and keys are normalised per head.
    Qwen3,
}

/// How the hidden states of a text become its embedding; numbers as in llama.cpp's `pooling_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pooling {
    /// 1: the mean over all tokens.
    Mean,
    /// 2: the first token.
    First,
    /// 3: the last token.
    Last,
}

/// Sizes and constants of one model.
#[derive(Debug, Clone)]
pub(crate) struct Hyperparameters {
    pub(crate) architecture: Architecture,
    pub(crate) layers: usize,
    /// Length of a hidden state.
    pub(crate) width: usize,
    pub(crate) feed_forward: usize,
    pub(crate) heads: Heads,
    pub(crate) norm_epsilon: f32,
    /// Positions that the model can tell apart.
    pub(crate) context_length: usize,
    pub(crate) pooling: Pooling,
    pub(crate) rope: Rope,
}

impl Architecture {
    fn of(gguf: &Gguf) -> Result<Architecture, Error> {
        match gguf.str("general.architecture")? {
            "llama" => Ok(Architecture::Llama),
            "qwen2" => Ok(Architecture::Qwen2),
            "qwen3" => Ok(Architecture::Qwen3),
            other => {
                Err(gguf
                    .unsupported(format!("architecture \"{other}\" is none of llama, qwen2, qwen3, bert")))
            }
        }
    }

    fn name(self) -> &'static str {
        match self {
            Architecture::Llama => "llama",
            Architecture::Qwen2 => "qwen2",
            Architecture::Qwen3 => "qwen3",
        }
    }
}

/// Reads keys that begin with the name of the architecture.
pub(super) struct Keys<'a> {
    pub(super) gguf: &'a Gguf,
    pub(super) prefix: &'static str,
}

impl Keys<'_> {
    pub(super) fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }

    fn opt_size(&self, name: &str) -> Result<Option<usize>, Error> {
        let key = self.key(name);
        match self.gguf.opt_u32(&key)? {
            Some(value) if value == 0 || value > MAX_SIZE => {
                Err(self.gguf.corrupt(format!("key \"{key}\" is {value}, out of range")))
            }
            value => Ok(value.map(|value| value as usize)),
        }
    }

    pub(super) fn size(&self, name: &str) -> Result<usize, Error> {
        self.opt_size(name)?
            .ok_or_else(|| self.gguf.corrupt(format!("key \"{}\" is missing", self.key(name))))
    }

    fn opt_positive(&self, name: &str) -> Result<Option<f32>, Error> {
        let key = self.key(name);
        match self.gguf.opt_f32(&key)? {
            Some(value) if value <= 0.0 => {
                Err(self.gguf.corrupt(format!("key \"{key}\" is {value}, not positive")))
            }
            value => Ok(value),
        }
    }
}

impl Hyperparameters {
    /// Reads and checks them.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] naming the key, [`Error::UnsupportedModel`] naming what the decoder lacks.
    pub(crate) fn of(gguf: &Gguf) -> Result<Hyperparameters, Error> {
        let architecture = Architecture::of(gguf)?;
        let keys = Keys { gguf, prefix: architecture.name() };
        if gguf.opt_u32(&keys.key("expert_count"))?.is_some_and(|experts| experts > 0) {
            return Err(gguf.unsupported("it is a mixture of experts"));
        }
        let width = keys.size("embedding_length")?;
        let heads = heads(&keys, width)?;
        let declared = keys.size("context_length")?;
        // Within one window, a sliding window and full attention are the same.
        let window = keys.opt_size("attention.sliding_window")?.unwrap_or(declared);
        let norm_epsilon = gguf.f32(&keys.key("attention.layer_norm_rms_epsilon"))?;
        if !(0.0..1.0).contains(&norm_epsilon) {
            return Err(gguf.corrupt(format!(
                "key \"{}\" is {norm_epsilon}, out of range",
                keys.key("attention.layer_norm_rms_epsilon")
            )));
        }
        Ok(Hyperparameters {
            architecture,
            layers: keys.size("block_count")?,
            width,
            feed_forward: keys.size("feed_forward_length")?,
            heads,
            norm_epsilon,
            context_length: declared.min(window).min(MAX_CONTEXT_LENGTH),
            pooling: pooling(&keys)?,
            rope: rope(&keys, architecture, heads.dim)?,
        })
    }
}

fn heads(keys: &Keys<'_>, width: usize) -> Result<Heads, Error> {
    let query = keys.size("attention.head_count")?;
    let kv = keys.opt_size("attention.head_count_kv")?.unwrap_or(query);
    if !query.is_multiple_of(kv) {
        return Err(keys.gguf.corrupt(format!("{query} query heads cannot share {kv} key-value heads")));
    }
    let dim = match keys.opt_size("attention.key_length")? {
        Some(dim) => dim,
        None if width.is_multiple_of(query) => width / query,
        None => {
            return Err(keys.gguf.corrupt(format!("a width of {width} cannot be split into {query} heads")));
        }
    };
    if keys.opt_size("attention.value_length")?.is_some_and(|length| length != dim) {
        return Err(keys.gguf.unsupported("keys and values have different lengths"));
    }
    if dim > 1024 || !dim.is_multiple_of(2) {
        return Err(keys.gguf.unsupported(format!("the length of its heads is {dim}")));
    }
    Ok(Heads { query, kv, dim })
}

pub(super) fn pooling(keys: &Keys<'_>) -> Result<Pooling, Error> {
    let key = keys.key("pooling_type");
    match keys.gguf.opt_u32(&key)? {
        // 0 is "none": a plain decoder, whose last token has seen the whole text.
        // 4 is "rank", which looks at the last token with a head of its own.
        None | Some(0 | 3 | crate::rerank::POOLING_RANK) => Ok(Pooling::Last),
        Some(1) => Ok(Pooling::Mean),
        Some(2) => Ok(Pooling::First),
        Some(other) => Err(keys.gguf.unsupported(format!("key \"{key}\" is {other}"))),
    }
}

fn rope(keys: &Keys<'_>, architecture: Architecture, head_dim: usize) -> Result<Rope, Error> {
    let gguf = keys.gguf;
    let base = keys.opt_positive("rope.freq_base")?.unwrap_or(10_000.0);
    let dimensions = keys.opt_size("rope.dimension_count")?.unwrap_or(head_dim);
    if dimensions > head_dim || !dimensions.is_multiple_of(2) {
        return Err(gguf.corrupt(format!(
            "key \"{}\" is {dimensions}, but heads have {head_dim} elements",
            keys.key("rope.dimension_count")
        )));
    }
    let scaling = keys.key("rope.scaling.type");
    let factor = match gguf.opt_str(&scaling)? {
        Some("none") => 1.0,
        Some("linear") => keys.opt_positive("rope.scaling.factor")?.unwrap_or(1.0),
        // Files from before the type was written down.
        None => match keys.opt_positive("rope.scaling.factor")? {
            Some(factor) => factor,
            None => keys.opt_positive("rope.scale_linear")?.unwrap_or(1.0),
        },
        Some(other) => return Err(gguf.unsupported(format!("key \"{scaling}\" is \"{other}\""))),
    };
    let factors = match gguf.opt_tensor("rope_freqs.weight")? {
        Some(tensor) => Some(super::weights::vector(gguf, tensor.name, dimensions / 2)?),
        None => None,
    };
    if factors.iter().flatten().any(|factor| !(factor.is_finite() && *factor > 0.0)) {
        return Err(gguf.corrupt("tensor \"rope_freqs.weight\" holds a value that is not positive"));
    }
    let pairs = match architecture {
        Architecture::Llama => Pairs::Neighbours,
        Architecture::Qwen2 | Architecture::Qwen3 => Pairs::Halves,
    };
    Ok(Rope::new(pairs, dimensions, base, 1.0 / factor, factors.as_deref()))
}
