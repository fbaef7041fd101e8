//! The specification of a model as data: one [`ModelSpec`] says of every block what it computes, so that the
//! code that computes it knows no families of models. The files of [`super::arch`] fill it from the metadata
//! of a file.
//!
//! An enum here has the variants that the kernels can compute. A family that needs more adds a variant, and
//! the compiler shows where it has to be computed: [`super::block`], and [`super::state`] for the memory of
//! sequences.

pub(crate) use crate::computing::Pooling;
use crate::kernels::attention::AttentionSizes;
use crate::kernels::rope::Rope;
use crate::kernels::routing::Weighting;

/// A model.
#[derive(Debug, Clone)]
pub(crate) struct ModelSpec {
    pub(crate) kind: Kind,
    /// Length of a hidden state.
    pub(crate) width: usize,
    /// Positions that the model can tell apart.
    pub(crate) context_length: usize,
    pub(crate) pooling: Pooling,
    /// The rotations that its blocks name by their index; most models have one.
    pub(crate) ropes: Vec<Rope>,
    /// Its blocks, in the order in which they are computed.
    pub(crate) blocks: Vec<BlockSpec>,
    /// Length of the embedding that each block gets of each token, beside that of the model: `[blocks,
    /// length]` for a row ([`super::per_layer`]).
    pub(crate) per_layer: Option<usize>,
    /// Whether each row has several residual streams, `[STREAMS, width]`, of which blocks compute the first
    /// ([`super::streams`]); otherwise it has one, `[width]`.
    pub(crate) streams: bool,
    /// The tensors that it is made of.
    pub(crate) tensors: TensorNames,
}

/// The kind of a model, with the layers before its first block and behind its last one.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    /// A model that predicts the next token. Before the blocks: an embedding of tokens. Behind them: a norm,
    /// and a head over the vocabulary. The head is the embedding's matrix where the file has none of its own.
    Decoder {
        /// The factor of embeddings of tokens.
        embedding_scale: f32,
        /// The norm of the final hidden states.
        output_norm: NormSpec,
        logits: LogitsSpec,
    },
    /// A model whose tokens see each other both ways. Before the blocks: the sum of the embeddings of token,
    /// position and type, normalised in most models. Behind them: a pool, or the head of a cross-encoder.
    Encoder {
        /// The factor of embeddings of tokens.
        embedding_scale: f32,
        /// The norm of the sums.
        embedding_norm: Option<NormSpec>,
        /// Whether positions have embeddings; otherwise blocks rotate them in.
        positions: bool,
        /// The norm of the hidden states behind the last block.
        output_norm: Option<NormSpec>,
        /// The length between the two linear layers that are applied to a text's vector, where there are
        /// some.
        projections: Option<usize>,
        head: HeadSpec,
    },
}

/// The head of a cross-encoder.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct HeadSpec {
    /// The hidden state that goes into it.
    pub(crate) pooling: Pooling,
    pub(crate) activation: HeadActivation,
}

/// The activation between the two layers of a head.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum HeadActivation {
    /// The hyperbolic tangent, as in BERT's pooler.
    Tanh,
    /// GELU and a norm, as in ModernBERT.
    GeluNorm(NormSpec),
}

/// The computation of logits from the head's outputs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct LogitsSpec {
    /// The factor of the outputs.
    pub(crate) scale: f32,
    /// Behind the scale, they become `cap · tanh(x / cap)`.
    pub(crate) cap: Option<f32>,
}

/// One block: attention or another mixer, then feed-forward.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockSpec {
    pub(crate) residual: Residual,
    /// The factor of the halves' results before they are added; 1 with [`Residual::PostNorm`].
    pub(crate) residual_scale: f32,
    /// All norms of the block.
    pub(crate) norm: NormSpec,
    pub(crate) mixer: Mixer,
    /// Whether the mixer's input is not normalised, although the block's other half begins with a norm.
    pub(crate) bare_mixer: bool,
    /// The attention of the block, where it is the block's mixer.
    pub(crate) attention: AttentionSpec,
    /// The name of the norm before feed-forward.
    pub(crate) feed_forward_norm: &'static str,
    pub(crate) feed_forward: FeedForwardSpec,
    /// The rank of a low-rank product of attention's input that is added to attention's result: `x +
    /// norm(right(left(x)))` with `left` `[rank, width]` and `right` `[width, rank]`; None without it.
    pub(crate) laurel: Option<usize>,
    /// Whether the block's result is multiplied with a number of the file.
    pub(crate) output_scale: bool,
}

