//! Random-weight GGUF models for tests and benchmarks, made where no model can be downloaded.
//!
//! Such a file has everything that a real one has: metadata, a byte-level BPE tokenizer, a chat template,
//! tensors of the right names, shapes and types. Kernels and schedulers do not care about values. The
//! bytes depend on the [`Spec`] alone.
//!
//! The vocabulary is made so that any sequence of tokens is valid ASCII text, whatever the weights choose.

pub mod adapters;
mod bert;
mod encoders;
pub mod endpoint;
mod families;
pub mod gguf;
pub mod hub;
mod nonlinear;
mod random;
mod ternary;
mod vocabulary;
mod weights;

use std::io::BufWriter;
use std::path::Path;

pub use bert::Bert;
pub use encoders::{EncoderFamily, GEMMA_KV_HEADS, GEMMA_PERIOD, GEMMA_PROJECTION, NEIGHBOURHOOD};
pub use families::Architecture;
use families::QueryKeyNorms;
use gguf::{File, Tensor, Value};

/// An error while a model is made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The specification contradicts itself.
    #[error("invalid specification: {0}")]
    Spec(String),
    /// The file cannot be written.
    #[error("could not write the model")]
    Io(#[from] std::io::Error),
    /// candle cannot quantize a tensor.
    #[error("could not quantize")]
    Quantize(#[from] candle_core::Error),
}

/// Element types of matrices. Norms and biases are always F32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "ggml's names")]
pub enum Kind {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    IQ4NL,
    IQ4XS,
    MXFP4,
    TQ1_0,
    TQ2_0,
}

/// Element types by the place of the matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quantization {
    /// Token embedding, and the head where it is tied.
    pub embedding: Kind,
    /// Queries, keys and attention output.
    pub attention: Kind,
    /// Values, which mixed quantizations keep finer.
    pub value: Kind,
    /// Gate and up projections.
    pub feed_forward: Kind,
    /// Down projection, which mixed quantizations keep finer.
    pub down: Kind,
    /// The head where it is not tied.
    pub output: Kind,
    /// `value` and `down` only in the layers where llama.cpp's mixes are finer, at both ends and every third
    /// between; the other layers have the types of `attention` and `feed_forward`.
    pub in_some_layers: bool,
}

impl Quantization {
    /// One type everywhere.
    pub fn uniform(kind: Kind) -> Self {
        Quantization {
            embedding: kind,
            attention: kind,
            value: kind,
            feed_forward: kind,
            down: kind,
            output: kind,
            in_some_layers: false,
        }
    }

    /// The mixture of llama.cpp's Q4_K_M: Q4_K with Q6_K for embedding and head, and in about half of the
    /// layers for values and down projections.
    pub fn q4_k_m() -> Self {
        Quantization {
            embedding: Kind::Q6K,
            attention: Kind::Q4K,
            value: Kind::Q6K,
            feed_forward: Kind::Q4K,
            down: Kind::Q6K,
            output: Kind::Q6K,
            in_some_layers: true,
        }
    }

    /// The mixture of gpt-oss's files: MXFP4 for feed-forward, which is its experts, and Q8_0 for the rest.
    pub fn mxfp4() -> Self {
        Quantization { feed_forward: Kind::MXFP4, down: Kind::MXFP4, ..Quantization::uniform(Kind::Q8_0) }
    }

    /// The quantization of a name in lower case, such as `q8_0` or `q4_k_m`.
    pub fn named(name: &str) -> Option<Self> {
        let kind = match name {
            "f32" => Kind::F32,
            "f16" => Kind::F16,
            "bf16" => Kind::BF16,
            "q4_0" => Kind::Q4_0,
            "q4_1" => Kind::Q4_1,
            "q5_0" => Kind::Q5_0,
            "q5_1" => Kind::Q5_1,
            "q8_0" => Kind::Q8_0,
            "q2_k" => Kind::Q2K,
            "q3_k" => Kind::Q3K,
            "q4_k" => Kind::Q4K,
            "q5_k" => Kind::Q5K,
            "q6_k" => Kind::Q6K,
            "iq4_nl" => Kind::IQ4NL,
            "iq4_xs" => Kind::IQ4XS,
            "tq1_0" => Kind::TQ1_0,
            "tq2_0" => Kind::TQ2_0,
            "mxfp4" => return Some(Quantization::mxfp4()),
            "q4_k_m" => return Some(Quantization::q4_k_m()),
            _ => return None,
        };
        Some(Quantization::uniform(kind))
    }

