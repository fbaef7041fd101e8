//! A summary of a model's file: its properties, its needs, and the reasons if it is refused, for people who
//! have a file and wonder whether it runs. Nothing is computed or written.
//!
//! Invariant: a file that is refused is summed up as far as it can be read.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use crate::backend::{BackendKind, Candle};
use crate::card::{Card, Task};
use crate::computing::ModelLimits;
use crate::gguf::{GgmlType, Gguf};
use crate::kernels::instructions::Instructions;
use crate::template::ChatTemplate;
use crate::tokenizer::Tokenizer;
use crate::{Embed, Error, KvCacheType, ModelSource, adapters, model, model_files, safetensors};

/// Requests and tokens of each of them that memory is estimated for.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Requests that run together.
    pub requests: usize,
    /// Tokens of each, prompt and answer; 0 for the model's context, at most 4,096.
    pub tokens: usize,
    /// Threads that compute.
    pub threads: usize,
    /// Format of keys and values.
    pub kv_cache_type: KvCacheType,
}

/// A model in short.
#[derive(Debug, Clone, Serialize)]
pub struct ModelSummary {
    /// Its file.
    pub file: String,
    /// The files that it is split into.
    pub parts: usize,
    /// Bytes of it, or of all parts; of a folder those of all files that are read.
    pub bytes: u64,
    /// The version of GGUF; None for a folder with safetensors.
    pub gguf_version: Option<u32>,
    /// Its own name, by `general.name` or else `general.basename`.
    pub name: Option<String>,
    /// Under which licence it is: as its card says, or its file, or the README.md of its folder.
    pub license: Option<String>,
    /// The family, by `general.architecture`.
    pub architecture: Option<String>,
    /// `decoder` or `encoder`, for families that are known.
    pub kind: Option<&'static str>,
    /// Blocks.
    pub blocks: Option<u32>,
    /// Weights.
    pub parameters: u64,
    /// The name of its quantization, by `general.file_type`.
    pub quantization: Option<&'static str>,
    /// The element types of its tensors, those with most bytes first.
    pub element_types: Vec<TypeShare>,
    /// Whether an importance matrix was used to quantize it.
    pub importance_matrix: bool,
    /// Tokens that it was made for.
    pub declared_context_length: Option<u32>,
    /// Numbers of a vector.
    pub dimensions: Option<u32>,
    /// The tasks that it has adapters for.
    pub adapters: Vec<String>,
    /// Tokens that a request may have.
    pub context_length: Option<usize>,
    /// The kind of tokenizer, by `tokenizer.ggml.model` and `tokenizer.ggml.pre`.
    pub tokenizer: Option<String>,
    /// Tokens that it has.
    pub vocabulary: Option<usize>,
    /// The origin of its chat template.
    pub chat_template: Option<String>,
    /// Templates that have names.
    pub named_templates: Vec<String>,
    /// An example prompt in the template.
    pub prompt: Option<String>,
    /// The tokens that end an answer.
    pub end_tokens: Vec<String>,
    /// Bytes that a sequence keeps of each token.
    pub state_bytes_per_token: Option<u64>,
    /// The additional state for the last tokens, where layers have a sliding window.
    pub window: Option<WindowMemory>,
    /// The memory that it takes while it is loaded.
    pub memory: Option<MemoryEstimate>,
    /// The backend that computes it, and the guarantees of that.
    pub computed_by: String,
    /// The other backend that can compute it, by the setting `backend`.
    pub also_computed_by: Option<&'static str>,
    /// The reasons why it cannot be used; empty where it can be.
    pub refusals: Vec<FileRefusal>,
}

/// The tensors of one element type.
#[derive(Debug, Clone, Serialize)]
pub struct TypeShare {
    /// Its name.
    pub name: String,
    /// Tensors.
    pub tensors: usize,
    /// Bytes of them; 0 for types whose size is not known.
    pub bytes: u64,
    /// Whether there are kernels for it.
    pub supported: bool,
}

/// The state that a sequence keeps of its last tokens.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct WindowMemory {
    /// Number of these tokens; the state also has those of the pass that is computed, and those up to the
    /// ends of blocks.
    pub tokens: usize,
    /// Bytes of each.
    pub bytes_per_token: u64,
}

