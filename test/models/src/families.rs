//! The parts of each family of decoders' files that others do not have.

use crate::gguf::{Tensor, Value};
use crate::{Error, Kind, Spec, weights};

/// Families of decoders, some with a variant of its own that other keys turn on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// Llama: no biases, no norms of queries and keys, interleaved rotary pairs.
    Llama,
    /// Mixtral: Llama with experts.
    Mixtral,
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
    /// The experts of Qwen3.
    Qwen3Moe,
    /// gpt-oss: windows, sinks, biases, experts with clamped gates.
    GptOss,
    /// Gemma: scaled embeddings, a gate of GELU.
    Gemma,
    /// Gemma 2: windows, capped scores and logits, norms of results.
    Gemma2,
    /// Gemma 3: windows with a rotation of their own, norms of queries, keys and results.
    Gemma3,
    /// Gemma 3n: several residual streams, few gates, shared keys and values, an embedding of each token for
    /// each block.
    Gemma3n,
    /// Gemma 4: heads of two lengths, shared keys and values, an embedding of each token for each block.
    Gemma4,
    /// Gemma 4 with experts beside its feed-forward.
    Gemma4Moe,
    /// Phi-3 and Phi-4-mini: fused matrices, long rotation of a part of each head.
    Phi3,
    /// Granite: multipliers.
    Granite,
    /// The experts of Granite, beside one that all tokens use.
    GraniteMoe,
    /// Granite 4: state spaces in most layers.
    GraniteHybrid,
    /// Granite 4 with experts.
    GraniteHybridMoe,
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
    /// The experts of Qwen 3.5, beside one with a gate.
    Qwen35Moe,
    /// OLMoE: experts whose weights do not add up to 1.
    Olmoe,
    /// StarCoder 2: layer norms, a feed-forward without gates, biases everywhere.
    StarCoder2,
}

/// The norms of queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QueryKeyNorms {
    None,
    Head,
    Row,
}

/// The tensors of a family.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Traits {
    /// Whether the head is the token embedding.
    pub(crate) tied: bool,
    /// Biases of queries, keys and values.
    pub(crate) biases: bool,
    pub(crate) query_key_norms: QueryKeyNorms,
    /// The mean of their weights.
    pub(crate) query_key_size: f32,
    /// Norms of the inputs of attention and feed-forward.
    pub(crate) input_norms: bool,
    /// Norms of their results.
    pub(crate) result_norms: bool,
    /// The mean of their weights.
    pub(crate) result_size: f32,
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
    /// A mixture of experts.
    pub(crate) experts: bool,
    /// Layer norms with biases, and a feed-forward without gates and with biases.
    pub(crate) plain: bool,
}

/// Positions that a row sees where a window is in force: not a multiple of anything.
const WINDOW: u32 = 100;
/// Length of the embedding of a token for a block.
const PER_LAYER: usize = 32;
/// The length of Gemma 3n's per-layer embeddings, its streams and the rank of the layers beside its
/// attention: llama.cpp knows no others.
const PER_LAYER_3N: usize = 256;
const STREAMS: usize = 4;
const LAUREL: usize = 64;

/// The sizes of a delta net.
struct DeltaNet {
    dim: usize,
    key_heads: usize,
    value_heads: usize,
}

/// The sizes of attention, or the published ones in models of the published shapes.
fn delta_net(spec: &Spec) -> DeltaNet {
    match spec.head_dim {
        256 => DeltaNet { dim: 128, key_heads: 16, value_heads: 16 },
        dim => DeltaNet { dim, key_heads: spec.kv_heads, value_heads: spec.heads },
    }
}

/// The sizes of a state space.
struct StateSpace {
    dim: usize,
    heads: usize,
    groups: usize,
    state: usize,
}

/// Twice as wide as the model: llama.cpp knows no others.
fn state_space(spec: &Spec) -> StateSpace {
    if spec.layers < 8 {
        StateSpace { dim: spec.width / 4, heads: 8, groups: 2, state: 32 }
    } else {
        // The sizes of the published models.
        StateSpace { dim: 64, heads: spec.width / 32, groups: 1, state: 128 }
    }
}

/// One layer in so many is attention where the others are not.
fn interval(spec: &Spec) -> usize {
    match spec.architecture {
        _ if spec.layers < 8 => 2,
        Architecture::GraniteHybrid | Architecture::GraniteHybridMoe => 10,
        _ => 4,
    }
}