/// The place of the norms of `f`, a half of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Residual {
    /// `x + f(norm(x))`, as in GPT-2 and most decoders since ([Xiong et al.
    /// 2020](https://arxiv.org/abs/2002.04745)).
    PreNorm,
    /// `x + norm(f(norm(x)))`, as in Gemma 2.
    Sandwich,
    /// `x + norm(f(x))`, as in OLMo 2 ([OLMo et al. 2024](https://arxiv.org/abs/2501.00656)).
    NormedResult,
    /// `norm(x + f(x))`, as in the first transformer ([Vaswani et al.
    /// 2017](https://arxiv.org/abs/1706.03762)) and BERT.
    PostNorm,
}

/// A norm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct NormSpec {
    pub(crate) kind: NormKind,
    /// The term added to the mean square or the variance.
    pub(crate) epsilon: f32,
}

/// The divisor of a norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NormKind {
    /// The root of the mean square ([Zhang and Sennrich 2019](https://arxiv.org/abs/1910.07467)).
    Rms,
    /// The standard deviation, after the mean is subtracted; with a bias ([Ba et al.
    /// 2016](https://arxiv.org/abs/1607.06450)).
    Layer,
    /// The same without a bias.
    LayerWithoutBias,
}

/// Attention.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttentionSpec {
    pub(crate) heads: AttentionSizes,
    /// The factor of scores.
    pub(crate) scale: f32,
    /// Scores become `cap · tanh(score / cap)`.
    pub(crate) cap: Option<f32>,
    pub(crate) span: Span,
    /// The rotation of queries and keys, by its index in [`ModelSpec::ropes`]; None where positions are not
    /// rotated in.
    pub(crate) rope: Option<usize>,
    pub(crate) query_key_norm: Option<QueryKeyNorm>,
    /// Whether each query head has a learned score that takes part in the softmax and has no value.
    pub(crate) sinks: bool,
    /// The fall of scores with the distance, where there is one.
    pub(crate) alibi: Option<Alibi>,
    /// Whether the query projection gives a gate behind each head: the head's result is multiplied with the
    /// gate's logistic function.
    pub(crate) gated: bool,
    pub(crate) temperature: Option<Temperature>,
    /// The norm of each value head, which has no weights.
    pub(crate) value_norm: Option<NormSpec>,
    /// Whether keys are values too, before they are normalised and rotated.
    pub(crate) keys_are_values: bool,
    /// The block whose keys and values it uses, where it has none of its own.
    pub(crate) shares: Option<usize>,
}

/// Linear biases: a score loses the head's slope for each position of distance. The slopes of the heads are a
/// geometric sequence ([Press et al. 2021](https://arxiv.org/abs/2108.12409)).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Alibi {
    /// The last slope is 2 to the power of minus this, where the number of heads is a power of two.
    pub(crate) max_bias: f32,
}

/// The part of a block that combines the positions of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mixer {
    Attention,
    ShortConv(ShortConvSpec),
    DeltaNet(DeltaNetSpec),
    StateSpace(StateSpaceSpec),
}

/// `out(c · conv(b · x))`, where b, c and x are projections of the input and `conv` is a causal convolution
/// of each channel by itself, as in LFM2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ShortConvSpec {
    /// Number of channels, which is the width of the model.
    pub(crate) channels: usize,
    /// Number of positions that it sees, its own included.
    pub(crate) taps: usize,
}

/// A gated delta net ([Yang et al. 2024](https://arxiv.org/abs/2412.06464)): each head has a matrix that
/// learns which value belongs to which key, and forgets. Queries, keys and values go through a causal
/// convolution first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DeltaNetSpec {
    /// Number of heads of queries and keys. Value head `h` has those of head `h` modulo this.
    pub(crate) key_heads: usize,
    pub(crate) value_heads: usize,
    /// Elements of a head, of keys and of values.
    pub(crate) dim: usize,
    /// Number of positions that the convolution sees, its own included.
    pub(crate) taps: usize,
}