/// An estimate, in bytes.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct MemoryEstimate {
    /// Weights, vocabulary and what passes are computed in.
    pub model: u64,
    /// Requests of the estimate.
    pub requests: usize,
    /// Tokens of each.
    pub tokens: usize,
    /// The bytes of their state, together.
    pub state: u64,
}

/// The reason why a file cannot be used.
#[derive(Debug, Clone, Serialize)]
pub struct FileRefusal {
    /// The reason, naming the key, tensor or missing feature.
    pub reason: String,
    /// A sentence about what would work instead.
    pub hint: Option<String>,
}

impl FileRefusal {
    fn of(error: &Error, file: &Path) -> FileRefusal {
        let reason = match (error, std::error::Error::source(error)) {
            // The file is named above, unless it is another part of the model.
            (Error::UnsupportedModel { path, reason, .. }, _) if path == file => reason.clone(),
            (Error::CorruptModel { path, reason }, _) if path == file => format!("it is corrupt: {reason}"),
            (_, Some(source)) => format!("{error}: {source}"),
            (_, None) => error.to_string(),
        };
        let hint = match error {
            Error::CorruptModel { .. } => Some("Fetch the file again and compare its checksum."),
            Error::Template { .. } => Some("Use a file with a working tokenizer.chat_template."),
            _ => error.hint(),
        };
        FileRefusal { reason, hint: hint.map(str::to_owned) }
    }
}

/// The length of a model's vectors, as its keys say.
pub fn dimensions(gguf: &Gguf) -> Option<u32> {
    let architecture = gguf.opt_str("general.architecture").ok().flatten()?;
    gguf.opt_u32(&format!("{architecture}.embedding_length")).ok().flatten()
}

impl ModelSummary {
    /// Sums a file up; what was read of it comes along, for those who want to list more.
    ///
    /// # Errors
    /// [`Error::ModelFile`] where it cannot be opened; for a folder, whatever keeps it from being used.
    pub fn of(source: &ModelSource, load: Load) -> Result<(ModelSummary, Gguf), Error> {
        let (gguf, refused) = match source.open() {
            Ok(gguf) => (gguf, None),
            Err(error) => match source {
                ModelSource::File(path) if !path.is_dir() => (Gguf::survey(path)?, Some(error)),
                _ => return Err(error),
            },
        };
        let mut summary = ModelSummary::described(&gguf);
        if let ModelSource::File(path) = source {
            // A card that cannot be read is ignored here; loading the model reports it.
            let card = Card::read(path).ok().flatten();
            summary.license = card.and_then(|card| card.licence).or(summary.license);
            if gguf.is_translated() {
                summary.license = summary.license.or_else(|| safetensors::licence(path));
                let lengths =
                    model_files(path).into_iter().filter_map(|file| Some(file.metadata().ok()?.len()));
                summary.bytes = lengths.sum();
            }
        }
        summary.refusals.extend(refused.iter().map(|error| FileRefusal::of(error, gguf.path())));
        if gguf.keys().len() > 0 {
            summary.add_parts(&gguf, load, refused.is_some());
        }
        Ok((summary, gguf))
    }

    /// The properties that keys and tensors give by themselves. A key of the wrong type counts as missing
    /// here.
    fn described(gguf: &Gguf) -> ModelSummary {
        let text = |key: &str| gguf.opt_str(key).ok().flatten().map(str::to_owned);
        let architecture = text("general.architecture");
        let number = |key: &str| {
            let key = format!("{}.{key}", architecture.as_deref()?);
            gguf.opt_u32(&key).ok().flatten()
        };
        let tokenizer = match (text("tokenizer.ggml.model"), text("tokenizer.ggml.pre")) {
            (Some(model), Some(pre)) => Some(format!("{model}, {pre}")),
            (model, _) => model,
        };
        let named = |(key, _): (&str, _)| key.strip_prefix("tokenizer.chat_template.").map(str::to_owned);
        ModelSummary {
            file: gguf.path().display().to_string(),
            parts: gguf.files().len(),
            bytes: gguf.file_size(),
            gguf_version: (!gguf.is_translated()).then(|| gguf.version()),
            name: text("general.name").or_else(|| text("general.basename")),
            license: match text("general.license") {
                // An unusual licence has its name in another key, as at the hub.
                Some(other) if other == "other" => text("general.license.name").or(Some(other)),
                licence => licence,
            },
            kind: None,
            blocks: number("block_count"),
            parameters: parameters(gguf),
            quantization: gguf.opt_u32("general.file_type").ok().flatten().and_then(file_type),
            element_types: shares(gguf),
            importance_matrix: gguf.keys().any(|(key, _)| key.starts_with("quantize.imatrix.")),
            declared_context_length: number("context_length"),
            dimensions: dimensions(gguf),
            adapters: adapters::list(gguf)
                .map(|all| all.iter().map(|adapter| adapter.task.to_owned()).collect())
                .unwrap_or_default(),
            context_length: None,
            architecture,
            tokenizer,
            vocabulary: gguf.opt_strings("tokenizer.ggml.tokens").ok().flatten().map(|tokens| tokens.len()),
            chat_template: None,
            named_templates: gguf.keys().filter_map(named).collect(),
            prompt: None,
            end_tokens: Vec::new(),
            state_bytes_per_token: None,
            window: None,
            memory: None,
            computed_by: format!("native kernels, {}: the same bytes on every machine", instructions()),
            also_computed_by: None,
            refusals: Vec::new(),
        }
    }

