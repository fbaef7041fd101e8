//! A loaded model with its tokenizer, template and workspace, and the state that is kept between its
//! requests.

use std::sync::Arc;

use super::likelihood_memo::LikelihoodMemo;
use super::load_settings::LoadSettings;
use super::loaded_encoder::{EncoderReader, LoadedEncoder};
use super::plan::{DecoderReader, Plan};
use super::prefix::Prefixes;
use crate::backend::BackendKind;
use crate::computing::{Backend, Decoder, Loading};
use crate::constraints::Grammars;
use crate::gguf::Gguf;
use crate::kernels::Pool;
use crate::memory::{self, Ledger};
use crate::rerank::{Reranker, score_of_labels, softmax_of_two};
use crate::template::ChatTemplate;
use crate::tokenizer::Tokenizer;
use crate::{Error, FileId, Generate, ModelIdentity, ModelSource, Work};

/// A decoder with all that belongs to it.
pub(super) struct LoadedDecoder {
    pub(super) decoder: Box<dyn Decoder>,
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) template: Arc<ChatTemplate>,
    pub(super) reranker: Reranker,
    grammars: Arc<Grammars>,
    /// Blocks of state kept for the next requests.
    pub(super) prefixes: Prefixes,
    pub(super) likelihoods: LikelihoodMemo,
    /// Tokens that a request may have in all.
    pub(super) context_length: usize,
    /// Seconds that a row of a pass with a slice of prompts takes, a running average.
    pub(super) row_seconds: Option<f64>,
}

/// A model's file, looked at before it is loaded.
pub(super) struct Opened {
    pub(super) gguf: Gguf,
    /// The identity of the file, taken before it was opened; None for the builtin model.
    pub(super) file: Option<FileId>,
    /// The backend that will compute it.
    pub(super) backend: BackendKind,
    /// Memory that the model will take.
    pub(super) bytes: u64,
}

impl Opened {
    /// Opens the file and adds up what its model needs.
    pub(super) fn new(source: &ModelSource, settings: &LoadSettings) -> Result<Opened, Error> {
        // Taken before the file is read: a file that changes meanwhile is another one.
        let file = match source {
            ModelSource::Builtin => None,
            ModelSource::File(path) => ModelIdentity::file_of(path).ok(),
        };
        let gguf = source.open()?;
        // Vocabulary and merges are built from the metadata, and take some times as much.
        let metadata = gguf.metadata_bytes().saturating_mul(4);
        let backend = settings.backend.of(&gguf, settings.kv_cache_type, settings.limits())?;
        let bytes =
            backend.open(settings.whole_windows).bytes(&gguf, settings.limits())?.saturating_add(metadata);
        Ok(Opened { gguf, file, backend, bytes })
    }
}

/// Memory, its stack included, that a template may take when it runs for a shape of conversations for the
/// first time.
const TEMPLATE_BYTES: usize = 16 << 20;

/// The purpose of the memory of a plan, as errors name it.
const PLAN: &str = "tokenizing the request";
/// Memory that a byte of text takes while it is tokenized: a symbol and a possible merge in a word that is as
/// long as the text.
const PLAN_BYTES_PER_BYTE: usize = 48;
/// Memory that compiling a constraint may take, which its limit of steps bounds, and what each of its bytes
/// adds.
const COMPILER_BYTES: usize = 32 << 20;
const CONSTRAINT_BYTES_PER_BYTE: usize = 64;

/// A model of any kind.
pub(super) enum AnyModel {
    /// The model generates, and embeds or ranks as decoders do.
    Decoder(Box<LoadedDecoder>),
    /// The model embeds or ranks.
    Encoder(Box<LoadedEncoder>),
}

impl AnyModel {
    /// Loads a model that was opened.
    pub(super) fn new(
        opened: &Opened,
        settings: &LoadSettings,
        loading: &Loading<'_>,
    ) -> Result<AnyModel, Error> {
        let backend = opened.backend.open(settings.whole_windows);
        if backend.is_encoder(&opened.gguf)? {
            LoadedEncoder::new(&opened.gguf, &*backend, settings, loading)
                .map(Box::new)
                .map(AnyModel::Encoder)
        } else {
            LoadedDecoder::new(&opened.gguf, &*backend, settings, loading)
                .map(Box::new)
                .map(AnyModel::Decoder)
        }
    }

    pub(super) fn decoder(&self) -> Option<&LoadedDecoder> {
        match self {
            AnyModel::Decoder(loaded) => Some(loaded),
            AnyModel::Encoder(_) => None,
        }
    }

    pub(super) fn check_lost(&self) -> Result<(), Error> {
        match self {
            AnyModel::Decoder(loaded) => loaded.decoder.check_lost(),
            AnyModel::Encoder(loaded) => loaded.encoder.check_lost(),
        }
    }

