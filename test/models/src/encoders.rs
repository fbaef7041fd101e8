//! The parts of each family of encoders' files that differ from BERT's.

use crate::Kind;
use crate::bert::{Bert, Named};
use crate::gguf::Value;
use crate::random::Random;
use crate::vocabulary::character;

/// Families of encoders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EncoderFamily {
    /// BERT itself.
    Bert,
    /// XLM-RoBERTa: BERT with a unigram vocabulary.
    XlmRoberta,
    /// nomic-embed-text 1.5: rotated positions, gated feed-forward, hardly a bias.
    NomicBert,
    /// nomic-embed-text 2: rotated positions, experts in every second block.
    NomicBertMoe,
    /// jina-embeddings-v2: scores fall with the distance, exact GELU gates.
    JinaBertV2,
    /// jina-embeddings-v3: BERT with rotated positions.
    JinaBertV3,
    /// ModernBERT: norms before halves, blocks that see their neighbourhood, exact GELU gates.
    ModernBert,
    /// EmbeddingGemma: Gemma 3 that sees both ways, and two layers behind the mean.
    GemmaEmbedding,
}

/// Keys with their values.
pub(crate) type Keys = Vec<(&'static str, Value)>;

/// Experts of a block, and how many of them a row uses.
const EXPERTS: usize = 4;
const EXPERTS_USED: usize = 2;

impl EncoderFamily {
    /// Every family that does not compute what BERT does.
    pub const OTHERS: [EncoderFamily; 6] = [
        EncoderFamily::NomicBert,
        EncoderFamily::NomicBertMoe,
        EncoderFamily::JinaBertV2,
        EncoderFamily::JinaBertV3,
        EncoderFamily::ModernBert,
        EncoderFamily::GemmaEmbedding,
    ];

    /// The value of `general.architecture`.
    pub fn name(self) -> &'static str {
        match self {
            EncoderFamily::Bert | EncoderFamily::XlmRoberta => "bert",
            EncoderFamily::NomicBert => "nomic-bert",
            EncoderFamily::NomicBertMoe => "nomic-bert-moe",
            EncoderFamily::JinaBertV2 => "jina-bert-v2",
            EncoderFamily::JinaBertV3 => "jina-bert-v3",
            EncoderFamily::ModernBert => "modern-bert",
            EncoderFamily::GemmaEmbedding => "gemma-embedding",
        }
    }

    /// The family of this name.
    pub fn named(name: &str) -> Option<EncoderFamily> {
        EncoderFamily::OTHERS.into_iter().chain([EncoderFamily::Bert]).find(|family| family.name() == name)
    }

    /// Embeddings of positions that its folder has beside those of the context.
    pub(crate) fn spare_positions(self) -> usize {
        if self == EncoderFamily::XlmRoberta { 2 } else { 0 }
    }

    /// Embeddings of the first and the second text of a pair.
    pub(crate) fn token_types(self) -> usize {
        match self {
            EncoderFamily::Bert | EncoderFamily::NomicBert | EncoderFamily::JinaBertV2 => 2,
            EncoderFamily::XlmRoberta | EncoderFamily::NomicBertMoe | EncoderFamily::JinaBertV3 => 1,
            EncoderFamily::ModernBert | EncoderFamily::GemmaEmbedding => 0,
        }
    }

    /// The base of its rotation.
    pub fn rope_base(self) -> f32 {
        match self {
            EncoderFamily::ModernBert => 160_000.0,
            EncoderFamily::JinaBertV3 => 20_000.0,
            EncoderFamily::GemmaEmbedding => 1_000_000.0,
            _ => 1000.0,
        }
    }

    /// Whether it computes what BERT does.
    pub(crate) fn is_bert(self) -> bool {
        matches!(self, EncoderFamily::Bert | EncoderFamily::XlmRoberta)
    }

    /// Whether block `index` has experts.
    pub fn has_experts(self, index: usize) -> bool {
        self == EncoderFamily::NomicBertMoe && index % 2 == 1
    }
}

/// Positions that a block of ModernBERT sees, half of them on each side, where it does not see all.
pub const NEIGHBOURHOOD: usize = 24;