impl Architecture {
    /// All architectures.
    pub const ALL: [Architecture; 28] = [
        Architecture::Llama,
        Architecture::Llama3,
        Architecture::Mixtral,
        Architecture::Mistral3,
        Architecture::SmolLm3,
        Architecture::Qwen2,
        Architecture::Qwen3,
        Architecture::Qwen3Moe,
        Architecture::GptOss,
        Architecture::Gemma,
        Architecture::Gemma2,
        Architecture::Gemma3,
        Architecture::Gemma3n,
        Architecture::Gemma4,
        Architecture::Gemma4Moe,
        Architecture::Phi3,
        Architecture::Granite,
        Architecture::GraniteMoe,
        Architecture::GraniteHybrid,
        Architecture::GraniteHybridMoe,
        Architecture::Olmo2,
        Architecture::Exaone4,
        Architecture::Glm4,
        Architecture::Lfm2,
        Architecture::Qwen35,
        Architecture::Qwen35Moe,
        Architecture::Olmoe,
        Architecture::StarCoder2,
    ];

    /// The value of `general.architecture`.
    pub fn name(self) -> &'static str {
        match self {
            Architecture::Llama | Architecture::Llama3 | Architecture::Mixtral => "llama",
            Architecture::Mistral3 => "mistral3",
            Architecture::SmolLm3 => "smollm3",
            Architecture::Qwen2 => "qwen2",
            Architecture::Qwen3 => "qwen3",
            Architecture::Qwen3Moe => "qwen3moe",
            Architecture::GptOss => "gpt-oss",
            Architecture::Gemma => "gemma",
            Architecture::Gemma2 => "gemma2",
            Architecture::Gemma3 => "gemma3",
            Architecture::Gemma3n => "gemma3n",
            Architecture::Gemma4 | Architecture::Gemma4Moe => "gemma4",
            Architecture::Phi3 => "phi3",
            Architecture::Granite => "granite",
            Architecture::GraniteMoe => "granitemoe",
            Architecture::GraniteHybrid | Architecture::GraniteHybridMoe => "granitehybrid",
            Architecture::Olmo2 => "olmo2",
            Architecture::Exaone4 => "exaone4",
            Architecture::Glm4 => "glm4",
            Architecture::Lfm2 => "lfm2",
            Architecture::Qwen35 => "qwen35",
            Architecture::Qwen35Moe => "qwen35moe",
            Architecture::Olmoe => "olmoe",
            Architecture::StarCoder2 => "starcoder2",
        }
    }

    /// Its name among [`Architecture::ALL`].
    pub fn variant(self) -> &'static str {
        match self {
            Architecture::Llama3 => "llama3",
            Architecture::Mixtral => "mixtral",
            Architecture::Gemma4Moe => "gemma4moe",
            Architecture::GraniteHybridMoe => "granitehybridmoe",
            other => other.name(),
        }
    }

    /// The one of this variant's name.
    pub fn named(variant: &str) -> Option<Architecture> {
        Architecture::ALL.into_iter().find(|architecture| architecture.variant() == variant)
    }

    /// Whether its models are mixtures of experts.
    pub fn has_experts(self) -> bool {
        self.traits().experts
    }

    /// Whether most of its layers keep what each position overwrites, so that a text can be cut only where
    /// there is a copy of it.
    pub fn is_recurrent_family(self) -> bool {
        self.traits().recurrent
    }

    /// Heads of keys and values for four of queries.
    pub(crate) fn kv_heads(self) -> usize {
        if self == Architecture::Olmoe { 4 } else { 2 }
    }

    /// The tensors of its files.
    pub(crate) fn traits(self) -> Traits {
        use Architecture::*;
        Traits {
            tied: !matches!(self, Llama | Mixtral | Phi3 | Olmo2 | Glm4 | GptOss | Olmoe),
            biases: matches!(self, Qwen2 | Glm4 | GptOss | StarCoder2),
            query_key_norms: match self {
                Qwen3 | Qwen3Moe | Gemma3 | Gemma3n | Gemma4 | Gemma4Moe | Exaone4 | Lfm2 | Qwen35
                | Qwen35Moe => QueryKeyNorms::Head,
                Olmo2 | Olmoe => QueryKeyNorms::Row,
                _ => QueryKeyNorms::None,
            },
            // Its scores are not divided by the root of a head's width.
            query_key_size: if matches!(self, Gemma3n | Gemma4 | Gemma4Moe) { 0.3 } else { 1.0 },
            input_norms: !matches!(self, Olmo2 | Exaone4),
            result_norms: matches!(
                self,
                Gemma2 | Gemma3 | Gemma3n | Gemma4 | Gemma4Moe | Olmo2 | Exaone4 | Glm4
            ),
            // So many layers magnify the rounding of each otherwise.
            result_size: if self == Gemma3n { 0.3 } else { 1.0 },
            gated: matches!(self, Qwen35 | Qwen35Moe),
            recurrent: matches!(self, Lfm2 | Qwen35 | Qwen35Moe | GraniteHybrid | GraniteHybridMoe),
            feed_forward_norm: if matches!(self, Qwen35 | Qwen35Moe | GptOss) {
                "post_attention_norm"
            } else {
                "ffn_norm"
            },
            output_norm: if self == Lfm2 { "token_embd_norm" } else { "output_norm" },
            fused: self == Phi3,
            fused_gate: matches!(self, Phi3 | Glm4),
            experts: matches!(
                self,
                Mixtral | Qwen3Moe | Qwen35Moe | Gemma4Moe | GptOss | GraniteMoe | GraniteHybridMoe | Olmoe
            ),
            plain: self == StarCoder2,
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
        let mut experts = Vec::new();
        if self.traits().experts {
            let [count, used] = spec.experts;
            experts = vec![("expert_count", number(count)), ("expert_used_count", number(used))];
            if !matches!(
                self,
                Architecture::Mixtral
                    | Architecture::GraniteMoe
                    | Architecture::GraniteHybridMoe
                    | Architecture::Olmoe
            ) {
                experts.push(("expert_feed_forward_length", number(spec.feed_forward)));
            }
        }
        let keys = match self {
            Architecture::Llama | Architecture::Llama3 | Architecture::Mixtral | Architecture::SmolLm3 => {
                vec![("rope.dimension_count", number(spec.head_dim)), ("vocab_size", number(spec.vocab))]
            }
            Architecture::Mistral3 => {
                let mut keys = stretched("yarn", 8);
                keys.push(("rope.dimension_count", number(spec.head_dim)));
                keys.push(("attention.temperature_scale", Value::F32(0.1)));
                keys
            }
            Architecture::GptOss => {
                let mut keys = stretched("yarn", 32);
                keys.push(("attention.sliding_window", Value::U32(WINDOW)));
                keys
            }
            Architecture::Gemma2 => {
                let mut keys = windows(2);
                keys.push(("attn_logit_softcapping", Value::F32(1.5)));
                keys.push(("final_logit_softcapping", Value::F32(5.0)));
                keys
            }
            // As in the published models, where there are layers enough.
            Architecture::Gemma3 if spec.layers >= 6 => vec![
                ("attention.sliding_window", Value::U32(512)),
                ("attention.sliding_window_pattern", Value::U32(6)),
            ],
            Architecture::Gemma3 => [windows(2), stretched("linear", 8)].concat(),
            Architecture::Gemma3n => {
                let (own, sparse) = (spec.layers.min(20), spec.layers.min(10));
                let period = if spec.layers < 5 { 2 } else { 5 };
                let scale = |layer| if layer < sparse { 1.644_853_5 } else { f32::NEG_INFINITY };
                vec![
                    ("attention.sliding_window", Value::U32(WINDOW)),
                    (
                        "attention.sliding_window_pattern",
                        Value::Bools((0..spec.layers).map(|layer| layer % period < period - 1).collect()),
                    ),
                    ("attention.shared_kv_layers", number(spec.layers - own)),
                    ("activation_sparsity_scale", Value::F32s((0..spec.layers).map(scale).collect())),
                    ("altup.active_idx", Value::U32(0)),
                    ("altup.num_inputs", number(STREAMS)),
                    ("embedding_length_per_layer_input", number(PER_LAYER_3N)),
                    ("final_logit_softcapping", Value::F32(30.0)),
                ]
            }
            Architecture::Gemma4 | Architecture::Gemma4Moe => {
                let per_layer = if self == Architecture::Gemma4 { PER_LAYER } else { 0 };
                let pattern = (0..spec.layers).map(|layer| self.windowed(layer)).collect();
                vec![
                    ("attention.sliding_window", Value::U32(WINDOW)),
                    ("attention.sliding_window_pattern", Value::Bools(pattern)),
                    ("attention.shared_kv_layers", number(spec.layers.saturating_sub(2))),
                    ("attention.key_length_swa", number(self.head_dim(spec, 0))),
                    ("attention.value_length_swa", number(self.head_dim(spec, 0))),
                    ("rope.dimension_count", number(spec.head_dim)),
                    ("rope.dimension_count_swa", number(self.head_dim(spec, 0))),
                    ("embedding_length_per_layer_input", number(per_layer)),
                    ("final_logit_softcapping", Value::F32(5.0)),
                ]
            }
            Architecture::Phi3 => vec![
                ("rope.dimension_count", number(spec.head_dim * 3 / 4)),
                ("rope.scaling.original_context_length", number(spec.context / 8)),
                ("rope.scaling.attn_factor", Value::F32(1.19)),
            ],
            Architecture::Granite
            | Architecture::GraniteMoe
            | Architecture::GraniteHybrid
            | Architecture::GraniteHybridMoe => {
                let mut keys = vec![
                    ("rope.dimension_count", number(spec.head_dim)),
                    ("embedding_scale", Value::F32(3.0)),
                    ("residual_scale", Value::F32(0.4)),
                    ("attention.scale", Value::F32(0.2)),
                    ("logit_scale", Value::F32(2.0)),
                ];
                if matches!(self, Architecture::GraniteHybrid | Architecture::GraniteHybridMoe) {
                    let StateSpace { dim, heads, groups, state } = state_space(spec);
                    keys.extend([
                        // Its attention has no positions.
                        ("rope.scaling.finetuned", Value::Bool(false)),
                        ("ssm.conv_kernel", Value::U32(4)),
                        ("ssm.state_size", number(state)),
                        ("ssm.group_count", number(groups)),
                        ("ssm.time_step_rank", number(heads)),
                        ("ssm.inner_size", number(heads * dim)),
                    ]);
                }
                if matches!(self, Architecture::GraniteMoe | Architecture::GraniteHybridMoe) {
                    keys.push(("expert_shared_feed_forward_length", number(spec.feed_forward / 2)));
                }
                keys
            }
            Architecture::Olmo2 => [windows(2), stretched("yarn", 4)].concat(),
            Architecture::Glm4 => vec![("rope.dimension_count", number(spec.head_dim / 2))],
            Architecture::Lfm2 => {
                vec![("shortconv.l_cache", Value::U32(3)), ("vocab_size", number(spec.vocab))]
            }
            Architecture::Qwen35 | Architecture::Qwen35Moe => {
                let DeltaNet { dim, key_heads, value_heads } = delta_net(spec);
                let pairs = (spec.head_dim / 4) as i32;
                let sections = vec![(pairs + 2) / 3, (pairs + 1) / 3, pairs / 3, 0];
                let mut keys = vec![
                    ("full_attention_interval", number(interval(spec))),
                    ("rope.dimension_count", number(spec.head_dim / 2)),
                    ("rope.dimension_sections", Value::I32s(sections)),
                    ("ssm.conv_kernel", Value::U32(4)),
                    ("ssm.state_size", number(dim)),
                    ("ssm.group_count", number(key_heads)),
                    ("ssm.time_step_rank", number(value_heads)),
                    ("ssm.inner_size", number(value_heads * dim)),
                ];
                if self == Architecture::Qwen35Moe {
                    keys.push(("expert_shared_feed_forward_length", number(spec.feed_forward / 2)));
                }
                keys
            }
            Architecture::Qwen2
            | Architecture::Qwen3
            | Architecture::Qwen3Moe
            | Architecture::Gemma
            | Architecture::Exaone4
            | Architecture::Olmoe
            | Architecture::StarCoder2 => Vec::new(),
        };
        [experts, keys].concat()
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
        if matches!(self, Architecture::GraniteHybrid | Architecture::GraniteHybridMoe) {
            let StateSpace { dim, heads, groups, state } = state_space(spec);
            let (values, channels) = (heads * dim, heads * dim + 2 * groups * state);
            let of_heads = |part: &str, mean: f32, spread: f32| {
                let mut tensor = vector(part, heads, mean, spread)?;
                tensor.shape = vec![1, heads];
                Ok::<_, Error>(tensor)
            };
            let mut norm = vector("ssm_norm.weight", values, 1.0, 0.1)?;
            norm.shape = vec![values / groups, groups];
            return Ok(vec![
                matrix("ssm_in.weight", width, values + channels + heads, kind)?,
                matrix("ssm_conv1d.weight", 4, channels, crate::Kind::F32)?,
                vector("ssm_conv1d.bias", channels, 0.0, 0.1)?,
                vector("ssm_dt.bias", heads, 0.0, 0.5)?,
                of_heads("ssm_a", -0.3, 0.1)?,
                of_heads("ssm_d", 1.0, 0.3)?,
                norm,
                matrix("ssm_out.weight", values, width, kind)?,
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

    /// Whether a window is in force in a layer, for the family where that matters to its tensors.
    fn windowed(self, layer: usize) -> bool {
        matches!(self, Architecture::Gemma4 | Architecture::Gemma4Moe) && layer.is_multiple_of(2)
    }

    /// Width of heads that are as long as K-quants need.
    pub(crate) fn long_head(self) -> usize {
        // Heads under a window are half as long.
        if matches!(self, Architecture::Gemma4 | Architecture::Gemma4Moe) { 128 } else { 64 }
    }

    /// Width of the heads of a layer.
    pub(crate) fn head_dim(self, spec: &Spec, layer: usize) -> usize {
        if self.windowed(layer) { spec.head_dim / 2 } else { spec.head_dim }
    }

    /// Whether a layer has keys of its own, and values.
    pub(crate) fn keys_and_values(self, layer: usize) -> [bool; 2] {
        match self {
            // The second layer's keys are its values.
            Architecture::Gemma4 | Architecture::Gemma4Moe => [layer < 2, layer < 1],
            _ => [true; 2],
        }
    }

    /// Tensors of a block beside those that follow from the traits.
    pub(crate) fn block_tensors(self, spec: &Spec, layer: usize) -> Result<Vec<Tensor>, Error> {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        let per_layer = match self {
            Architecture::Gemma3n => PER_LAYER_3N,
            Architecture::Gemma4 => PER_LAYER,
            Architecture::Gemma4Moe => {
                let scale = name("layer_output_scale");
                return Ok(vec![weights::vector(spec.seed, scale, 1, 0.7, 0.1)?]);
            }
            _ => return Ok(Vec::new()),
        };
        let matrix = |part: &str, row: usize, rows: usize| {
            weights::matrix(spec.seed, name(part), row, rows, 1.0 / (row as f32).sqrt(), crate::Kind::F32)
        };
        let vector =
            |part: &str, length: usize, mean: f32| weights::vector(spec.seed, name(part), length, mean, 0.1);
        let mut tensors = vec![
            matrix("inp_gate", spec.width, per_layer)?,
            matrix("proj", per_layer, spec.width)?,
            vector("post_norm", spec.width, self.traits().result_size)?,
        ];
        if self == Architecture::Gemma4 {
            tensors.push(vector("layer_output_scale", 1, 0.7)?);
            return Ok(tensors);
        }
        // The router's input is divided by the width.
        let router = (spec.width as f32).sqrt();
        let spread = |part: &str, row: usize, rows: usize, deviation: f32| {
            weights::matrix(spec.seed, name(part), row, rows, deviation, crate::Kind::F32)
        };
        tensors.extend([
            spread("altup_router", spec.width, STREAMS, router)?,
            vector("altup_router_norm", spec.width, 1.0)?,
            spread("altup_predict_coef", STREAMS, STREAMS * STREAMS, 0.1)?,
            spread("altup_correct_coef", STREAMS, STREAMS, 0.3)?,
            vector("altup_correct_scale", spec.width, 1.0)?,
            matrix("laurel_l", spec.width, LAUREL)?,
            matrix("laurel_r", LAUREL, spec.width)?,
            vector("laurel_post_norm", spec.width, self.traits().result_size)?,
        ]);
        Ok(tensors)
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
            Architecture::Gemma3n => {
                let mut tensors = per_layer_tensors(spec, PER_LAYER_3N)?;
                let Spec { width, seed, .. } = *spec;
                let deviation = 1.0 / (width as f32).sqrt();
                for name in ["altup_proj.weight", "altup_unembd_proj.weight"] {
                    let shape = [width, width, STREAMS - 1];
                    tensors.push(weights::matrices(seed, name.into(), shape, deviation, crate::Kind::F32)?);
                }
                Ok(tensors)
            }
            Architecture::Gemma4 | Architecture::Gemma4Moe => {
                // Pairs of the second half of a head are as good as not rotated.
                let pairs = spec.head_dim / 2;
                let values = (0..pairs).map(|pair| if pair < pairs / 2 { 1.0 } else { 1e30 }).collect();
                let factors =
                    weights::quantize("rope_freqs.weight".into(), vec![pairs], values, crate::Kind::F32)?;
                let mut tensors = vec![factors];
                if self == Architecture::Gemma4 {
                    tensors.extend(per_layer_tensors(spec, PER_LAYER)?);
                }
                Ok(tensors)
            }
            _ => Ok(Vec::new()),
        }
    }
}

/// The tensors that make the embeddings of each token for all blocks, `length` values for each block.
fn per_layer_tensors(spec: &Spec, length: usize) -> Result<Vec<Tensor>, Error> {
    let (seed, all) = (spec.seed, length * spec.layers);
    let matrix = |name: &str, row: usize, rows: usize| {
        weights::matrix(seed, name.into(), row, rows, 1.0 / (row as f32).sqrt(), crate::Kind::F32)
    };
    Ok(vec![
        matrix("per_layer_token_embd.weight", all, spec.vocab)?,
        matrix("per_layer_model_proj.weight", spec.width, all)?,
        weights::vector(seed, "per_layer_proj_norm.weight".into(), length, 1.0, 0.1)?,
    ])
}

/// The router and the experts of a block, and what else the family has there.
pub(crate) fn experts(spec: &Spec, layer: usize, down: Kind) -> Result<Vec<Tensor>, Error> {
    let Spec { width, feed_forward, seed, experts: [count, _], .. } = *spec;
    let kind = spec.quantization.feed_forward;
    let name = |part: &str| format!("blk.{layer}.{part}");
    // As matrices elsewhere. Logits of a router are spread wider, so that few are nearly equal.
    let matrices = |part: &str, row: usize, rows: usize, kind: Kind| {
        let deviation = 1.0 / (row as f32).sqrt();
        weights::matrices(seed, name(part), [row, rows, count], deviation, kind)
    };
    let router = 3.0 / (width as f32).sqrt();
    let mut tensors = vec![
        weights::matrix(seed, name("ffn_gate_inp.weight"), width, count, router, Kind::F32)?,
        matrices("ffn_down_exps.weight", feed_forward, width, down)?,
    ];
    if matches!(spec.architecture, Architecture::Gemma4Moe | Architecture::Qwen35Moe) {
        tensors.push(matrices("ffn_gate_up_exps.weight", width, 2 * feed_forward, kind)?);
    } else {
        tensors.push(matrices("ffn_gate_exps.weight", width, feed_forward, kind)?);
        tensors.push(matrices("ffn_up_exps.weight", width, feed_forward, kind)?);
    }
    if spec.architecture == Architecture::Gemma4Moe {
        // Inputs of the router are divided by the root of their length.
        tensors.push(weights::vector(seed, name("ffn_gate_inp.scale"), width, (width as f32).sqrt(), 1.0)?);
        tensors.push(weights::vector(seed, name("ffn_down_exps.scale"), count, 1.0, 0.2)?);
        for part in ["pre_ffw_norm_2", "post_ffw_norm_1", "post_ffw_norm_2"] {
            tensors.push(weights::vector(seed, name(&format!("{part}.weight")), width, 1.0, 0.1)?);
        }
    }
    if spec.architecture == Architecture::Qwen35Moe {
        let gate = name("ffn_gate_inp_shexp.weight");
        tensors.push(weights::vector(seed, gate, width, 0.0, 1.0 / (width as f32).sqrt())?);
    }
    if matches!(
        spec.architecture,
        Architecture::GraniteMoe | Architecture::GraniteHybridMoe | Architecture::Qwen35Moe
    ) {
        let shared = feed_forward / 2;
        let matrix = |part: &str, row: usize, rows: usize, kind: Kind| {
            weights::matrix(seed, name(part), row, rows, 1.0 / (row as f32).sqrt(), kind)
        };
        tensors.push(matrix("ffn_gate_shexp.weight", width, shared, kind)?);
        tensors.push(matrix("ffn_up_shexp.weight", width, shared, kind)?);
        tensors.push(matrix("ffn_down_shexp.weight", shared, width, down)?);
    }
    if spec.architecture == Architecture::GptOss {
        let vector = |part: &str, length: usize| weights::vector(seed, name(part), length, 0.0, 0.1);
        tensors.push(vector("attn_output.bias", width)?);
        tensors.push(weights::vector(seed, name("attn_sinks.weight"), spec.heads, 0.5, 1.0)?);
        tensors.push(vector("ffn_gate_inp.bias", count)?);
        let parts =
            [("ffn_gate_exps", feed_forward), ("ffn_up_exps", feed_forward), ("ffn_down_exps", width)];
        for (part, outputs) in parts {
            let mut biases = vector(&format!("{part}.bias"), outputs * count)?;
            biases.shape = vec![outputs, count];
            tensors.push(biases);
        }
    }
    Ok(tensors)
}
