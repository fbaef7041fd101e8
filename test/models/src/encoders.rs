//! What the files of each family of encoders have that is not BERT's.

use crate::Kind;
use crate::bert::{Bert, Named};
use crate::gguf::Value;
use crate::random::Random;

/// Families of encoders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EncoderFamily {
    /// BERT itself.
    Bert,
    /// nomic-embed-text 1.5: rotated positions, gated feed-forward, hardly a bias.
    NomicBert,
    /// nomic-embed-text 2: rotated positions, experts in every second block.
    NomicBertMoe,
    /// jina-embeddings-v3: BERT with rotated positions.
    JinaBertV3,
    /// ModernBERT: norms before halves, blocks that see their neighbourhood, exact GELU gates.
    ModernBert,
}

/// Experts of a block, and how many of them a row uses.
const EXPERTS: usize = 4;
const EXPERTS_USED: usize = 2;

impl EncoderFamily {
    /// Every family but BERT.
    pub const OTHERS: [EncoderFamily; 4] = [
        EncoderFamily::NomicBert,
        EncoderFamily::NomicBertMoe,
        EncoderFamily::JinaBertV3,
        EncoderFamily::ModernBert,
    ];

    /// The value of `general.architecture`.
    pub fn name(self) -> &'static str {
        match self {
            EncoderFamily::Bert => "bert",
            EncoderFamily::NomicBert => "nomic-bert",
            EncoderFamily::NomicBertMoe => "nomic-bert-moe",
            EncoderFamily::JinaBertV3 => "jina-bert-v3",
            EncoderFamily::ModernBert => "modern-bert",
        }
    }

    /// The family of this name.
    pub fn named(name: &str) -> Option<EncoderFamily> {
        EncoderFamily::OTHERS.into_iter().chain([EncoderFamily::Bert]).find(|family| family.name() == name)
    }

    /// Embeddings of the first and the second text of a pair.
    pub(crate) fn token_types(self) -> usize {
        match self {
            EncoderFamily::Bert | EncoderFamily::NomicBert => 2,
            EncoderFamily::NomicBertMoe | EncoderFamily::JinaBertV3 => 1,
            EncoderFamily::ModernBert => 0,
        }
    }

    /// The base of its rotation.
    pub fn rope_base(self) -> f32 {
        match self {
            EncoderFamily::ModernBert => 160_000.0,
            EncoderFamily::JinaBertV3 => 20_000.0,
            _ => 1000.0,
        }
    }

    /// Whether block `index` has experts.
    pub fn has_experts(self, index: usize) -> bool {
        self == EncoderFamily::NomicBertMoe && index % 2 == 1
    }
}

/// Positions that a block of ModernBERT sees, half of them on each side, where it does not see all.
pub(crate) const NEIGHBOURHOOD: usize = 24;

/// The keys beside those of BERT.
pub(crate) fn keys(spec: &Bert) -> Vec<(String, Value)> {
    let name = spec.family.name();
    let key = |rest: &str, value: Value| (format!("{name}.{rest}"), value);
    let mut keys = Vec::new();
    if spec.family != EncoderFamily::Bert {
        keys.push(key("rope.freq_base", Value::F32(spec.family.rope_base())));
    }
    match spec.family {
        EncoderFamily::NomicBertMoe => keys.extend([
            key("moe_every_n_layers", Value::U32(2)),
            key("expert_count", Value::U32(EXPERTS as u32)),
            key("expert_used_count", Value::U32(EXPERTS_USED as u32)),
        ]),
        EncoderFamily::ModernBert => keys.extend([
            key("attention.sliding_window", Value::U32(NEIGHBOURHOOD as u32)),
            key("rope.freq_base_swa", Value::F32(10_000.0)),
            key("classifier.pooling_type", Value::U32(1)),
        ]),
        _ => {}
    }
    keys
}

