//! The configuration of an encoder: its sizes, its pooling, and the prefixes of queries and passages.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::json::{corrupt, optional, required, unsupported};
use crate::gguf::Translation;
use crate::{Error, adapters};

/// Lengths of vectors that are read.
const MAX_LENGTHS: usize = 64;

/// A family of encoders that folders hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FolderFamily {
    Bert,
    /// BERT with another vocabulary, whose positions are counted from the one behind the padding token's.
    XlmRoberta,
    NomicBert,
    /// XLM-RoBERTa with rotated positions, and an adapter for each of its tasks.
    JinaBertV3,
    ModernBert,
}

/// The properties of a model on which the names of its tensors depend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FolderShape {
    pub(super) family: FolderFamily,
    pub(super) layers: usize,
    /// Number of embeddings of positions that no token has.
    pub(super) spare_positions: usize,
    /// Number of adapters, and their rank.
    pub(super) adapters: usize,
    pub(super) rank: usize,
}

/// The keys of `config.json` that all families have.
#[derive(Deserialize)]
struct FolderConfig {
    model_type: String,
    #[serde(default)]
    is_decoder: bool,
}

/// The keys of BERT and XLM-RoBERTa.
#[derive(Deserialize)]
struct Bert {
    hidden_size: u32,
    num_hidden_layers: u32,
    num_attention_heads: u32,
    intermediate_size: u32,
    max_position_embeddings: u32,
    layer_norm_eps: Option<f64>,
    hidden_act: Option<String>,
    position_embedding_type: Option<String>,
    pad_token_id: Option<u32>,
    rotary_emb_base: Option<f64>,
}

/// The keys for adapters in the configuration of XLM-RoBERTa, where there are some.
#[derive(Deserialize)]
struct AdapterKeys {
    #[serde(default)]
    lora_adaptations: Option<Vec<String>>,
    #[serde(default)]
    lora_rank: u32,
    #[serde(default)]
    lora_alpha: f64,
    #[serde(default)]
    task_instructions: Option<BTreeMap<String, String>>,
}

/// The keys of Nomic's BERT.
#[derive(Deserialize)]
struct NomicBert {
    n_embd: u32,
    n_layer: u32,
    n_head: u32,
    n_inner: Option<u32>,
    n_positions: u32,
    layer_norm_epsilon: Option<f64>,
    activation_function: Option<String>,
    rotary_emb_base: Option<f64>,
    rotary_emb_fraction: Option<f64>,
    #[serde(default)]
    rotary_emb_interleaved: bool,
    max_trained_positions: Option<u32>,
    #[serde(default)]
    prenorm: bool,
    #[serde(default)]
    num_experts: u32,
}

/// The keys of ModernBERT.
#[derive(Deserialize)]
struct ModernBert {
    hidden_size: u32,
    num_hidden_layers: u32,
    num_attention_heads: u32,
    intermediate_size: u32,
    max_position_embeddings: u32,
    norm_eps: Option<f64>,
    hidden_activation: Option<String>,
    global_attn_every_n_layers: Option<u32>,
    global_rope_theta: Option<f64>,
    local_rope_theta: Option<f64>,
    local_attention: Option<u32>,
    classifier_pooling: Option<String>,
}

/// One of the steps in `modules.json`.
#[derive(Deserialize)]
struct Module {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    path: String,
}

/// The `config.json` of the pooling step.
#[derive(Deserialize, Default)]
#[serde(default)]
struct PoolingConfig {
    pooling_mode_cls_token: bool,
    pooling_mode_mean_tokens: bool,
    pooling_mode_max_tokens: bool,
    pooling_mode_mean_sqrt_len_tokens: bool,
    pooling_mode_weightedmean_tokens: bool,
    pooling_mode_lasttoken: bool,
}

/// `sentence_bert_config.json`.
#[derive(Deserialize)]
struct SentenceBert {
    max_seq_length: Option<u32>,
}

/// `config_sentence_transformers.json`.
#[derive(Deserialize)]
struct SentenceTransformers {
    #[serde(default)]
    prompts: BTreeMap<String, Option<String>>,
}