/// A selective state space as in Mamba 2 ([Dao and Gu 2024](https://arxiv.org/abs/2405.21060)): each head has
/// a matrix that decays and takes in input, both by amounts that the position decides. Its inputs, and the
/// vectors with which it is written and read, go through a causal convolution first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StateSpaceSpec {
    pub(crate) heads: usize,
    /// Elements of a head.
    pub(crate) dim: usize,
    /// Number of groups of consecutive heads. The heads of a group are written and read with the same
    /// vectors.
    pub(crate) groups: usize,
    /// Number of values that are kept for each element of a head.
    pub(crate) state: usize,
    /// Number of positions that the convolution sees, its own included.
    pub(crate) taps: usize,
}

/// Norms of queries and keys, before they are rotated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum QueryKeyNorm {
    /// A norm of each head by itself ([Dehghani et al. 2023](https://arxiv.org/abs/2302.05442)).
    Head(NormSpec),
    /// A norm of all query heads together, and one of all key heads together.
    Row(NormSpec),
}

/// Queries at position `p` are multiplied with `1 + scale · ln(1 + floor(p / interval))`, so that attention
/// over long texts stays sharp ([Nakanishi 2025](https://arxiv.org/abs/2501.19399)).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Temperature {
    pub(crate) scale: f32,
    pub(crate) interval: usize,
}

/// The positions that a row sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Span {
    /// The positions up to its own.
    Causal,
    /// Its own position and those before it, so many in all.
    Window(usize),
    /// All positions of its text.
    BothWays,
    /// The positions that are no further away than this, on both sides.
    Near(usize),
}

/// Feed-forward.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FeedForwardSpec {
    pub(crate) kind: FeedForwardKind,
    /// Length of its inner rows.
    pub(crate) width: usize,
    /// Gates less than so many standard deviations above the mean of their row become 0; the others are
    /// reduced by that bound.
    pub(crate) cutoff: Option<f32>,
    /// The experts, where there are several feed-forwards of this kind and width, of which each row uses
    /// some.
    pub(crate) experts: Option<ExpertsSpec>,
}

/// A mixture of experts ([Shazeer et al. 2017](https://arxiv.org/abs/1701.06538)): `Σ weight · expert(x)`
/// over those with the highest logits, `router(x)`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ExpertsSpec {
    pub(crate) count: usize,
    /// Number of experts that each row uses.
    pub(crate) used: usize,
    pub(crate) weighting: Weighting,
    /// The expert that all rows use, whose result is added.
    pub(crate) shared: Option<SharedExpert>,
}

/// An expert that all rows use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SharedExpert {
    /// Length of its inner rows.
    pub(crate) width: usize,
    pub(crate) weighting: SharedWeighting,
}

/// The sum of the results of the shared expert and of the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SharedWeighting {
    /// The plain sum.
    Sum,
    /// The shared expert's result is multiplied with the logistic function of a dot product with its input.
    Gate,
    /// Both are normalised, and so are the inputs of the router, of the shared expert and of the others, each
    /// in its own way.
    Norms,
}

/// The formula of feed-forward for its input `x`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FeedForwardKind {
    /// `down(silu(gate(x)) · up(x))` ([Shazeer 2020](https://arxiv.org/abs/2002.05202)).
    SwiGlu,
    /// `down(gate(x) · sigmoid(1.702 · gate(x)) · (up(x) + 1))`, with biases, and with bounds of `gate(x)`
    /// and `up(x)` ([gpt-oss](https://arxiv.org/abs/2508.10925)).
    ClampedSwiGlu,
    /// `down(gelu(gate(x)) · up(x))`, with GELU itself.
    GeGlu,
    /// The same with GELU approximated by a hyperbolic tangent, which transformers calls `gelu_pytorch_tanh`.
    TanhGeGlu,
    /// `down(gelu(up(x)))`, with GELU itself and biases ([Hendrycks and Gimpel
    /// 2016](https://arxiv.org/abs/1606.08415)).
    Gelu,
    /// The same with GELU approximated by a hyperbolic tangent.
    TanhGelu,
}

/// The tensors that a family knows. A file with others is refused, as leaving one out would change every
/// result without a word.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TensorNames {
    /// Tensors of the model; a `*` at the end of a name stands for any characters.
    pub(crate) model: &'static [&'static str],
    /// Tensors of a block, behind `blk.N.`, in groups.
    pub(crate) block: &'static [&'static [&'static str]],
}

impl LogitsSpec {
    /// The head's outputs unchanged.
    pub(crate) const PLAIN: LogitsSpec = LogitsSpec { scale: 1.0, cap: None };
}