    /// Types of values and down projections in a layer; `use_more_bits` of llama.cpp says which layers are
    /// finer.
    fn finer(&self, layer: usize, layers: usize) -> (Kind, Kind) {
        let ends = layer < layers / 8 || layer >= 7 * layers / 8;
        if !self.in_some_layers || ends || (layer - layers / 8) % 3 == 2 {
            (self.value, self.down)
        } else {
            (self.attention, self.feed_forward)
        }
    }
}

/// The pooling of embeddings, by the numbers of `<arch>.pooling_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the documentation")]
pub enum Pooling {
    None,
    Mean,
    Cls,
    Last,
    Rank,
}

/// The way in which a model ranks documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rerank {
    /// The tokens "yes" and "no", and those that Qwen3-Reranker's prompt is made of.
    YesNo,
    /// The same, and a head of this many outputs.
    Head(usize),
}

/// The texts of the tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Text {
    /// Made-up words of ASCII letters: any answer is valid text.
    Ascii,
    /// Continuation bytes only: any answer is invalid UTF-8 from its first byte that is not empty.
    InvalidUtf8,
    /// Every byte: most answers of random weights would be no text.
    Bytes,
}

/// The splitting of text into words, by the values of `tokenizer.ggml.pre`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the documentation")]
pub enum Splitter {
    Qwen2,
    LlamaBpe,
    Gpt2,
}

impl Splitter {
    fn name(self) -> &'static str {
        match self {
            Splitter::Qwen2 => "qwen2",
            Splitter::LlamaBpe => "llama-bpe",
            Splitter::Gpt2 => "gpt-2",
        }
    }
}

/// A model to be made. [`Spec::default`] is a tiny Qwen3.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// Family.
    pub architecture: Architecture,
    /// Transformer blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Attention heads.
    pub heads: usize,
    /// Heads of keys and values; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the feed-forward block.
    pub feed_forward: usize,
    /// Experts of a block, and how many of them a token uses, in families that have them.
    pub experts: [usize; 2],
    /// Tokens, 258 at least.
    pub vocab: usize,
    /// Context length.
    pub context: usize,
    /// Element types.
    pub quantization: Quantization,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// Epsilon of the norms.
    pub norm_epsilon: f32,
    /// Whether the head is the token embedding.
    pub tied: bool,
    /// Written where given.
    pub pooling: Option<Pooling>,
    /// The way in which it ranks documents; with one its answers are not endless.
    pub rerank: Option<Rerank>,
    /// The texts of the tokens.
    pub text: Text,
    /// No token ends an answer: generation always runs to its limit.
    pub endless: bool,
    /// The splitting of text.
    pub splitter: Splitter,
    /// Whether the vocabulary has the form of SentencePiece: scores instead of merges, `▁` for spaces, bytes
    /// as `<0xFF>`.
    pub sentencepiece: bool,
    /// The chat template; `None` is ChatML with the control tokens of the vocabulary, an empty string
    /// leaves the key out.
    pub chat_template: Option<String>,
    /// Everything random follows from it.
    pub seed: u64,
}

impl Default for Spec {
    fn default() -> Self {
        Spec {
            architecture: Architecture::Qwen3,
            layers: 2,
            width: 64,
            heads: 4,
            kv_heads: 2,
            head_dim: 32,
            feed_forward: 128,
            experts: [6, 2],
            vocab: 512,
            context: 512,
            quantization: Quantization::uniform(Kind::Q8_0),
            rope_theta: 10_000.0,
            norm_epsilon: 1e-6,
            tied: true,
            pooling: None,
            rerank: None,
            text: Text::Ascii,
            endless: false,
            splitter: Splitter::Qwen2,
            sentencepiece: false,
            chat_template: None,
            seed: 1,
        }
    }
}

