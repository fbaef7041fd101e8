//! Reads the metadata of a model's file: keys that begin with the name of its architecture, checked one by
//! one.
//!
//! The names of the keys are those of the [GGUF
//! specification](https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).

use std::cell::RefCell;
use std::collections::BTreeSet;

use crate::Error;
use crate::gguf::Gguf;
use crate::kernels::attention::AttentionSizes;
use crate::kernels::rope::{Pairs, Rope, Yarn};
use crate::kernels::routing::Weighting;

use super::spec::{ExpertsSpec, Pooling};
use super::tensors::vector;

/// `<arch>.pooling_type` of models with a head for ranking.
pub(crate) const POOLING_RANK: u32 = 4;

/// Longest context of any request, whatever the model declares.
const MAX_CONTEXT_LENGTH: usize = 32_768;
/// Upper bound of every size in the metadata. The actual sizes are checked with the tensors; this only keeps
/// products of two sizes far from overflow.
const MAX_SIZE: u32 = 1 << 24;
/// Most experts of a block, twice what llama.cpp allows.
const MAX_EXPERTS: usize = 1024;
/// Upper bound of the positions that a convolution sees.
const MAX_TAPS: usize = 64;

/// The metadata of a file of one architecture.
#[derive(Clone, Copy)]
pub(super) struct Metadata<'a> {
    pub(super) gguf: &'a Gguf,
    /// The value of `general.architecture`.
    pub(super) architecture: &'static str,
    /// The names of the keys that were read, without that of the architecture.
    pub(super) read: &'a RefCell<BTreeSet<String>>,
}