/// The tensors of a family other than BERT. Their other names are those that candle's models want, where it has the model.
pub(crate) fn tensors(spec: &Bert) -> Vec<Named> {
    let mut tensors = Tensors { seed: spec.seed, tensors: Vec::new() };
    let (width, inner, kind) = (spec.width, spec.feed_forward, spec.kind);
    let modern = spec.family == EncoderFamily::ModernBert;
    let biased = matches!(spec.family, EncoderFamily::NomicBertMoe | EncoderFamily::JinaBertV3);
    let embeddings = if modern { "model.embeddings" } else { "embeddings" };
    let words = if modern { "tok_embeddings" } else { "word_embeddings" };
    let vocabulary = spec.vocabulary().len();
    tensors.add(
        "token_embd.weight",
        &format!("{embeddings}.{words}.weight"),
        &[width, vocabulary],
        1.0,
        Kind::F32,
    );
    if modern {
        tensors.norm("token_embd_norm", "model.embeddings.norm", width, false);
    } else {
        let types = spec.family.token_types();
        let name = "embeddings.token_type_embeddings.weight";
        tensors.add("token_types.weight", name, &[width, types], 1.0, Kind::F32);
        tensors.norm("token_embd_norm", "emb_ln", width, true);
    }
    for layer in 0..spec.layers {
        let gguf = |part: &str| format!("blk.{layer}.{part}");
        let name = |part: &str| match modern {
            true => format!("model.layers.{layer}.{part}"),
            false => format!("encoder.layers.{layer}.{part}"),
        };
        tensors.dense(&gguf("attn_qkv"), &name("attn.Wqkv"), [width, 3 * width], kind, biased);
        let output = name(if modern { "attn.Wo" } else { "attn.out_proj" });
        tensors.dense(&gguf("attn_output"), &output, [width, width], kind, biased);
        if modern {
            if layer > 0 {
                tensors.norm(&gguf("attn_norm"), &name("attn_norm"), width, false);
            }
            tensors.norm(&gguf("ffn_norm"), &name("mlp_norm"), width, false);
            tensors.dense(&gguf("ffn_up"), &name("mlp.Wi"), [width, 2 * inner], kind, false);
            tensors.dense(&gguf("ffn_down"), &name("mlp.Wo"), [inner, width], kind, false);
            continue;
        }
        tensors.norm(&gguf("attn_output_norm"), &name("norm1"), width, true);
        if spec.family.has_experts(layer) {
            tensors.dense(&gguf("ffn_gate_inp"), &name("router"), [width, EXPERTS], Kind::F32, false);
            for (part, [inputs, outputs]) in
                [("ffn_up_exps", [width, inner]), ("ffn_down_exps", [inner, width])]
            {
                let (gguf, name) = (gguf(&format!("{part}.weight")), name(part));
                tensors.add(&gguf, &name, &[inputs, outputs, EXPERTS], 1.0 / (inputs as f32).sqrt(), kind);
            }
        } else {
            if spec.family == EncoderFamily::NomicBert {
                tensors.dense(&gguf("ffn_gate"), &name("mlp.fc12"), [width, inner], kind, false);
            }
            tensors.dense(&gguf("ffn_up"), &name("mlp.fc11"), [width, inner], kind, biased);
            tensors.dense(&gguf("ffn_down"), &name("mlp.fc2"), [inner, width], kind, biased);
        }
        tensors.norm(&gguf("layer_output_norm"), &name("norm2"), width, true);
    }
    if modern {
        tensors.norm("output_norm", "model.final_norm", width, false);
    }
    if spec.labels > 0 {
        tensors.dense("cls", "head.dense", [width, width], Kind::F32, !modern);
        if modern {
            tensors.norm("cls.norm", "head.norm", width, false);
        }
        tensors.dense("cls.output", "classifier", [width, spec.labels], Kind::F32, true);
    }
    tensors.tensors
}

/// Tensors in the making.
struct Tensors {
    seed: u64,
    tensors: Vec<Named>,
}

impl Tensors {
    fn add(&mut self, gguf: &str, name: &str, shape: &[usize], deviation: f32, kind: Kind) {
        self.around(0.0, gguf, name, shape, deviation, kind);
    }

    fn around(&mut self, mean: f32, gguf: &str, name: &str, shape: &[usize], deviation: f32, kind: Kind) {
        let mut random = Random::named(self.seed, gguf);
        let values = (0..shape.iter().product()).map(|_| mean + random.normal() * deviation).collect();
        let (gguf, transformers) = (gguf.to_owned(), name.to_owned());
        self.tensors.push(Named { gguf, transformers, shape: shape.to_vec(), values, kind });
    }

    fn norm(&mut self, gguf: &str, name: &str, width: usize, biased: bool) {
        self.around(1.0, &format!("{gguf}.weight"), &format!("{name}.weight"), &[width], 0.1, Kind::F32);
        if biased {
            self.add(&format!("{gguf}.bias"), &format!("{name}.bias"), &[width], 0.1, Kind::F32);
        }
    }

    fn dense(&mut self, gguf: &str, name: &str, shape: [usize; 2], kind: Kind, biased: bool) {
        let deviation = 1.0 / (shape[0] as f32).sqrt();
        self.add(&format!("{gguf}.weight"), &format!("{name}.weight"), &shape, deviation, kind);
        if biased {
            self.add(&format!("{gguf}.bias"), &format!("{name}.bias"), &shape[1..], 0.1, Kind::F32);
        }
    }
}