impl Spec {
    /// The tiny model of this family.
    pub fn tiny(architecture: Architecture) -> Self {
        Spec {
            architecture,
            tied: architecture.traits().tied,
            kv_heads: architecture.kv_heads(),
            splitter: if architecture == Architecture::Llama { Splitter::LlamaBpe } else { Splitter::Qwen2 },
            ..Spec::default()
        }
    }

    /// The smallest model whose matrices all have rows of 256, as the K-quants need.
    pub fn small(architecture: Architecture) -> Self {
        Spec { width: 256, head_dim: architecture.long_head(), feed_forward: 512, ..Spec::tiny(architecture) }
    }

    /// Wide enough for K-quants, with more positions than a few tiles of attention; it never ends by itself.
    pub fn wide(architecture: Architecture, quantization: Quantization) -> Self {
        Spec {
            width: 256,
            heads: 4,
            head_dim: architecture.long_head(),
            feed_forward: 512,
            vocab: 600,
            context: 1024,
            quantization,
            endless: true,
            ..Spec::tiny(architecture)
        }
    }

    /// A model to be compared with llama.cpp, at up to [`Spec::context`] positions: beyond windows and the
    /// contexts that rotations are stretched from.
    pub fn compared(architecture: Architecture, quantization: Quantization) -> Self {
        Spec {
            layers: match architecture {
                // llama.cpp knows the sizes that were published only: the first 20 layers have keys and
                // values of their own, ten few gates.
                Architecture::Gemma3n => 25,
                Architecture::Gemma4 | Architecture::Gemma4Moe => 4,
                _ => 3,
            },
            context: 4096,
            rope_theta: 1_000_000.0,
            // All of them, so that nothing hangs on which of two nearly equal ones a router chooses.
            experts: [5, 5],
            quantization,
            endless: true,
            ..Spec::small(architecture)
        }
    }

    /// The tokens that it is compared on.
    pub fn compared_tokens(&self) -> Vec<u32> {
        (0..self.context as u32).map(|i| (i * 7919 + i * i * 31) % self.vocab as u32).collect()
    }

    /// The shape of Qwen3-0.6B, for benchmarks: 0.6 GB at Q8_0.
    pub fn qwen3_0_6b() -> Self {
        Spec {
            layers: 28,
            width: 1024,
            heads: 16,
            kv_heads: 8,
            head_dim: 128,
            feed_forward: 3072,
            vocab: 151_936,
            context: 40_960,
            rope_theta: 1_000_000.0,
            ..Spec::default()
        }
    }

    /// A sixth of the layers of Qwen3-30B-A3B, with a quarter of its experts: 32, of which each token uses 8.
    pub fn qwen3moe_small() -> Self {
        Spec {
            layers: 8,
            width: 2048,
            heads: 32,
            kv_heads: 4,
            head_dim: 128,
            feed_forward: 768,
            vocab: 151_936,
            context: 40_960,
            rope_theta: 1_000_000.0,
            experts: [32, 8],
            ..Spec::tiny(Architecture::Qwen3Moe)
        }
    }

    /// The shape of Qwen3-1.7B.
    pub fn qwen3_1_7b() -> Self {
        Spec { width: 2048, feed_forward: 6144, ..Spec::qwen3_0_6b() }
    }

    /// The shape of Qwen3.5-2B: three layers of four are delta nets.
    pub fn qwen3_5_2b() -> Self {
        Spec {
            layers: 24,
            width: 2048,
            heads: 8,
            kv_heads: 2,
            head_dim: 256,
            feed_forward: 6144,
            vocab: 248_320,
            context: 262_144,
            rope_theta: 10_000_000.0,
            ..Spec::tiny(Architecture::Qwen35)
        }
    }