impl Metadata<'_> {
    /// The full name of a key of this architecture, which counts as read from here on.
    pub(super) fn key(&self, name: &str) -> String {
        self.read.borrow_mut().insert(name.to_owned());
        format!("{}.{name}", self.architecture)
    }

    /// A size that may be missing.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] where it is 0 or beyond any model.
    pub(super) fn opt_size(&self, name: &str) -> Result<Option<usize>, Error> {
        let key = self.key(name);
        match self.gguf.opt_u32(&key)? {
            Some(value) if value == 0 || value > MAX_SIZE => {
                Err(self.gguf.corrupt(format!("key \"{key}\" is {value}, out of range")))
            }
            value => Ok(value.map(|value| value as usize)),
        }
    }

    /// A size.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] where it is missing, 0 or beyond any model.
    pub(super) fn size(&self, name: &str) -> Result<usize, Error> {
        self.opt_size(name)?
            .ok_or_else(|| self.gguf.corrupt(format!("key \"{}\" is missing", self.key(name))))
    }

    /// A number of layers, which may be 0 or missing.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] where it is not a number.
    pub(super) fn layers_or_0(&self, name: &str) -> Result<usize, Error> {
        Ok(self.gguf.opt_u32(&self.key(name))?.unwrap_or(0) as usize)
    }

    /// Number of blocks. A block has one tensor at least, so a file cannot make the list of its blocks longer
    /// than that of its tensors.
    ///
    /// # Errors
    /// As [`Metadata::size`].
    pub(super) fn block_count(&self) -> Result<usize, Error> {
        let count = self.size("block_count")?;
        let tensors = self.gguf.tensors().len();
        if count > tensors {
            return Err(self.gguf.corrupt(format!(
                "key \"{}\" is {count}, but the file has {tensors} tensors",
                self.key("block_count")
            )));
        }
        Ok(count)
    }

    /// A number above 0 that may be missing.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] where it is not positive.
    pub(super) fn opt_positive(&self, name: &str) -> Result<Option<f32>, Error> {
        let key = self.key(name);
        match self.gguf.opt_f32(&key)? {
            Some(value) if value <= 0.0 => {
                Err(self.gguf.corrupt(format!("key \"{key}\" is {value}, not positive")))
            }
            value => Ok(value),
        }
    }

    /// The epsilon of a norm.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] where it is missing or out of range.
    pub(super) fn epsilon(&self, name: &str) -> Result<f32, Error> {
        let epsilon = self.gguf.f32(&self.key(name))?;
        if !(0.0..1.0).contains(&epsilon) {
            return Err(self.gguf.corrupt(format!("key \"{}\" is {epsilon}, out of range", self.key(name))));
        }
        Ok(epsilon)
    }

    /// Refuses a mixture of experts.
    ///
    /// # Errors
    /// [`Error::UnsupportedModel`].
    pub(super) fn refuse_experts(&self) -> Result<(), Error> {
        if self.has_experts()? {
            return Err(self.gguf.unsupported("it is a mixture of experts"));
        }
        Ok(())
    }

    /// Whether it is a mixture of experts.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] where their number is none.
    pub(super) fn has_experts(&self) -> Result<bool, Error> {
        Ok(self.gguf.opt_u32(&self.key("expert_count"))?.is_some_and(|experts| experts > 0))
    }

    /// The experts of every block, weighted as the family does it.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] where their numbers are missing or out of range, [`Error::UnsupportedModel`]
    /// for a router that works in another way, naming the key.
    pub(super) fn experts(&self, weighting: Weighting) -> Result<ExpertsSpec, Error> {
        let gguf = self.gguf;
        let (count, used) = (self.size("expert_count")?, self.size("expert_used_count")?);
        if count > MAX_EXPERTS || used > count {
            return Err(gguf.corrupt(format!(
                "keys \"{}\" and \"{}\" are {used} of {count}, out of range",
                self.key("expert_used_count"),
                self.key("expert_count")
            )));
        }
        let other = |name: &str, value: String| {
            Err(gguf.unsupported(format!("key \"{}\" is {value}", self.key(name))))
        };
        // 1 is a softmax over all experts, 3 one over the logits of the used ones.
        if let Some(gating @ (2 | 4..)) = gguf.opt_u32(&self.key("expert_gating_func"))? {
            return other("expert_gating_func", gating.to_string());
        }
        match gguf.opt_bool(&self.key("expert_weights_norm"))? {
            Some(norm) if norm != (weighting == Weighting::SoftmaxOfUsed) => {
                return other("expert_weights_norm", norm.to_string());
            }
            _ => {}
        }
        match gguf.opt_f32(&self.key("expert_weights_scale"))? {
            Some(scale) if scale != 1.0 && scale != 0.0 => {
                return other("expert_weights_scale", scale.to_string());
            }
            _ => {}
        }
        for name in ["expert_group_count", "expert_shared_count", "leading_dense_block_count"] {
            // A single group of experts is no grouping.
            let nothing = u32::from(name == "expert_group_count");
            if let Some(value) = gguf.opt_u32(&self.key(name))?.filter(|value| *value > nothing) {
                return other(name, value.to_string());
            }
        }
        Ok(ExpertsSpec { count, used, weighting, shared: None })
    }

    /// Positions that the model can tell apart, as far as any request may use them.
    ///
    /// # Errors
    /// As [`Metadata::size`].
    pub(super) fn context_length(&self) -> Result<usize, Error> {
        Ok(self.size("context_length")?.min(MAX_CONTEXT_LENGTH))
    }

    /// Number of positions that a row sees where a sliding window is in force; None where the model has none.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] where it is beyond any model.
    pub(super) fn window(&self) -> Result<Option<usize>, Error> {
        // Some writers write 0 for no window.
        let key = self.key("attention.sliding_window");
        let window = self.gguf.opt_u32(&key)?.filter(|window| *window > 0);
        Ok(window.map(|window| window as usize))
    }

    /// Whether a sliding window is in force in each of `blocks`: as the file says, or in all but the last one
    /// of each `period`.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] where the pattern does not have a value for each block.
    pub(super) fn windowed(&self, blocks: usize, period: usize) -> Result<Vec<bool>, Error> {
        let key = self.key("attention.sliding_window_pattern");
        let period = match self.gguf.opt_u32(&key) {
            Ok(written) => written.map_or(period, |period| period as usize),
            // An array with a value for each block.
            Err(_) => {
                let pattern = self.gguf.opt_per_layer(&key, blocks)?.unwrap_or_default();
                return Ok(pattern.iter().map(|windowed| *windowed != 0).collect());
            }
        };
        Ok((0..blocks).map(|block| period == 0 || block % period < period - 1).collect())
    }

    /// Heads of grouped-query attention ([Ainslie et al. 2023](https://arxiv.org/abs/2305.13245)), of `width
    /// / heads` elements where the file does not say otherwise.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] where the numbers contradict each other, [`Error::UnsupportedModel`] for heads
    /// that the kernels cannot compute.
    pub(super) fn heads(&self, width: usize) -> Result<AttentionSizes, Error> {
        let query = self.size("attention.head_count")?;
        let kv = self.kv_heads()?.unwrap_or(query);
        let dim = match self.opt_size("attention.key_length")? {
            Some(dim) => dim,
            None if width.is_multiple_of(query) => width / query,
            None => {
                return Err(self
                    .gguf
                    .corrupt(format!("a width of {width} cannot be split into {query} heads")));
            }
        };
        if self.opt_size("attention.value_length")?.is_some_and(|length| length != dim) {
            return Err(self.gguf.unsupported("keys and values have different lengths"));
        }
        self.checked_heads(AttentionSizes { query, kv, dim })
    }

    /// The same heads, if they can be computed.
    ///
    /// # Errors
    /// As [`Metadata::heads`].
    pub(super) fn checked_heads(&self, heads: AttentionSizes) -> Result<AttentionSizes, Error> {
        let AttentionSizes { query, kv, dim } = heads;
        if !query.is_multiple_of(kv) {
            return Err(self.gguf.corrupt(format!("{query} query heads cannot share {kv} key-value heads")));
        }
        if dim > 1024 || !dim.is_multiple_of(2) {
            return Err(self.gguf.unsupported(format!("the length of its heads is {dim}")));
        }
        Ok(heads)
    }

    /// A size for each of `count` blocks, which may have one value for all.
    ///
    /// # Errors
    /// As [`Metadata::size`].
    pub(super) fn layer_sizes(&self, name: &str, count: usize) -> Result<Vec<usize>, Error> {
        let key = self.key(name);
        let sizes = self.gguf.opt_per_layer(&key, count)?;
        let sizes = sizes.ok_or_else(|| self.gguf.corrupt(format!("key \"{key}\" is missing")))?;
        if let Some(size) = sizes.iter().find(|size| !(1..=i64::from(MAX_SIZE)).contains(*size)) {
            return Err(self.gguf.corrupt(format!("key \"{key}\" holds {size}, out of range")));
        }
        Ok(sizes.into_iter().map(|size| size as usize).collect())
    }

    /// Number of key-value heads of the layers that have any, where the file gives it layer by layer.
    fn kv_heads(&self) -> Result<Option<usize>, Error> {
        let key = self.key("attention.head_count_kv");
        let Some(layers) = self.gguf.opt_per_layer(&key, self.block_count()?)? else { return Ok(None) };
        let most = layers.iter().copied().max().unwrap_or(0);
        if !(1..=i64::from(MAX_SIZE)).contains(&most) {
            return Err(self.gguf.corrupt(format!("key \"{key}\" is {most}, out of range")));
        }
        if layers.iter().any(|count| ![0, most].contains(count)) {
            return Err(self.gguf.unsupported(format!("key \"{key}\" differs from layer to layer")));
        }
        Ok(Some(most as usize))
    }

    /// Whether a key has a number other than 0 for each block; None without the key.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] where the key does not have a number for each block.
    pub(super) fn opt_flags(&self, name: &str) -> Result<Option<Vec<bool>>, Error> {
        let flags = self.gguf.opt_per_layer(&self.key(name), self.block_count()?)?;
        Ok(flags.map(|flags| flags.iter().map(|flag| *flag != 0).collect()))
    }

    /// Number of positions that a convolution sees.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] where the key is missing or beyond any model.
    pub(super) fn taps(&self, name: &str) -> Result<usize, Error> {
        match self.size(name)? {
            taps @ 2..=MAX_TAPS => Ok(taps),
            taps => Err(self.gguf.corrupt(format!("key \"{}\" is {taps}, out of range", self.key(name)))),
        }
    }

    /// The base of the rotation's frequencies.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] where it is not positive.
    pub(super) fn rope_base(&self) -> Result<f32, Error> {
        Ok(self.opt_positive("rope.freq_base")?.unwrap_or(10_000.0))
    }

    /// The rotation of heads of `head_dim` elements, or of the first `rope.dimension_count` of them where
    /// that is less, with the file's scaling.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] where the numbers contradict each other, [`Error::UnsupportedModel`] for other
    /// kinds of scaling than these, naming the key.
    pub(super) fn rope(&self, pairs: Pairs, head_dim: usize) -> Result<Rope, Error> {
        let gguf = self.gguf;
        let base = self.rope_base()?;
        let dimensions = self.rope_dimensions(head_dim)?;
        let scaling = self.key("rope.scaling.type");
        // Keys that only some kinds of scaling use have no effect with the others, and count as read.
        for name in ["original_context_length", "yarn_beta_fast", "yarn_beta_slow", "yarn_log_multiplier"] {
            self.key(&format!("rope.scaling.{name}"));
        }
        self.key("rope.scale_linear");
        let factor = self.opt_positive("rope.scaling.factor")?;
        // Files from before the type was written down have a linear factor, under one of two names.
        let linear = match factor {
            Some(factor) => factor,
            None => self.opt_positive("rope.scale_linear")?.unwrap_or(1.0),
        };
        let magnitude = f64::from(self.opt_positive("rope.scaling.attn_factor")?.unwrap_or(1.0));
        let factors = self.rope_factors(dimensions)?;
        let plain = |slower: f32| Rope::new(pairs, dimensions, base, 1.0 / slower, factors.as_deref());
        Ok(match gguf.opt_str(&scaling)? {
            Some("none") => plain(1.0),
            Some("linear" | "longrope") | None => plain(linear).with_magnitude(magnitude),
            Some("yarn") => {
                let factor = factor.unwrap_or(1.0);
                let yarn = Yarn {
                    factor,
                    original: self.original_context_length()?,
                    fast: self.opt_positive("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
                    slow: self.opt_positive("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
                };
                // Slower rotations lower the entropy of attention; this factor compensates for it.
                let entropy =
                    |multiplier: f64| 0.1 * multiplier * libm::log(f64::from(factor.max(1.0))) + 1.0;
                let made_up = match gguf.opt_f32(&self.key("rope.scaling.yarn_log_multiplier"))? {
                    Some(multiplier) if multiplier != 0.0 => entropy(1.0) / entropy(f64::from(multiplier)),
                    _ => entropy(1.0),
                };
                plain(1.0).stretched(base, yarn).with_magnitude(magnitude * made_up)
            }
            Some(other) => {
                return Err(gguf.unsupported(format!("key \"{scaling}\" is \"{}\"", other.escape_debug())));
            }
        })
    }

    /// The rotation with frequencies of `base`, without scaling: that of layers with a window of positions.
    ///
    /// # Errors
    /// As [`Metadata::rope`].
    pub(super) fn plain_rope(&self, pairs: Pairs, head_dim: usize, base: f32) -> Result<Rope, Error> {
        Ok(Rope::new(pairs, self.rope_dimensions(head_dim)?, base, 1.0, None))
    }

    /// Elements of a head that are rotated.
    fn rope_dimensions(&self, head_dim: usize) -> Result<usize, Error> {
        let dimensions = self.opt_size("rope.dimension_count")?.unwrap_or(head_dim);
        if dimensions > head_dim || !dimensions.is_multiple_of(2) {
            return Err(self.gguf.corrupt(format!(
                "key \"{}\" is {dimensions}, but heads have {head_dim} elements",
                self.key("rope.dimension_count")
            )));
        }
        Ok(dimensions)
    }

    /// Positions of the context that the model was trained with, before it was stretched.
    ///
    /// # Errors
    /// As [`Metadata::size`].
    pub(super) fn original_context_length(&self) -> Result<usize, Error> {
        match self.opt_size("rope.scaling.original_context_length")? {
            Some(length) => Ok(length),
            None => self.size("context_length"),
        }
    }

    /// Divisors of the frequencies of rotation, one for each pair; None where the file has none. They are for
    /// all contexts (Llama 3), or for short and for long ones ([LongRoPE](https://arxiv.org/abs/2402.13753)).
    /// Which of these two is decided once for the model, by the longest context that it is used with, so that
    /// all requests see the same model.
    fn rope_factors(&self, dimensions: usize) -> Result<Option<Vec<f32>>, Error> {
        let gguf = self.gguf;
        let read = |name: &str| -> Result<Option<Vec<f32>>, Error> {
            if gguf.opt_tensor(name)?.is_none() {
                return Ok(None);
            }
            let factors = vector(gguf, name, dimensions / 2)?;
            match factors.iter().all(|factor| factor.is_finite() && *factor > 0.0) {
                true => Ok(Some(factors)),
                false => Err(gguf.corrupt(format!("tensor \"{name}\" holds a value that is not positive"))),
            }
        };
        let [long_name, short_name] = ["rope_factors_long.weight", "rope_factors_short.weight"];
        if let Some(factors) = read("rope_freqs.weight")? {
            for name in [long_name, short_name] {
                if gguf.opt_tensor(name)?.is_some() {
                    return Err(
                        gguf.unsupported(format!("tensor \"{name}\" stands beside \"rope_freqs.weight\""))
                    );
                }
            }
            return Ok(Some(factors));
        }
        match (read(long_name)?, read(short_name)?) {
            (None, None) => Ok(None),
            (Some(long), Some(short)) => {
                let is_long = self.context_length()? > self.original_context_length()?;
                Ok(Some(if is_long { long } else { short }))
            }
            (Some(_), None) => Err(gguf.corrupt(format!("tensor \"{short_name}\" is missing"))),
            (None, Some(_)) => Err(gguf.corrupt(format!("tensor \"{long_name}\" is missing"))),
        }
    }

    /// The pooling of hidden states; `unsaid` where the file has no key or says "none".
    ///
    /// # Errors
    /// [`Error::UnsupportedModel`] for other numbers than llama.cpp's, naming the key.
    pub(super) fn pooling(&self, unsaid: Pooling, rank: Pooling) -> Result<Pooling, Error> {
        let key = self.key("pooling_type");
        match self.gguf.opt_u32(&key)? {
            None | Some(0) => Ok(unsaid),
            Some(1) => Ok(Pooling::Mean),
            Some(2) => Ok(Pooling::First),
            Some(3) => Ok(Pooling::Last),
            Some(POOLING_RANK) => Ok(rank),
            Some(other) => Err(self.gguf.unsupported(format!("key \"{key}\" is {other}"))),
        }
    }
}