/// Heads of keys and values of EmbeddingGemma, and the length between its two layers.
pub const GEMMA_KV_HEADS: usize = 2;
/// See [`GEMMA_KV_HEADS`].
pub const GEMMA_PROJECTION: usize = 96;
/// One block of EmbeddingGemma in so many sees all of a text.
pub const GEMMA_PERIOD: usize = 3;

/// The keys beside those of BERT.
pub(crate) fn keys(spec: &Bert) -> Vec<(String, Value)> {
    let name = spec.family.name();
    let key = |rest: &str, value: Value| (format!("{name}.{rest}"), value);
    let mut keys = Vec::new();
    if !spec.family.is_bert() && spec.family != EncoderFamily::JinaBertV2 {
        keys.push(key("rope.freq_base", Value::F32(spec.family.rope_base())));
    }
    match spec.family {
        EncoderFamily::NomicBertMoe => keys.extend([
            key("moe_every_n_layers", Value::U32(2)),
            key("expert_count", Value::U32(EXPERTS as u32)),
            key("expert_used_count", Value::U32(EXPERTS_USED as u32)),
        ]),
        EncoderFamily::JinaBertV2 => {
            keys.push(("tokenizer.ggml.pre".to_owned(), Value::String("jina-v2-en".into())));
        }
        EncoderFamily::ModernBert => keys.extend([
            key("attention.sliding_window", Value::U32(NEIGHBOURHOOD as u32)),
            key("rope.freq_base_swa", Value::F32(10_000.0)),
            key("classifier.pooling_type", Value::U32(1)),
        ]),
        EncoderFamily::GemmaEmbedding => {
            keys.extend([
                key("attention.layer_norm_rms_epsilon", Value::F32(1e-6)),
                key("attention.head_count_kv", Value::U32(GEMMA_KV_HEADS as u32)),
                key("attention.key_length", Value::U32((spec.width / spec.heads) as u32)),
                key("attention.value_length", Value::U32((spec.width / spec.heads) as u32)),
                key("attention.sliding_window", Value::U32(NEIGHBOURHOOD as u32)),
                key("attention.sliding_window_pattern", Value::U32(GEMMA_PERIOD as u32)),
                key("rope.freq_base_swa", Value::F32(10_000.0)),
            ]);
            for (name, length) in [
                ("dense_2_feat_in", spec.width),
                ("dense_2_feat_out", GEMMA_PROJECTION),
                ("dense_3_feat_in", GEMMA_PROJECTION),
                ("dense_3_feat_out", spec.width),
            ] {
                keys.push(key(name, Value::U32(length as u32)));
            }
        }
        _ => {}
    }
    keys
}

/// The `config.json` of a model's folder, as transformers write it.
pub(crate) fn config(spec: &Bert) -> String {
    let Bert { width, layers, heads, feed_forward: inner, context, .. } = *spec;
    let vocabulary = spec.vocabulary().len();
    match spec.family {
        EncoderFamily::NomicBert => format!(
            r#"{{"architectures": ["NomicBertModel"], "model_type": "nomic_bert", "n_embd": {width}, "n_layer": {layers},
"n_head": {heads}, "n_inner": {inner}, "n_positions": {context}, "layer_norm_epsilon": 1e-12, "activation_function": "swiglu",
"rotary_emb_base": 1000, "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": false, "prenorm": false, "vocab_size": {vocabulary}}}"#
        ),
        EncoderFamily::ModernBert => {
            let classifies =
                if spec.labels > 0 { "ModernBertForSequenceClassification" } else { "ModernBertModel" };
            format!(
                r#"{{"architectures": ["{classifies}"], "model_type": "modernbert", "hidden_size": {width},
"num_hidden_layers": {layers}, "num_attention_heads": {heads}, "intermediate_size": {inner}, "max_position_embeddings": {context},
"norm_eps": 1e-12, "hidden_activation": "gelu", "global_attn_every_n_layers": 3, "global_rope_theta": 160000.0,
"local_rope_theta": 10000.0, "local_attention": {NEIGHBOURHOOD}, "classifier_pooling": "mean", "vocab_size": {vocabulary}}}"#
            )
        }
        _ => {
            let (model, name) = match spec.family {
                EncoderFamily::XlmRoberta => ("XLMRoberta", "xlm-roberta"),
                _ => ("Bert", "bert"),
            };
            let classifies = if spec.labels > 0 { "ForSequenceClassification" } else { "Model" };
            let positions = context + spec.family.spare_positions();
            let types = spec.family.token_types();
            format!(
                r#"{{"architectures": ["{model}{classifies}"], "model_type": "{name}", "hidden_act": "gelu", "hidden_size": {width},
"num_hidden_layers": {layers}, "num_attention_heads": {heads}, "intermediate_size": {inner}, "max_position_embeddings": {positions},
"layer_norm_eps": 1e-12, "type_vocab_size": {types}, "vocab_size": {vocabulary}, "position_embedding_type": "absolute"{}}}"#,
                if spec.family == EncoderFamily::XlmRoberta { r#", "pad_token_id": 1"# } else { "" }
            )
        }
    }
}

