//! Reads the metadata of a model's file: keys that begin with the name of its architecture, checked one by one.
//!
//! The names of the keys are those of the [GGUF specification](https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).

use crate::Error;
use crate::gguf::Gguf;
use crate::kernels::attention::Heads;
use crate::kernels::rope::{Pairs, Rope};

use super::spec::Pooling;

/// Longest context of any request, whatever the model declares.
const MAX_CONTEXT_LENGTH: usize = 32_768;
/// Upper bound of every size in the metadata. What is really there is checked with the tensors; this only
/// keeps products of two sizes far from overflow.
const MAX_SIZE: u32 = 1 << 24;

/// The metadata of a file of one architecture.
#[derive(Clone, Copy)]
pub(super) struct Metadata<'a> {
    pub(super) gguf: &'a Gguf,
    /// The value of `general.architecture`.
    pub(super) architecture: &'static str,
}

impl Metadata<'_> {
    /// The full name of a key of this architecture.
    pub(super) fn key(&self, name: &str) -> String {
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

    /// Number of blocks. A block has one tensor at least, so a file cannot make the list of its blocks longer than
    /// that of its tensors.
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

    fn opt_positive(&self, name: &str) -> Result<Option<f32>, Error> {
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
        if self.gguf.opt_u32(&self.key("expert_count"))?.is_some_and(|experts| experts > 0) {
            return Err(self.gguf.unsupported("it is a mixture of experts"));
        }
        Ok(())
    }

    /// Positions that the model can tell apart, as far as any request may use them.
    ///
    /// # Errors
    /// As [`Metadata::size`].
    pub(super) fn context_length(&self) -> Result<usize, Error> {
        Ok(self.size("context_length")?.min(MAX_CONTEXT_LENGTH))
    }

    /// The same of a model with sliding windows: within one window, a sliding window and full attention are the same.
    ///
    /// # Errors
    /// As [`Metadata::size`].
    pub(super) fn context_length_of_window(&self) -> Result<usize, Error> {
        let length = self.context_length()?;
        Ok(self.opt_size("attention.sliding_window")?.map_or(length, |window| length.min(window)))
    }

    /// Heads of grouped-query attention ([Ainslie et al. 2023](https://arxiv.org/abs/2305.13245)), of `width / heads`
    /// elements where the file does not say otherwise.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] where the numbers contradict each other, [`Error::UnsupportedModel`] for heads that the
    /// kernels cannot compute.
    pub(super) fn heads(&self, width: usize) -> Result<Heads, Error> {
        let query = self.size("attention.head_count")?;
        let kv = self.opt_size("attention.head_count_kv")?.unwrap_or(query);
        if !query.is_multiple_of(kv) {
            return Err(self.gguf.corrupt(format!("{query} query heads cannot share {kv} key-value heads")));
        }
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
        if dim > 1024 || !dim.is_multiple_of(2) {
            return Err(self.gguf.unsupported(format!("the length of its heads is {dim}")));
        }
        Ok(Heads { query, kv, dim })
    }

    /// The rotation of heads of `head_dim` elements, of the first `rope.dimension_count` of them where that is less.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] where the numbers contradict each other, [`Error::UnsupportedModel`] for other kinds of
    /// scaling than the linear one, naming the key.
    pub(super) fn rope(&self, pairs: Pairs, head_dim: usize) -> Result<Rope, Error> {
        let gguf = self.gguf;
        let base = self.opt_positive("rope.freq_base")?.unwrap_or(10_000.0);
        let dimensions = self.opt_size("rope.dimension_count")?.unwrap_or(head_dim);
        if dimensions > head_dim || !dimensions.is_multiple_of(2) {
            return Err(gguf.corrupt(format!(
                "key \"{}\" is {dimensions}, but heads have {head_dim} elements",
                self.key("rope.dimension_count")
            )));
        }
        let scaling = self.key("rope.scaling.type");
        let factor = match gguf.opt_str(&scaling)? {
            Some("none") => 1.0,
            Some("linear") => self.opt_positive("rope.scaling.factor")?.unwrap_or(1.0),
            // Files from before the type was written down.
            None => match self.opt_positive("rope.scaling.factor")? {
                Some(factor) => factor,
                None => self.opt_positive("rope.scale_linear")?.unwrap_or(1.0),
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
        Ok(Rope::new(pairs, dimensions, base, 1.0 / factor, factors.as_deref()))
    }

    /// How hidden states become an embedding; `unsaid` where the file says nothing or "none".
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
            Some(crate::rerank::POOLING_RANK) => Ok(rank),
            Some(other) => Err(self.gguf.unsupported(format!("key \"{key}\" is {other}"))),
        }
    }
}