/// Translates the configuration files.
///
/// # Errors
/// Errors of reading the files; [`Error::UnsupportedModel`] for any model but an encoder of these families.
pub(super) fn read(folder: &Path, translation: &mut Translation) -> Result<FolderShape, Error> {
    let path = folder.join("config.json");
    let FolderConfig { model_type, is_decoder } = required(&path)?;
    if is_decoder {
        return Err(unsupported(&path, "is_decoder is true"));
    }
    let shape = match &*model_type {
        "bert" => bert(&path, FolderFamily::Bert, translation)?,
        "xlm-roberta" if is_rotated(&path)? => jina_bert_v3(&path, translation)?,
        "xlm-roberta" => bert(&path, FolderFamily::XlmRoberta, translation)?,
        "nomic_bert" => nomic_bert(&path, translation)?,
        "modernbert" => modern_bert(&path, translation)?,
        other => {
            let message = format!(
                "model_type is \"{}\"; bert, xlm-roberta, nomic_bert and modernbert are read",
                shown(other)
            );
            return Err(unsupported(&path, message));
        }
    };
    let architecture = shape.family.architecture();
    translation.string("general.architecture", architecture);
    translation.integer(&format!("{architecture}.block_count"), shape.layers as u32);
    translation.integer(&format!("{architecture}.pooling_type"), pooling(folder)?);
    let path = folder.join("config_sentence_transformers.json");
    if let Some(SentenceTransformers { prompts }) = optional(&path)? {
        for (key, names) in [("query", ["query", "search_query"]), ("passage", ["passage", "document"])] {
            if let Some(prompt) = names.iter().find_map(|name| prompts.get(*name)?.as_deref()) {
                translation.string(&format!("steadytext.prompt.{key}"), prompt);
            }
        }
    }
    Ok(shape)
}

impl FolderFamily {
    /// Its name in GGUF files.
    fn architecture(self) -> &'static str {
        match self {
            FolderFamily::Bert | FolderFamily::XlmRoberta => "bert",
            FolderFamily::NomicBert => "nomic-bert",
            FolderFamily::JinaBertV3 => "jina-bert-v3",
            FolderFamily::ModernBert => "modern-bert",
        }
    }
}

/// Part of a value, as errors show it.
fn shown(text: &str) -> String {
    text.chars().take(64).collect::<String>().escape_debug().to_string()
}

/// Refuses a value that is present and not one of these.
fn only(path: &Path, key: &str, value: Option<&str>, known: &[&str]) -> Result<(), Error> {
    match value.filter(|value| !known.contains(value)) {
        None => Ok(()),
        Some(other) => {
            let known = known.join("\" or \"");
            Err(unsupported(path, format!("{key} is \"{}\", not \"{known}\"", shown(other))))
        }
    }
}

/// Sizes that all families have.
struct Sizes {
    width: u32,
    heads: u32,
    inner: u32,
    context: u32,
    epsilon: f64,
}

fn sizes(path: &Path, architecture: &str, sizes: &Sizes, translation: &mut Translation) -> Result<(), Error> {
    let sentence = path.with_file_name("sentence_bert_config.json");
    let sentence: Option<SentenceBert> = optional(&sentence)?;
    let longest = sentence.and_then(|sentence| sentence.max_seq_length).unwrap_or(u32::MAX);
    let mut integer = |key: &str, value| translation.integer(&format!("{architecture}.{key}"), value);
    integer("context_length", sizes.context.min(longest));
    integer("embedding_length", sizes.width);
    integer("feed_forward_length", sizes.inner);
    integer("attention.head_count", sizes.heads);
    translation.float(&format!("{architecture}.attention.layer_norm_epsilon"), sizes.epsilon);
    Ok(())
}

fn bert(path: &Path, family: FolderFamily, translation: &mut Translation) -> Result<FolderShape, Error> {
    let config: Bert = required(path)?;
    only(path, "hidden_act", config.hidden_act.as_deref(), &["gelu"])?;
    only(path, "position_embedding_type", config.position_embedding_type.as_deref(), &["absolute"])?;
    let spare = match family {
        FolderFamily::XlmRoberta => config.pad_token_id.unwrap_or(1).saturating_add(1),
        _ => 0,
    };
    if spare >= config.max_position_embeddings {
        let positions = config.max_position_embeddings;
        return Err(corrupt(path, format!("of {positions} positions {spare} are for padding")));
    }
    let of = Sizes {
        width: config.hidden_size,
        heads: config.num_attention_heads,
        inner: config.intermediate_size,
        context: config.max_position_embeddings - spare,
        epsilon: config.layer_norm_eps.unwrap_or(1e-12),
    };
    sizes(path, "bert", &of, translation)?;
    let spare_positions = spare as usize;
    Ok(FolderShape { spare_positions, ..plain(family, config.num_hidden_layers) })
}

/// A model of so many layers, with positions for all tokens and without adapters.
fn plain(family: FolderFamily, layers: u32) -> FolderShape {
    FolderShape { family, layers: layers as usize, spare_positions: 0, adapters: 0, rank: 0 }
}

/// Whether the positions of XLM-RoBERTa are rotated in, as those of jina-embeddings-v3 are.
fn is_rotated(path: &Path) -> Result<bool, Error> {
    let config: Bert = required(path)?;
    Ok(config.position_embedding_type.as_deref() == Some("rotary"))
}