    /// Adds the results of the engine's own checks of the parts. A file that was `refused` as a whole has
    /// given its reason, and most contradictions found here follow from that.
    fn add_parts(&mut self, gguf: &Gguf, load: Load, refused: bool) {
        let missing: Vec<&str> =
            self.element_types.iter().filter(|share| !share.supported).map(|share| &*share.name).collect();
        let mut refusals = Vec::new();
        let mut note = |error: &Error| {
            if !(refused && matches!(error, Error::CorruptModel { .. })) {
                refusals.push(FileRefusal::of(error, gguf.path()));
            }
        };
        if !missing.is_empty() {
            let reason = format!("there are no kernels for the element type {}", missing.join(", "));
            note(&gguf.unsupported_but(reason, model::other_quantizations()));
        }
        match model::spec(gguf) {
            Ok(spec) => {
                self.kind =
                    Some(if model::is_encoder(gguf).unwrap_or(false) { "encoder" } else { "decoder" });
                self.context_length = Some(spec.context_length);
                if missing.is_empty() && !refused {
                    match self.add_memory(gguf, BackendKind::Native(load.kv_cache_type), load) {
                        Ok(()) => self.also_computed_by = Candle::computes(gguf).then_some(CANDLE),
                        Err(Error::UnsupportedModel { .. }) if Candle::computes(gguf) => {
                            CANDLE.clone_into(&mut self.computed_by);
                            if let Err(error) = self.add_memory(gguf, BackendKind::Candle, load) {
                                note(&error);
                            }
                        }
                        Err(error) => note(&error),
                    }
                }
            }
            Err(error) => note(&error),
        }
        match Tokenizer::from_gguf(gguf) {
            Ok(tokenizer) => {
                self.vocabulary = Some(tokenizer.vocab_size());
                // Encoders neither chat nor end.
                if !model::is_encoder(gguf).unwrap_or(false) {
                    let text = |id: &u32| tokenizer.special_text(*id).unwrap_or_default().to_owned();
                    self.end_tokens = tokenizer.end_tokens().iter().map(text).collect();
                    match ChatTemplate::from_gguf(gguf) {
                        Ok(template) => {
                            self.chat_template = Some(template.origin().to_string());
                            self.prompt = Some(template.to_string());
                        }
                        Err(error) => note(&error),
                    }
                }
            }
            Err(error) => note(&error),
        }
        self.refusals.append(&mut refusals);
    }

    /// Adds the memory that the model and its sequences take on a backend.
    ///
    /// # Errors
    /// The reason why the backend does not compute it.
    fn add_memory(&mut self, gguf: &Gguf, backend: BackendKind, load: Load) -> Result<(), Error> {
        let (backend, limits) = (backend.open(false), limits(load));
        let context = self.context_length.unwrap_or(0);
        let tokens = if load.tokens == 0 { context.min(4096) } else { load.tokens.min(context) };
        let state = backend.state(gguf, limits, tokens)?;
        let Ok(bytes) = backend.bytes(gguf, limits) else { return Ok(()) };
        self.state_bytes_per_token = state.map(|state| state.per_position);
        self.window = state
            .and_then(|state| state.window)
            .map(|(tokens, bytes_per_token)| WindowMemory { tokens, bytes_per_token });
        self.memory = Some(MemoryEstimate {
            model: bytes.saturating_add(gguf.metadata_bytes().saturating_mul(4)),
            requests: load.requests,
            tokens,
            state: state.map_or(0, |state| state.in_all.saturating_mul(load.requests as u64)),
        });
        Ok(())
    }
}