/// `tokenizer.json` of the families that have no `vocab.txt`.
pub(crate) fn tokenizer(spec: &Bert) -> Option<String> {
    let quoted = |text: &str| format!("{text:?}");
    let added = |tokens: &[(usize, &str)]| {
        let entry = |(id, content): &(usize, &str)| {
            format!(
                r#"{{"id": {id}, "content": "{content}", "single_word": false, "lstrip": {}, "rstrip": false, "normalized": false, "special": true}}"#,
                *content == "[MASK]"
            )
        };
        tokens.iter().map(entry).collect::<Vec<_>>().join(", ")
    };
    let template = |first: &str, first_id: usize, last: &str, last_id: usize| {
        format!(
            r#"{{"type": "TemplateProcessing", "single": [{{"SpecialToken": {{"id": "{first}", "type_id": 0}}}},
{{"Sequence": {{"id": "A", "type_id": 0}}}}, {{"SpecialToken": {{"id": "{last}", "type_id": 0}}}}], "pair": [{{"Sequence": {{"id": "A",
"type_id": 0}}}}], "special_tokens": {{"{first}": {{"id": "{first}", "ids": [{first_id}], "tokens": ["{first}"]}},
"{last}": {{"id": "{last}", "ids": [{last_id}], "tokens": ["{last}"]}}}}}}"#
        )
    };
    match spec.family {
        EncoderFamily::XlmRoberta => {
            let pieces = pieces(spec.vocab);
            let last = pieces.len() - 1;
            let vocab: Vec<String> =
                pieces.iter().map(|(piece, score)| format!("[{}, {score:?}]", quoted(piece))).collect();
            Some(format!(
                r#"{{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [{}],
"normalizer": {{"type": "Sequence", "normalizers": [{{"type": "Replace", "pattern": {{"Regex": " {{2,}}"}}, "content": " "}}]}},
"pre_tokenizer": {{"type": "Sequence", "pretokenizers": [{{"type": "WhitespaceSplit"}}, {{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}}]}},
"post_processor": {}, "decoder": null, "model": {{"type": "Unigram", "unk_id": 3, "vocab": [{}]}}}}"#,
                added(&[(0, "<s>"), (1, "<pad>"), (2, "</s>"), (3, "<unk>"), (last, "<mask>")]),
                template("<s>", 0, "</s>", 2),
                vocab.join(", ")
            ))
        }
        EncoderFamily::ModernBert => {
            let (tokens, merges) = pairs(spec.vocab);
            let count = tokens.len();
            let vocab: Vec<String> =
                tokens.iter().zip(0..).map(|(token, id)| format!("{}: {id}", quoted(token))).collect();
            let merges: Vec<String> =
                merges.iter().map(|(left, right)| format!("[{}, {}]", quoted(left), quoted(right))).collect();
            let special: Vec<(usize, &str)> = (count..).zip(crate::bert::CONTROL).collect();
            Some(format!(
                r#"{{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [{}], "normalizer": {{"type": "NFC"}},
"pre_tokenizer": {{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}}, "post_processor": {},
"decoder": {{"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}},
"model": {{"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
"fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": {{{}}}, "merges": [{}]}}}}"#,
                added(&special),
                template("[CLS]", count + 2, "[SEP]", count + 3),
                vocab.join(", "),
                merges.join(", ")
            ))
        }
        _ => None,
    }
}