fn jina_bert_v3(path: &Path, translation: &mut Translation) -> Result<FolderShape, Error> {
    let config: Bert = required(path)?;
    only(path, "hidden_act", config.hidden_act.as_deref(), &["gelu"])?;
    let of = Sizes {
        width: config.hidden_size,
        heads: config.num_attention_heads,
        inner: config.intermediate_size,
        // The positions up to that of the padding token belong to no token, as in XLM-RoBERTa.
        context: config
            .max_position_embeddings
            .saturating_sub(config.pad_token_id.unwrap_or(1).saturating_add(1)),
        epsilon: config.layer_norm_eps.unwrap_or(1e-12),
    };
    let family = FolderFamily::JinaBertV3;
    sizes(path, family.architecture(), &of, translation)?;
    translation.float("jina-bert-v3.rope.freq_base", config.rotary_emb_base.unwrap_or(10_000.0));
    let shape = plain(family, config.num_hidden_layers);
    let adapters: AdapterKeys = required(path)?;
    let Some(tasks) = &adapters.lora_adaptations else { return Ok(shape) };
    check_tasks(path, tasks)?;
    let (rank, alpha) = (adapters.lora_rank, adapters.lora_alpha);
    if rank == 0 || !(alpha > 0.0 && (alpha as f32).is_finite()) {
        return Err(corrupt(path, format!("lora_rank is {rank} and lora_alpha is {alpha}")));
    }
    let before = |task: &String| adapters.task_instructions.as_ref().and_then(|prompts| prompts.get(task));
    let prompts: Vec<&str> = tasks.iter().map(|task| before(task).map_or("", |prompt| prompt)).collect();
    if !prompts.iter().all(|prompt| adapters::is_prompt(prompt)) {
        return Err(corrupt(path, "task_instructions has a zero character, or is too long"));
    }
    translation.strings(adapters::TASKS_KEY, tasks.iter().map(|task| &**task));
    translation.strings(adapters::PROMPTS_KEY, prompts.into_iter());
    translation.float(adapters::ALPHA_KEY, alpha);
    Ok(FolderShape { adapters: tasks.len(), rank: rank as usize, ..shape })
}

/// Refuses names that cannot be tasks of a model.
fn check_tasks(path: &Path, tasks: &[String]) -> Result<(), Error> {
    if tasks.is_empty() || tasks.len() > adapters::MAX_ADAPTERS {
        let (count, most) = (tasks.len(), adapters::MAX_ADAPTERS);
        return Err(corrupt(path, format!("lora_adaptations has {count} elements, 1 to {most} are read")));
    }
    for (index, task) in tasks.iter().enumerate() {
        if !adapters::is_task(task) || tasks[..index].contains(task) {
            let reason = format!("lora_adaptations has \"{}\" twice, or it is no task", shown(task));
            return Err(corrupt(path, reason));
        }
    }
    Ok(())
}

/// The tasks of a folder; nothing else in it is read.
///
/// # Errors
/// Errors of reading `config.json`.
pub(super) fn tasks(folder: &Path) -> Result<Vec<String>, Error> {
    let path = folder.join("config.json");
    let FolderConfig { model_type, .. } = required(&path)?;
    if model_type != "xlm-roberta" || !is_rotated(&path)? {
        return Ok(Vec::new());
    }
    let adapters: AdapterKeys = required(&path)?;
    let Some(tasks) = adapters.lora_adaptations else { return Ok(Vec::new()) };
    check_tasks(&path, &tasks)?;
    Ok(tasks)
}

/// The files that say how long a folder's vectors are.
pub(crate) const LENGTHS_IN: [&str; 2] = ["config.json", "config_sentence_transformers.json"];

/// The lengths of the vectors that a folder's model makes.
#[derive(Debug)]
pub(crate) struct Lengths {
    /// The length of an uncut vector.
    pub(crate) whole: Option<u32>,
    /// Lengths that vectors may be cut to because the model was trained for them, in ascending order.
    pub(crate) shorter: Vec<u32>,
}

/// The keys of `config.json` for these lengths, by the names of any family.
#[derive(Deserialize)]
struct WidthKeys {
    #[serde(alias = "n_embd")]
    hidden_size: Option<u32>,
    #[serde(default)]
    matryoshka_dimensions: Option<Vec<u32>>,
}

/// The key of `config_sentence_transformers.json` for a shorter length.
#[derive(Deserialize)]
struct Truncation {
    truncate_dim: Option<u32>,
}

/// The lengths of a folder's vectors, without a look at anything else in it.
///
/// # Errors
/// The errors of reading the files.
pub(super) fn lengths(folder: &Path) -> Result<Lengths, Error> {
    let [config, beside] = LENGTHS_IN.map(|name| folder.join(name));
    let WidthKeys { hidden_size: whole, matryoshka_dimensions } = required(&config)?;
    let truncated: Option<Truncation> = optional(&beside)?;
    let mut shorter = matryoshka_dimensions.unwrap_or_default();
    shorter.extend(truncated.and_then(|truncated| truncated.truncate_dim));
    shorter.retain(|length| *length > 0 && whole.is_none_or(|whole| *length < whole));
    shorter.sort_unstable();
    shorter.dedup();
    shorter.truncate(MAX_LENGTHS);
    Ok(Lengths { whole, shorter })
}