    /// Bytes of kept blocks of state, of those that running requests hold or of all.
    pub(super) fn kept_bytes(&self, held: bool) -> u64 {
        self.decoder().map_or(
            0,
            |loaded| {
                if held { loaded.prefixes.held_bytes() } else { loaded.prefixes.bytes() }
            },
        )
    }
}

/// The part of a loaded model that plans its requests: tokenizer and all else that planning takes.
pub(super) enum RequestPlanner {
    Decoder(DecoderReader),
    Encoder(EncoderReader),
}

impl RequestPlanner {
    /// Tokenizes a request and checks that it fits into the context.
    pub(super) fn plan(&self, work: &Work, memory: &Arc<Ledger>) -> Result<Plan, Error> {
        let constraint = match work {
            Work::Generate(Generate { constraint: Some(constraint), .. }) => {
                COMPILER_BYTES + constraint.bytes() * CONSTRAINT_BYTES_PER_BYTE
            }
            _ => 0,
        };
        let template = match work {
            Work::Generate(how) if how.system.is_some() || !how.history.is_empty() || how.thinking => {
                TEMPLATE_BYTES
            }
            Work::Likelihoods(how) if how.system.is_some() => TEMPLATE_BYTES,
            _ => 0,
        };
        let bytes =
            work.text_bytes().saturating_mul(PLAN_BYTES_PER_BYTE).saturating_add(constraint + template);
        // Given back when it is done: what stays is counted with the request.
        let _held = memory.hold(bytes as u64, PLAN)?;
        memory::watched(PLAN, bytes, || match self {
            RequestPlanner::Decoder(reader) => Plan::new(work, reader),
            RequestPlanner::Encoder(reader) => reader.plan(work),
        })?
    }
}

impl LoadedDecoder {
    /// Loads a decoder that was opened.
    fn new(
        gguf: &Gguf,
        backend: &dyn Backend,
        settings: &LoadSettings,
        loading: &Loading<'_>,
    ) -> Result<LoadedDecoder, Error> {
        let decoder = backend.decoder(gguf, settings.limits(), loading)?;
        let facts = decoder.facts();
        let tokenizer = Tokenizer::from_gguf(gguf)?;
        if tokenizer.vocab_size() > facts.vocabulary {
            return Err(gguf.corrupt(format!(
                "it has {} tokens, but tensor \"token_embd.weight\" has {} rows",
                tokenizer.vocab_size(),
                facts.vocabulary
            )));
        }
        let declared = facts.context_length;
        let template = ChatTemplate::from_gguf(gguf)?;
        let tokenizer = Arc::new(if settings.endless { tokenizer.endless() } else { tokenizer });
        let loaded = LoadedDecoder {
            template: Arc::new(template),
            reranker: Reranker::of(gguf, &tokenizer)?,
            prefixes: Prefixes::default(),
            likelihoods: LikelihoodMemo::default(),
            grammars: Arc::new(Grammars::new(
                Arc::clone(&tokenizer),
                facts.vocabulary,
                Arc::clone(&settings.memory),
            )),
            decoder,
            tokenizer,
            context_length: match settings.context_length {
                0 => declared,
                limit => declared.min(limit),
            },
            row_seconds: None,
        };
        // The metadata were read once more.
        gguf.release_all();
        loaded.decoder.check_lost()?;
        Ok(loaded)
    }

    /// The model's scores of documents, from those rows of the last pass in which their prompts end.
    ///
    /// # Errors
    /// As [`Decoder::logits_of`].
    pub(super) fn scores(&mut self, rows: &[usize], pool: &Pool) -> Result<Vec<f32>, Error> {
        Ok(match self.reranker {
            Reranker::YesNo { yes, no } => {
                let logits = self.decoder.logits_of(rows, [yes, no], pool)?;
                logits.into_iter().map(|[yes, no]| softmax_of_two(yes, no)).collect()
            }
            Reranker::Head { label } => {
                let outputs = rows.iter().map(|row| self.decoder.ranks(*row, pool));
                outputs.map(|outputs| score_of_labels(&outputs, label)).collect()
            }
            // Such a model ranks by vectors, and has no scores of its own.
            Reranker::Cosine => Vec::new(),
        })
    }

    /// The reader that tokenizes its requests.
    pub(super) fn reader(&self) -> DecoderReader {
        DecoderReader {
            tokenizer: Arc::clone(&self.tokenizer),
            template: Arc::clone(&self.template),
            reranker: self.reranker,
            grammars: Arc::clone(&self.grammars),
            context_length: self.context_length,
        }
    }
}