    /// The shape of Gemma 3 1B: windows of 512 positions in five layers of six.
    pub fn gemma3_1b() -> Self {
        Spec {
            layers: 26,
            width: 1152,
            heads: 4,
            kv_heads: 1,
            head_dim: 256,
            feed_forward: 6912,
            vocab: 262_144,
            context: 32_768,
            rope_theta: 1_000_000.0,
            ..Spec::tiny(Architecture::Gemma3)
        }
    }

    /// The shape of Phi-4-mini: 3.8 billion parameters, one matrix of queries, keys and values, one of gate
    /// and up.
    pub fn phi4_mini() -> Self {
        Spec {
            layers: 32,
            width: 3072,
            heads: 24,
            kv_heads: 8,
            head_dim: 128,
            feed_forward: 8192,
            vocab: 200_064,
            context: 131_072,
            rope_theta: 10_000.0,
            norm_epsilon: 1e-5,
            tied: true,
            ..Spec::tiny(Architecture::Phi3)
        }
    }

    /// The shape of Granite 4.0 H 1B: nine layers of ten are state spaces.
    pub fn granite_h_1b() -> Self {
        Spec {
            layers: 40,
            width: 1536,
            heads: 12,
            kv_heads: 4,
            head_dim: 128,
            feed_forward: 4096,
            vocab: 100_352,
            context: 131_072,
            rope_theta: 10_000.0,
            norm_epsilon: 1e-5,
            ..Spec::tiny(Architecture::GraniteHybrid)
        }
    }

    /// The shape of Llama-3.2-1B, without the factors that stretch its rotary frequencies.
    pub fn llama_3_2_1b() -> Self {
        Spec {
            layers: 16,
            width: 2048,
            heads: 32,
            kv_heads: 8,
            head_dim: 64,
            feed_forward: 8192,
            vocab: 128_256,
            context: 131_072,
            rope_theta: 500_000.0,
            norm_epsilon: 1e-5,
            tied: true,
            ..Spec::tiny(Architecture::Llama)
        }
    }
}

/// Makes the model and writes it.
pub fn write(spec: &Spec, path: &Path) -> Result<(), Error> {
    let file = file(spec)?;
    Ok(file.write(&mut BufWriter::with_capacity(1 << 20, std::fs::File::create(path)?))?)
}

/// Makes the model; the caller may spoil it before writing.
pub fn file(spec: &Spec) -> Result<File, Error> {
    if spec.kv_heads == 0 || !spec.heads.is_multiple_of(spec.kv_heads) {
        return Err(Error::Spec(format!("{} heads over {} key-value heads", spec.heads, spec.kv_heads)));
    }
    Ok(File { version: 3, keys: keys(spec)?, tensors: tensors(spec)? })
}