impl AttentionSpec {
    /// Attention over `heads`, scaled by the root of their length, to all positions up to a row's own;
    /// nothing else.
    pub(crate) fn plain(heads: AttentionSizes) -> AttentionSpec {
        AttentionSpec {
            heads,
            scale: heads.scale(),
            cap: None,
            span: Span::Causal,
            rope: None,
            query_key_norm: None,
            sinks: false,
            alibi: None,
            gated: false,
            temperature: None,
            value_norm: None,
            keys_are_values: false,
            shares: None,
        }
    }
}

impl StateSpaceSpec {
    /// Length of all heads of a row.
    pub(crate) fn width(&self) -> usize {
        self.heads * self.dim
    }

    /// Channels of the convolution: all heads, then for each group the vectors with which it is written and
    /// read.
    pub(crate) fn channels(&self) -> usize {
        self.width() + 2 * self.groups * self.state
    }
}

impl DeltaNetSpec {
    /// Length of all keys of a row.
    pub(crate) fn key_width(&self) -> usize {
        self.key_heads * self.dim
    }

    /// Length of all values of a row.
    pub(crate) fn value_width(&self) -> usize {
        self.value_heads * self.dim
    }

    /// Channels of the convolution: queries, keys and values.
    pub(crate) fn channels(&self) -> usize {
        2 * self.key_width() + self.value_width()
    }
}

impl Alibi {
    /// The slope of each of so many heads. Where their number is no power of two, the slopes for the power
    /// below are followed by every second one of the power above, as in the paper.
    pub(crate) fn slopes(self, heads: usize) -> Vec<f32> {
        let power = 1_usize << heads.max(1).ilog2();
        let slope = |index: usize, of: usize| {
            libm::exp2(-f64::from(self.max_bias) * (index + 1) as f64 / of as f64) as f32
        };
        let first = (0..power).map(|index| slope(index, power));
        let rest = (0..heads.saturating_sub(power)).map(|index| slope(2 * index, 2 * power));
        first.chain(rest).collect()
    }
}

impl Temperature {
    /// The factor of queries at `position`.
    pub(crate) fn at(self, position: usize) -> f32 {
        let intervals = (position / self.interval) as f64;
        libm::log1p(intervals).mul_add(f64::from(self.scale), 1.0) as f32
    }
}

impl Span {
    /// The most positions up to its own that a row sees, where it does not see all of them; with
    /// [`Span::both_ways`] it sees as many on the other side.
    pub(crate) fn window(self) -> Option<usize> {
        match self {
            Span::Window(window) => Some(window),
            // Its own position counts as well.
            Span::Near(distance) => Some(distance + 1),
            Span::Causal | Span::BothWays => None,
        }
    }

    /// Whether a row sees rows behind it.
    pub(crate) fn both_ways(self) -> bool {
        matches!(self, Span::BothWays | Span::Near(_))
    }
}

impl FeedForwardSpec {
    /// Values that a row has in its inner rows at a time.
    pub(crate) fn inner(&self) -> usize {
        match self.experts {
            Some(experts) => (self.width * experts.used).max(experts.shared.map_or(0, |shared| shared.width)),
            None => self.width,
        }
    }
}

impl FeedForwardSpec {
    /// The usual feed-forward: gated with SiLU, without experts.
    pub(crate) fn gated(width: usize) -> FeedForwardSpec {
        FeedForwardSpec { kind: FeedForwardKind::SwiGlu, width, cutoff: None, experts: None }
    }
}

impl FeedForwardKind {
    /// Whether it has two inner rows, one of which is the gate of the other.
    pub(crate) fn gated(self) -> bool {
        match self {
            FeedForwardKind::SwiGlu
            | FeedForwardKind::ClampedSwiGlu
            | FeedForwardKind::TanhGeGlu
            | FeedForwardKind::GeGlu => true,
            FeedForwardKind::Gelu | FeedForwardKind::TanhGelu => false,
        }
    }
}

impl TensorNames {
    /// Whether the family knows the tensor.
    pub(crate) fn include(&self, name: &str) -> bool {
        match name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
            Some((_, part)) => self.block.iter().any(|group| group.contains(&part)),
            None => self.model.iter().any(|known| match known.strip_suffix('*') {
                Some(beginning) => name.starts_with(beginning),
                None => *known == name,
            }),
        }
    }
}