fn nomic_bert(path: &Path, translation: &mut Translation) -> Result<FolderShape, Error> {
    let config: NomicBert = required(path)?;
    only(path, "activation_function", config.activation_function.as_deref(), &["swiglu"])?;
    for (key, is_other) in [
        ("prenorm", config.prenorm),
        ("rotary_emb_interleaved", config.rotary_emb_interleaved),
        ("num_experts", config.num_experts > 0),
        ("rotary_emb_fraction", config.rotary_emb_fraction.is_some_and(|fraction| fraction != 1.0)),
    ] {
        if is_other {
            return Err(unsupported(path, format!("{key} has a value that is not known")));
        }
    }
    // Beyond the trained length, positions would have to be scaled.
    let context = config.max_trained_positions.unwrap_or(u32::MAX).min(config.n_positions).min(2048);
    let of = Sizes {
        width: config.n_embd,
        heads: config.n_head,
        inner: config.n_inner.unwrap_or(config.n_embd.saturating_mul(4)),
        context,
        epsilon: config.layer_norm_epsilon.unwrap_or(1e-12),
    };
    sizes(path, "nomic-bert", &of, translation)?;
    translation.float("nomic-bert.rope.freq_base", config.rotary_emb_base.unwrap_or(1000.0));
    Ok(plain(FolderFamily::NomicBert, config.n_layer))
}

fn modern_bert(path: &Path, translation: &mut Translation) -> Result<FolderShape, Error> {
    let config: ModernBert = required(path)?;
    let of = Sizes {
        width: config.hidden_size,
        heads: config.num_attention_heads,
        inner: config.intermediate_size,
        context: config.max_position_embeddings,
        epsilon: config.norm_eps.unwrap_or(1e-5),
    };
    sizes(path, "modern-bert", &of, translation)?;
    translation
        .string("modern-bert.hidden_activation", config.hidden_activation.as_deref().unwrap_or("gelu"));
    let (global, local) =
        (config.global_rope_theta.unwrap_or(160_000.0), config.local_rope_theta.unwrap_or(10_000.0));
    translation.float("modern-bert.rope.freq_base", global);
    translation.float("modern-bert.rope.freq_base_swa", local);
    translation.integer("modern-bert.attention.sliding_window", config.local_attention.unwrap_or(128));
    let period = config.global_attn_every_n_layers.unwrap_or(3);
    translation.integer("modern-bert.attention.sliding_window_pattern", period);
    only(path, "classifier_pooling", config.classifier_pooling.as_deref(), &["mean", "cls"])?;
    let pooling = if config.classifier_pooling.as_deref() == Some("mean") { 1 } else { 2 };
    translation.integer("modern-bert.classifier.pooling_type", pooling);
    Ok(plain(FolderFamily::ModernBert, config.num_hidden_layers))
}

/// The number for `pooling_type`: that of the pooling step, or the mean where there is none.
fn pooling(folder: &Path) -> Result<u32, Error> {
    let path = folder.join("modules.json");
    let mut step = PathBuf::from("1_Pooling");
    if let Some(modules) = optional::<Vec<Module>>(&path)? {
        for module in &modules {
            match module.kind.rsplit('.').next() {
                Some("Transformer" | "Normalize") => {}
                Some("Pooling") => step = PathBuf::from(&module.path),
                _ => {
                    let shown: String = module.kind.chars().take(64).collect();
                    let message = format!("it has a step \"{}\", which is not known", shown.escape_debug());
                    return Err(unsupported(&path, message));
                }
            }
        }
    }
    // A folder must not name files outside of itself.
    if !step.components().all(|part| matches!(part, Component::Normal(_))) {
        return Err(corrupt(&path, "the path of a step leads out of the folder"));
    }
    let path = folder.join(step).join("config.json");
    let Some(pooling) = optional::<PoolingConfig>(&path)? else { return Ok(1) };
    let unknown = pooling.pooling_mode_max_tokens
        || pooling.pooling_mode_mean_sqrt_len_tokens
        || pooling.pooling_mode_weightedmean_tokens;
    match (pooling.pooling_mode_mean_tokens, pooling.pooling_mode_cls_token, pooling.pooling_mode_lasttoken) {
        (true, false, false) if !unknown => Ok(1),
        (false, true, false) if !unknown => Ok(2),
        (false, false, true) if !unknown => Ok(3),
        _ => Err(unsupported(&path, "vectors are pooled neither by mean, nor by first or last token")),
    }
}