fn keys(spec: &Spec) -> Result<Vec<(String, Value)>, Error> {
    let arch = spec.architecture.name();
    let number = |value: usize| Value::U32(value as u32);
    let epsilon = match spec.architecture.traits().plain {
        true => "layer_norm_epsilon",
        false => "layer_norm_rms_epsilon",
    };
    let mut keys = vec![
        ("general.architecture".to_owned(), Value::String(arch.into())),
        ("general.name".to_owned(), Value::String("random weights".into())),
        (format!("{arch}.block_count"), number(spec.layers)),
        (format!("{arch}.context_length"), number(spec.context)),
        (format!("{arch}.embedding_length"), number(spec.width)),
        (format!("{arch}.feed_forward_length"), number(spec.feed_forward)),
        (format!("{arch}.attention.head_count"), number(spec.heads)),
        (format!("{arch}.attention.head_count_kv"), kv_heads(spec)),
        (format!("{arch}.attention.key_length"), number(spec.head_dim)),
        (format!("{arch}.attention.value_length"), number(spec.head_dim)),
        (format!("{arch}.attention.{epsilon}"), Value::F32(spec.norm_epsilon)),
        (format!("{arch}.rope.freq_base"), Value::F32(spec.rope_theta)),
    ];
    keys.extend(
        spec.architecture.keys(spec).into_iter().map(|(key, value)| (format!("{arch}.{key}"), value)),
    );
    if let Some(pooling) = spec.pooling {
        keys.push((format!("{arch}.pooling_type"), Value::U32(pooling as u32)));
    }
    let vocabulary = vocabulary::build(spec)?;
    let template = match &spec.chat_template {
        Some(template) => template.clone(),
        None => format!(
            "{{% for m in messages %}}{turn}{{{{ m.role }}}}\n{{{{ m.content }}}}{end}\n{{% endfor %}}\
             {{% if add_generation_prompt %}}{turn}assistant\n{{% endif %}}",
            turn = vocabulary.turn,
            end = vocabulary.end,
        ),
    };
    let text = |text: &str| Value::String(text.into());
    let mut tokenizer = if spec.sentencepiece {
        vec![("model", text("llama")), ("pre", text("default"))]
    } else {
        vec![("model", text("gpt2")), ("pre", text(spec.splitter.name()))]
    };
    tokenizer.push(("tokens", Value::Strings(vocabulary.tokens)));
    tokenizer.push(("token_type", Value::I32s(vocabulary.types)));
    if spec.sentencepiece {
        // Tokens that were made up first are joined first.
        let scores = (0..spec.vocab).map(|id| -(id as f32)).collect();
        tokenizer.push(("scores", Value::F32s(scores)));
    } else {
        tokenizer.push(("merges", Value::Strings(vocabulary.merges)));
    }
    tokenizer.push(("add_bos_token", Value::Bool(false)));
    if !spec.endless {
        tokenizer.push(("eos_token_id", Value::U32(vocabulary.end_id)));
    }
    keys.extend(tokenizer.into_iter().map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)));
    if !template.is_empty() {
        keys.push(("tokenizer.chat_template".into(), Value::String(template)));
    }
    Ok(keys)
}

/// The number of key-value heads; layer by layer where some layers have none.
fn kv_heads(spec: &Spec) -> Value {
    let by_layer = [Architecture::Lfm2, Architecture::GraniteHybrid, Architecture::GraniteHybridMoe];
    if !by_layer.contains(&spec.architecture) {
        return Value::U32(spec.kv_heads as u32);
    }
    let of = |layer| if spec.architecture.is_recurrent(spec, layer) { 0 } else { spec.kv_heads as i32 };
    Value::I32s((0..spec.layers).map(of).collect())
}

