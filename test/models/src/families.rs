//! What the files of each family of decoders have beside what all have.

use crate::gguf::{Tensor, Value};
use crate::{Error, Spec, weights};

/// Families of decoders, some with a variant of its own that other keys turn on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// Llama: no biases, no norms of queries and keys, interleaved rotary pairs.
    Llama,
    /// Llama 3: frequencies divided pair by pair.
    Llama3,
    /// Ministral 3: YaRN, and queries that grow with their position.
    Mistral3,
    /// SmolLM3: every fourth layer without rotation.
    SmolLm3,
    /// Qwen2: biases of queries, keys and values.
    Qwen2,
    /// Qwen3: norms of queries and keys.
    Qwen3,
    /// Gemma: scaled embeddings, a gate of GELU.
    Gemma,
    /// Gemma 2: windows, capped scores and logits, norms of results.
    Gemma2,
    /// Gemma 3: windows with a rotation of their own, norms of queries, keys and results.
    Gemma3,
    /// Phi-3 and Phi-4-mini: fused matrices, long rotation of a part of each head.
    Phi3,
    /// Granite: multipliers.
    Granite,
    /// OLMo 3: norms of results only, windows.
    Olmo2,
    /// EXAONE 4: norms of results only.
    Exaone4,
    /// GLM-4: norms of results, a rotation of a half of each head.
    Glm4,
    /// LFM2: short convolutions in most layers.
    Lfm2,
    /// Qwen 3.5: gated delta nets in most layers, gates of attention.
    Qwen35,
}

/// Which norms queries and keys have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QueryKeyNorms {
    None,
    Head,
    Row,
}

/// Which tensors a family has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Traits {
    /// Whether the head is the token embedding.
    pub(crate) tied: bool,
    /// Biases of queries, keys and values.
    pub(crate) biases: bool,
    pub(crate) query_key_norms: QueryKeyNorms,
    /// Norms of the inputs of attention and feed-forward.
    pub(crate) input_norms: bool,
    /// Norms of their results.
    pub(crate) result_norms: bool,
    /// Gates behind the query heads.
    pub(crate) gated: bool,
    /// Most layers are something else than attention.
    pub(crate) recurrent: bool,
    /// The names of the norms before feed-forward and before the head.
    pub(crate) feed_forward_norm: &'static str,
    pub(crate) output_norm: &'static str,
    /// One matrix of queries, keys and values.
    pub(crate) fused: bool,
    /// One matrix of gate and up.
    pub(crate) fused_gate: bool,
}

/// Positions that a row sees where a window is in force: not a multiple of anything.
const WINDOW: u32 = 100;

/// The sizes of a delta net.
struct DeltaNet {
    dim: usize,
    key_heads: usize,
    value_heads: usize,
}

/// Those of attention, but in models of the published shapes.
fn delta_net(spec: &Spec) -> DeltaNet {
    match spec.head_dim {
        256 => DeltaNet { dim: 128, key_heads: 16, value_heads: 16 },
        dim => DeltaNet { dim, key_heads: spec.kv_heads, value_heads: spec.heads },
    }
}

/// One layer in so many is attention where the others are not.
fn interval(spec: &Spec) -> usize {
    if spec.layers < 8 { 2 } else { 4 }
}

impl Architecture {
    /// All of them.
    pub const ALL: [Architecture; 16] = [
        Architecture::Llama,
        Architecture::Llama3,
        Architecture::Mistral3,
        Architecture::SmolLm3,
        Architecture::Qwen2,
        Architecture::Qwen3,
        Architecture::Gemma,
        Architecture::Gemma2,
        Architecture::Gemma3,
        Architecture::Phi3,
        Architecture::Granite,
        Architecture::Olmo2,
        Architecture::Exaone4,
        Architecture::Glm4,
        Architecture::Lfm2,
        Architecture::Qwen35,
    ];