/// The prompt that the model gets for a text that it is to continue, or to embed as a query. `None` where
/// that cannot be told.
pub fn prompt_of(gguf: &Gguf, task: Task, text: &str) -> Option<String> {
    let encoder = model::is_encoder(gguf).ok()?;
    Some(match task {
        Task::Generate if !encoder => ChatTemplate::from_gguf(gguf).ok()?.show(text),
        Task::Embed if !encoder => Embed::query(text, None).instructed().into_owned(),
        Task::Generate | Task::Embed | Task::Rerank => text.to_owned(),
    })
}

/// The passes that the scheduler loads models for.
fn limits(load: Load) -> ModelLimits {
    crate::scheduler::limits(load.requests, load.threads)
}

/// The families that can be computed, by `general.architecture`.
pub fn families() -> impl Iterator<Item = &'static str> {
    model::families()
}

/// Whether the models of a family are encoders.
pub fn is_encoder(family: &str) -> bool {
    model::is_encoder_family(family)
}

/// The element types that are known, and whether matrices may have them.
pub fn element_types() -> impl Iterator<Item = (String, bool)> {
    GgmlType::ALL
        .into_iter()
        .map(|kind| (kind.to_string(), model::element_types().any(|known| known == kind)))
}

/// The description of candle, which computes models that the native kernels do not, or all, by the setting
/// `backend`.
const CANDLE: &str =
    "candle: the same bytes each time on one machine, and others where it has other instructions";

/// Elements of all tensors.
fn parameters(gguf: &Gguf) -> u64 {
    gguf.tensors().map(|tensor| elements(tensor.shape)).fold(0, u64::saturating_add)
}

fn elements(shape: &[usize]) -> u64 {
    shape.iter().fold(1, |product, extent| product.saturating_mul(*extent as u64))
}

/// The element types, largest first.
fn shares(gguf: &Gguf) -> Vec<TypeShare> {
    let mut shares: BTreeMap<u32, TypeShare> = BTreeMap::new();
    for tensor in gguf.tensors() {
        let supported = model::element_types().any(|kind| kind == tensor.kind);
        let share = shares.entry(tensor.kind.number()).or_insert_with(|| TypeShare {
            name: tensor.kind.to_string(),
            tensors: 0,
            bytes: 0,
            supported,
        });
        let (block, bytes) = tensor.kind.block().unwrap_or((1, 0));
        share.tensors += 1;
        share.bytes =
            share.bytes.saturating_add((elements(tensor.shape) / block as u64).saturating_mul(bytes as u64));
    }
    let mut shares: Vec<TypeShare> = shares.into_values().collect();
    shares.sort_by_key(|share| std::cmp::Reverse(share.bytes));
    shares
}

/// The names of `general.file_type`, llama.cpp's `llama_ftype`.
fn file_type(number: u32) -> Option<&'static str> {
    Some(match number {
        0 => "F32",
        1 => "F16",
        2 => "Q4_0",
        3 => "Q4_1",
        7 => "Q8_0",
        8 => "Q5_0",
        9 => "Q5_1",
        10 => "Q2_K",
        11 => "Q3_K_S",
        12 => "Q3_K_M",
        13 => "Q3_K_L",
        14 => "Q4_K_S",
        15 => "Q4_K_M",
        16 => "Q5_K_S",
        17 => "Q5_K_M",
        18 => "Q6_K",
        19 => "IQ2_XXS",
        20 => "IQ2_XS",
        21 => "Q2_K_S",
        22 => "IQ3_XS",
        23 => "IQ3_XXS",
        24 => "IQ1_S",
        25 => "IQ4_NL",
        26 => "IQ3_S",
        27 => "IQ3_M",
        28 => "IQ2_S",
        29 => "IQ2_M",
        30 => "IQ4_XS",
        31 => "IQ1_M",
        32 => "BF16",
        36 => "TQ1_0",
        37 => "TQ2_0",
        38 => "MXFP4_MOE",
        _ => return None,
    })
}

/// The instructions that this machine computes with.
fn instructions() -> &'static str {
    match Instructions::best() {
        Instructions::Portable => "no vector instructions",
        Instructions::Neon => "NEON",
        Instructions::Avx2 => "AVX2",
        Instructions::Avx512 => "AVX-512",
    }
}