fn tensors(spec: &Spec) -> Result<Vec<Tensor>, Error> {
    let Spec { width, seed, quantization: kinds, .. } = *spec;
    let mut tensors = Vec::new();
    // Rows of a projection are scaled so that its output is about as large as its input; those of the
    // head so that logits spread over a few units.
    let matrix = |name: String, row: usize, rows: usize, kind: Kind| {
        weights::matrix(seed, name, row, rows, 1.0 / (row as f32).sqrt(), kind)
    };
    let head = |name: &str, kind: Kind| {
        weights::matrix(seed, name.into(), width, spec.vocab, 3.0 / (width as f32).sqrt(), kind)
    };
    let norm = |name: String, length: usize| weights::vector(seed, name, length, 1.0, 0.1);
    tensors.push(head("token_embd.weight", kinds.embedding)?);
    let traits = spec.architecture.traits();
    let bias = |name: String, length: usize| weights::vector(seed, name, length, 0.0, 0.1);
    tensors.push(norm(format!("{}.weight", traits.output_norm), width)?);
    if traits.plain {
        tensors.push(bias(format!("{}.bias", traits.output_norm), width)?);
    }
    if !spec.tied {
        tensors.push(head("output.weight", kinds.output)?);
    }
    if let Some(Rerank::Head(labels)) = spec.rerank {
        let scale = 3.0 / (width as f32).sqrt();
        tensors.push(weights::matrix(seed, "cls.output.weight".into(), width, labels, scale, Kind::F32)?);
    }
    tensors.extend(spec.architecture.tensors(spec)?);
    for layer in 0..spec.layers {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let (value, down) = kinds.finer(layer, spec.layers);
        let head_dim = spec.architecture.head_dim(spec, layer);
        let (queries, keys) = (spec.heads * head_dim, spec.kv_heads * head_dim);
        let [has_keys, has_values] = spec.architecture.keys_and_values(layer);
        if traits.input_norms {
            tensors.push(norm(name("attn_norm.weight"), width)?);
        }
        let recurrent = spec.architecture.is_recurrent(spec, layer);
        if recurrent {
            tensors.extend(spec.architecture.recurrent_tensors(spec, layer)?);
        } else if traits.fused {
            tensors.push(matrix(name("attn_qkv.weight"), width, queries + 2 * keys, kinds.attention)?);
        } else {
            let rows = if traits.gated { 2 * queries } else { queries };
            tensors.push(matrix(name("attn_q.weight"), width, rows, kinds.attention)?);
            if has_keys {
                tensors.push(matrix(name("attn_k.weight"), width, keys, kinds.attention)?);
            }
            if has_values {
                tensors.push(matrix(name("attn_v.weight"), width, keys, value)?);
            }
        }
        if !recurrent {
            tensors.push(matrix(name("attn_output.weight"), queries, width, kinds.attention)?);
        }
        if traits.biases {
            for (part, length) in [("attn_q", queries), ("attn_k", keys), ("attn_v", keys)] {
                tensors.push(weights::vector(seed, name(&format!("{part}.bias")), length, 0.0, 0.1)?);
            }
        }
        let [query_norm, key_norm] = match traits.query_key_norms {
            _ if recurrent => [0, 0],
            QueryKeyNorms::None => [0, 0],
            QueryKeyNorms::Head => [head_dim; 2],
            QueryKeyNorms::Row => [queries, keys],
        };
        if query_norm > 0 {
            let norm = |name, length| weights::vector(seed, name, length, traits.query_key_size, 0.1);
            tensors.push(norm(name("attn_q_norm.weight"), query_norm)?);
            if has_keys {
                tensors.push(norm(name("attn_k_norm.weight"), key_norm)?);
            }
        }
        if traits.input_norms {
            tensors.push(norm(name(&format!("{}.weight", traits.feed_forward_norm)), width)?);
        }
        if traits.result_norms {
            for part in ["post_attention_norm.weight", "post_ffw_norm.weight"] {
                tensors.push(weights::vector(seed, name(part), width, traits.result_size, 0.1)?);
            }
        }
        if traits.experts {
            tensors.extend(families::experts(spec, layer, down)?);
            if spec.architecture != Architecture::Gemma4Moe {
                continue;
            }
        }
        if traits.plain {
            let parts = [
                ("attn_norm", width),
                ("attn_output", width),
                (traits.feed_forward_norm, width),
                ("ffn_up", spec.feed_forward),
                ("ffn_down", width),
            ];
            for (part, length) in parts {
                tensors.push(bias(name(&format!("{part}.bias")), length)?);
            }
            tensors.push(matrix(name("ffn_up.weight"), width, spec.feed_forward, kinds.feed_forward)?);
        } else if traits.fused_gate {
            tensors.push(matrix(name("ffn_up.weight"), width, 2 * spec.feed_forward, kinds.feed_forward)?);
        } else {
            tensors.push(matrix(name("ffn_gate.weight"), width, spec.feed_forward, kinds.feed_forward)?);
            tensors.push(matrix(name("ffn_up.weight"), width, spec.feed_forward, kinds.feed_forward)?);
        }
        tensors.push(matrix(name("ffn_down.weight"), spec.feed_forward, width, down)?);
        tensors.extend(spec.architecture.block_tensors(spec, layer)?);
    }
    Ok(tensors)
}