/// The tokens of the families that have no WordPiece, and the keys about them.
pub(crate) fn vocabulary(spec: &Bert) -> Option<(Vec<String>, Keys)> {
    let number = |value: usize| Value::U32(value as u32);
    let (tokens, mut keys, [first, last]) = match spec.family {
        EncoderFamily::XlmRoberta => {
            let (tokens, scores): (Vec<String>, Vec<f32>) = pieces(spec.vocab).into_iter().unzip();
            let kind = |id: usize| match id {
                3 => 2,
                0..3 => 3,
                _ if id == tokens.len() - 1 => 3,
                _ => 1,
            };
            let keys = vec![
                ("tokenizer.ggml.model", Value::String("t5".into())),
                ("tokenizer.ggml.scores", Value::F32s(scores)),
                ("tokenizer.ggml.token_type", Value::I32s((0..tokens.len()).map(kind).collect())),
                ("tokenizer.ggml.unknown_token_id", number(3)),
                ("tokenizer.ggml.add_space_prefix", Value::Bool(true)),
                ("tokenizer.ggml.remove_extra_whitespaces", Value::Bool(true)),
            ];
            (tokens, keys, [0, 2])
        }
        EncoderFamily::ModernBert => {
            let (mut tokens, merges) = pairs(spec.vocab);
            let count = tokens.len();
            tokens.extend(crate::bert::CONTROL.map(str::to_owned));
            let kinds = (0..tokens.len()).map(|id| if id < count { 1 } else { 3 });
            let merges = merges.iter().map(|(left, right)| format!("{left} {right}"));
            let keys = vec![
                ("tokenizer.ggml.model", Value::String("gpt2".into())),
                ("tokenizer.ggml.pre", Value::String("modern-bert".into())),
                ("tokenizer.ggml.token_type", Value::I32s(kinds.collect())),
                ("tokenizer.ggml.merges", Value::Strings(merges.collect())),
            ];
            (tokens, keys, [count + 2, count + 3])
        }
        _ => return None,
    };
    keys.extend([
        ("tokenizer.ggml.tokens", Value::Strings(tokens.clone())),
        ("tokenizer.ggml.bos_token_id", number(first)),
        ("tokenizer.ggml.eos_token_id", number(last)),
        ("tokenizer.ggml.add_bos_token", Value::Bool(true)),
        ("tokenizer.ggml.add_eos_token", Value::Bool(true)),
    ]);
    Some((tokens, keys))
}

/// Pieces of a unigram vocabulary with the logarithms of their probabilities: letters, and pairs and triples
/// of them.
fn pieces(count: usize) -> Vec<(String, f32)> {
    let mut pieces: Vec<(String, f32)> =
        ["<s>", "<pad>", "</s>", "<unk>"].map(|control| (control.to_owned(), 0.0)).into();
    let letters: Vec<char> = ('a'..='z').chain('0'..='9').chain(['é', 'ж', '日', '.', ',']).collect();
    pieces.push(("▁".to_owned(), -3.0));
    pieces.extend(letters.iter().zip(0..).map(|(letter, i)| (letter.to_string(), -6.0 - i as f32 / 37.0)));
    let pairs = letters.iter().flat_map(|a| letters.iter().map(move |b| (a, b)));
    for (at, (a, b)) in pairs.enumerate() {
        if pieces.len() + 3 > count {
            break;
        }
        // No two sums of these are equal.
        let score = -7.0 - (at as f32).sqrt() / 3.0;
        pieces.push((format!("{a}{b}"), score));
        pieces.push((format!("▁{b}{a}"), score - 0.311));
    }
    pieces.push(("<mask>".to_owned(), 0.0));
    pieces
}

/// Byte-level tokens, and the pairs that are merged into the longer ones.
fn pairs(count: usize) -> (Vec<String>, Vec<(String, String)>) {
    let mut tokens: Vec<String> = (0..=255).map(|byte| character(byte).to_string()).collect();
    let mut merges = Vec::new();
    let letters: Vec<char> = "etaoinshrdlucmfwypvbgkqjxz ".replace(' ', "Ġ").chars().collect();
    for (a, b) in letters.iter().flat_map(|a| letters.iter().map(move |b| (a, b))) {
        if tokens.len() + 5 >= count {
            break;
        }
        if *b != 'Ġ' {
            tokens.push(format!("{a}{b}"));
            merges.push((a.to_string(), b.to_string()));
        }
    }
    (tokens, merges)
}