    /// The value of `general.architecture`.
    pub fn name(self) -> &'static str {
        match self {
            Architecture::Llama | Architecture::Llama3 => "llama",
            Architecture::Mistral3 => "mistral3",
            Architecture::SmolLm3 => "smollm3",
            Architecture::Qwen2 => "qwen2",
            Architecture::Qwen3 => "qwen3",
            Architecture::Gemma => "gemma",
            Architecture::Gemma2 => "gemma2",
            Architecture::Gemma3 => "gemma3",
            Architecture::Phi3 => "phi3",
            Architecture::Granite => "granite",
            Architecture::Olmo2 => "olmo2",
            Architecture::Exaone4 => "exaone4",
            Architecture::Glm4 => "glm4",
            Architecture::Lfm2 => "lfm2",
            Architecture::Qwen35 => "qwen35",
        }
    }

    /// Its name among [`Architecture::ALL`].
    pub fn variant(self) -> &'static str {
        if self == Architecture::Llama3 { "llama3" } else { self.name() }
    }

    /// The one of this variant's name.
    pub fn named(variant: &str) -> Option<Architecture> {
        Architecture::ALL.into_iter().find(|architecture| architecture.variant() == variant)
    }

    /// Which tensors its files have.
    pub(crate) fn traits(self) -> Traits {
        use Architecture::*;
        Traits {
            tied: !matches!(self, Llama | Phi3 | Olmo2 | Glm4),
            biases: matches!(self, Qwen2 | Glm4),
            query_key_norms: match self {
                Qwen3 | Gemma3 | Exaone4 | Lfm2 | Qwen35 => QueryKeyNorms::Head,
                Olmo2 => QueryKeyNorms::Row,
                _ => QueryKeyNorms::None,
            },
            input_norms: !matches!(self, Olmo2 | Exaone4),
            result_norms: matches!(self, Gemma2 | Gemma3 | Olmo2 | Exaone4 | Glm4),
            gated: self == Qwen35,
            recurrent: matches!(self, Lfm2 | Qwen35),
            feed_forward_norm: if self == Qwen35 { "post_attention_norm" } else { "ffn_norm" },
            output_norm: if self == Lfm2 { "token_embd_norm" } else { "output_norm" },
            fused: self == Phi3,
            fused_gate: matches!(self, Phi3 | Glm4),
        }
    }

    /// Keys beside those that all have, without the name of the architecture.
    pub(crate) fn keys(self, spec: &Spec) -> Vec<(&'static str, Value)> {
        let number = |value: usize| Value::U32(value as u32);
        let stretched = |kind: &str, factor: usize| {
            vec![
                ("rope.scaling.type", Value::String(kind.into())),
                ("rope.scaling.factor", Value::F32(factor as f32)),
                ("rope.scaling.original_context_length", number(spec.context / factor)),
            ]
        };
        let windows = |period: u32| {
            vec![
                ("attention.sliding_window", Value::U32(WINDOW)),
                ("attention.sliding_window_pattern", Value::U32(period)),
            ]
        };
        match self {
            Architecture::Llama | Architecture::Llama3 | Architecture::SmolLm3 => {
                vec![("rope.dimension_count", number(spec.head_dim)), ("vocab_size", number(spec.vocab))]
            }
            Architecture::Mistral3 => {
                let mut keys = stretched("yarn", 8);
                keys.push(("rope.dimension_count", number(spec.head_dim)));
                keys.push(("attention.temperature_scale", Value::F32(0.1)));
                keys
            }
            Architecture::Gemma2 => {
                let mut keys = windows(2);
                keys.push(("attn_logit_softcapping", Value::F32(1.5)));
                keys.push(("final_logit_softcapping", Value::F32(5.0)));
                keys
            }
            Architecture::Gemma3 => [windows(2), stretched("linear", 8)].concat(),
            Architecture::Phi3 => vec![
                ("rope.dimension_count", number(spec.head_dim * 3 / 4)),
                ("rope.scaling.original_context_length", number(spec.context / 8)),
                ("rope.scaling.attn_factor", Value::F32(1.19)),
            ],
            Architecture::Granite => vec![
                ("rope.dimension_count", number(spec.head_dim)),
                ("embedding_scale", Value::F32(3.0)),
                ("residual_scale", Value::F32(0.4)),
                ("attention.scale", Value::F32(0.2)),
                ("logit_scale", Value::F32(2.0)),
            ],
            Architecture::Olmo2 => [windows(2), stretched("yarn", 4)].concat(),
            Architecture::Glm4 => vec![("rope.dimension_count", number(spec.head_dim / 2))],
            Architecture::Lfm2 => {
                vec![("shortconv.l_cache", Value::U32(3)), ("vocab_size", number(spec.vocab))]
            }
            Architecture::Qwen35 => {
                let DeltaNet { dim, key_heads, value_heads } = delta_net(spec);
                let pairs = (spec.head_dim / 4) as i32;
                let sections = vec![(pairs + 2) / 3, (pairs + 1) / 3, pairs / 3, 0];
                vec![
                    ("full_attention_interval", number(interval(spec))),
                    ("rope.dimension_count", number(spec.head_dim / 2)),
                    ("rope.dimension_sections", Value::I32s(sections)),
                    ("ssm.conv_kernel", Value::U32(4)),
                    ("ssm.state_size", number(dim)),
                    ("ssm.group_count", number(key_heads)),
                    ("ssm.time_step_rank", number(value_heads)),
                    ("ssm.inner_size", number(value_heads * dim)),
                ]
            }
            Architecture::Qwen2 | Architecture::Qwen3 | Architecture::Gemma | Architecture::Exaone4 => {
                Vec::new()
            }
        }
    }

    /// Whether a layer is something else than attention.
    pub(crate) fn is_recurrent(self, spec: &Spec, layer: usize) -> bool {
        self.traits().recurrent && !(layer + 1).is_multiple_of(interval(spec))
    }

    /// The tensors that such a layer has in place of attention's.
    pub(crate) fn recurrent_tensors(self, spec: &Spec, layer: usize) -> Result<Vec<Tensor>, Error> {
        let (width, seed, kind) = (spec.width, spec.seed, spec.quantization.attention);
        let matrix = |part: &str, row: usize, rows: usize, kind: crate::Kind| {
            let name = format!("blk.{layer}.{part}");
            weights::matrix(seed, name, row, rows, 1.0 / (row as f32).sqrt(), kind)
        };
        let vector = |part: &str, length: usize, mean: f32, spread: f32| {
            weights::vector(seed, format!("blk.{layer}.{part}"), length, mean, spread)
        };
        if self == Architecture::Lfm2 {
            return Ok(vec![
                matrix("shortconv.conv.weight", 3, width, crate::Kind::F32)?,
                matrix("shortconv.in_proj.weight", width, 3 * width, kind)?,
                matrix("shortconv.out_proj.weight", width, width, kind)?,
            ]);
        }
        let DeltaNet { dim, key_heads, value_heads } = delta_net(spec);
        let (keys, values) = (key_heads * dim, value_heads * dim);
        Ok(vec![
            matrix("attn_qkv.weight", width, 2 * keys + values, kind)?,
            matrix("attn_gate.weight", width, values, kind)?,
            matrix("ssm_conv1d.weight", 4, 2 * keys + values, crate::Kind::F32)?,
            vector("ssm_dt.bias", value_heads, 0.0, 0.5)?,
            vector("ssm_a", value_heads, -0.3, 0.1)?,
            matrix("ssm_alpha.weight", width, value_heads, kind)?,
            matrix("ssm_beta.weight", width, value_heads, kind)?,
            vector("ssm_norm.weight", dim, 1.0, 0.1)?,
            matrix("ssm_out.weight", values, width, kind)?,
        ])
    }

    /// Tensors of the model beside those that all have.
    pub(crate) fn tensors(self, spec: &Spec) -> Result<Vec<Tensor>, Error> {
        let factors = |name: &str, pairs: usize, step: f32| {
            let values = (0..pairs).map(|pair| 1.0 + pair as f32 * step).collect();
            weights::quantize(name.to_owned(), vec![pairs], values, crate::Kind::F32)
        };
        match self {
            Architecture::Llama3 => Ok(vec![factors("rope_freqs.weight", spec.head_dim / 2, 0.25)?]),
            Architecture::Phi3 => {
                let pairs = spec.head_dim * 3 / 8;
                Ok(vec![
                    factors("rope_factors_long.weight", pairs, 0.5)?,
                    factors("rope_factors_short.weight", pairs, 0.03)?,
                ])
            }
            _ => Ok(Vec::new()),
        }
    }
}