/// The tensors of a family other than BERT. Their other names are those that candle's models want, where it
/// has the model.
pub(crate) fn tensors(spec: &Bert) -> Vec<Named> {
    match spec.family {
        EncoderFamily::GemmaEmbedding => return gemma(spec),
        EncoderFamily::JinaBertV2 => return jina_v2(spec),
        _ => {}
    }
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

/// The tensors of jina-embeddings-v2. Candle has gate and up in one matrix; early files of llama.cpp's
/// converter have two, and those of today one.
fn jina_v2(spec: &Bert) -> Vec<Named> {
    let mut tensors = Tensors { seed: spec.seed, tensors: Vec::new() };
    let (width, inner, kind) = (spec.width, spec.feed_forward, spec.kind);
    for (gguf, name, rows) in [
        ("token_embd.weight", "word_embeddings", spec.vocabulary().len()),
        ("token_types.weight", "token_type_embeddings", spec.family.token_types()),
    ] {
        tensors.add(gguf, &format!("embeddings.{name}.weight"), &[width, rows], 1.0, Kind::F32);
    }
    tensors.norm("token_embd_norm", "embeddings.LayerNorm", width, true);
    for layer in 0..spec.layers {
        let gguf = |part: &str| format!("blk.{layer}.{part}");
        let name = |part: &str| format!("encoder.layer.{layer}.{part}");
        for (part, long) in [
            ("attn_q", "attention.self.query"),
            ("attn_k", "attention.self.key"),
            ("attn_v", "attention.self.value"),
            ("attn_output", "attention.output.dense"),
        ] {
            tensors.dense(&gguf(part), &name(long), [width, width], kind, true);
        }
        tensors.norm(&gguf("attn_output_norm"), &name("attention.output.LayerNorm"), width, true);
        tensors.dense(&gguf("ffn_up"), &name("mlp.gated_layers"), [width, 2 * inner], kind, false);
        tensors.dense(&gguf("ffn_down"), &name("mlp.wo"), [inner, width], kind, true);
        tensors.norm(&gguf("layer_output_norm"), &name("mlp.layernorm"), width, true);
    }
    tensors.tensors
}

/// The tensors of EmbeddingGemma, under the names that they have in GGUF.
fn gemma(spec: &Bert) -> Vec<Named> {
    let mut tensors = Tensors { seed: spec.seed, tensors: Vec::new() };
    let (width, inner, kind) = (spec.width, spec.feed_forward, spec.kind);
    let dim = width / spec.heads;
    let table = "token_embd.weight";
    // Smaller than what blocks add, once they are multiplied with the root of the width.
    tensors.add(table, table, &[width, spec.vocabulary().len()], 0.1, Kind::F32);
    for layer in 0..spec.layers {
        let name = |part: &str| format!("blk.{layer}.{part}");
        for (part, length) in [
            ("attn_norm", width),
            ("post_attention_norm", width),
            ("ffn_norm", width),
            ("post_ffw_norm", width),
            ("attn_q_norm", dim),
            ("attn_k_norm", dim),
        ] {
            tensors.norm(&name(part), &name(part), length, false);
        }
        let kv = GEMMA_KV_HEADS * dim;
        for (part, shape) in [
            ("attn_q", [width, width]),
            ("attn_k", [width, kv]),
            ("attn_v", [width, kv]),
            ("attn_output", [width, width]),
            ("ffn_gate", [width, inner]),
            ("ffn_up", [width, inner]),
            ("ffn_down", [inner, width]),
        ] {
            tensors.dense(&name(part), &name(part), shape, kind, false);
        }
    }
    tensors.norm("output_norm", "output_norm", width, false);
    tensors.dense("dense_2", "dense_2", [width, GEMMA_PROJECTION], kind, false);
    tensors.dense("dense_3", "dense_3", [GEMMA_PROJECTION, width], kind, false);
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
