//! The loaded models: opened on first use, kept by their source, unloaded when idle or in the way.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::loader::{Job, Worker};
use super::prefix::Prefixes;
use super::running::Reader;
use crate::config::Config;
use crate::gguf::Gguf;
use crate::kernels::Pool;
use crate::model::{Hyperparameters, Loading, Model, Workspace};
use crate::rerank::{Reranker, score_of_labels, softmax_of_two};
use crate::template::ChatTemplate;
use crate::tokenizer::Tokenizer;
use crate::{Error, ModelSource, builtin};

/// Most rows of one forward pass that belong to prompts.
pub(super) const MAX_PREFILL_ROWS: usize = 256;

/// Most models that are loaded at the same time.
const MAX_LOADS: usize = 4;

/// A model that is loaded, for listings.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LoadedModel {
    /// `builtin`, or the path of its file.
    pub name: String,
    /// Memory that it takes, keys and values of its requests apart.
    pub memory_mb: u64,
}

/// A model with all that belongs to it.
pub(super) struct Loaded {
    source: ModelSource,
    pub(super) model: Model,
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) template: Arc<ChatTemplate>,
    pub(super) reranker: Reranker,
    pub(super) workspace: Workspace,
    /// Blocks of keys and values kept for the next requests.
    pub(super) prefixes: Prefixes,
    /// Tokens that a request may have in all.
    pub(super) context_length: usize,
    bytes: u64,
    used: Instant,
    /// Seconds that a row of a pass with a slice of prompts takes, a running average.
    pub(super) row_seconds: Option<f64>,
}

/// What models are loaded with.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    context_length: usize,
    rows: usize,
    max_running: usize,
    pub(super) threads: usize,
}

impl Settings {
    pub(super) fn of(config: &Config) -> Settings {
        let max_running = config.max_running.max(1);
        Settings {
            context_length: config.context_length,
            rows: MAX_PREFILL_ROWS + max_running,
            max_running,
            threads: config.compute_threads(),
        }
    }
}

/// A model's file, looked at before it is loaded.
pub(super) struct Opened {
    gguf: Gguf,
    /// Memory that the model will take.
    bytes: u64,
}

impl Opened {
    /// Opens the file and adds up what its model needs.
    pub(super) fn new(source: &ModelSource, settings: &Settings) -> Result<Opened, Error> {
        let gguf = match source {
            ModelSource::Builtin => builtin::gguf(),
            ModelSource::File(path) => Gguf::open(path),
        }?;
        let sizes = Hyperparameters::of(&gguf)?;
        let weights = Model::weight_bytes(&gguf);
        // Vocabulary and merges are built from what is not weights, and take some times as much.
        let metadata =
            gguf.file_size().saturating_sub(gguf.tensors().map(|tensor| tensor.data.len() as u64).sum());
        let logits = Model::logit_bytes(&gguf, settings.max_running);
        let workspace = Model::workspace_bytes(&sizes, settings.rows, settings.threads);
        let bytes =
            [metadata.saturating_mul(4), logits, workspace].into_iter().fold(weights, u64::saturating_add);
        Ok(Opened { gguf, bytes })
    }
}

impl Loaded {
    /// Loads a model that was opened.
    pub(super) fn new(
        source: &ModelSource,
        opened: &Opened,
        settings: &Settings,
        loading: &Loading<'_>,
    ) -> Result<Loaded, Error> {
        let gguf = &opened.gguf;
        let model = Model::load(gguf, loading)?;
        let tokenizer = Tokenizer::from_gguf(gguf)?;
        if tokenizer.vocab_size() > model.vocabulary() {
            return Err(gguf.corrupt(format!(
                "it has {} tokens, but tensor \"token_embd.weight\" has {} rows",
                tokenizer.vocab_size(),
                model.vocabulary()
            )));
        }
        let declared = model.sizes().context_length;
        let template = ChatTemplate::from_gguf(gguf)?;
        let loaded = Loaded {
            source: source.clone(),
            template: Arc::new(template),
            reranker: Reranker::of(gguf, &tokenizer)?,
            prefixes: Prefixes::default(),
            workspace: model.workspace(settings.rows, settings.threads)?,
            model,
            tokenizer: Arc::new(tokenizer),
            context_length: match settings.context_length {
                0 => declared,
                limit => declared.min(limit),
            },
            bytes: opened.bytes,
            used: Instant::now(),
            row_seconds: None,
        };
        // The metadata were read once more.
        gguf.release_all();
        loaded.model.check_lost()?;
        Ok(loaded)
    }

    /// Bytes of a block of keys and values.
    fn block_bytes(&self) -> u64 {
        self.model.cache_shape().block_bytes()
    }

    /// What it thinks of documents, from the rows of the last pass that their prompts end with.
    pub(super) fn scores(&mut self, rows: &[usize], pool: &Pool) -> Vec<f32> {
        match self.reranker {
            Reranker::YesNo { yes, no } => {
                let logits = self.model.logits_of(&mut self.workspace, rows, [yes, no], pool);
                logits.into_iter().map(|[yes, no]| softmax_of_two(yes, no)).collect()
            }
            Reranker::Head { label } => {
                let outputs = rows.iter().map(|row| self.model.ranks(&self.workspace, *row));
                outputs.map(|outputs| score_of_labels(&outputs, label)).collect()
            }
            // Whose scores come of vectors.
            Reranker::Cosine => Vec::new(),
        }
    }

    /// What tokenizes its requests.
    pub(super) fn reader(&self) -> Reader {
        Reader {
            tokenizer: Arc::clone(&self.tokenizer),
            template: Arc::clone(&self.template),
            reranker: self.reranker,
            context_length: self.context_length,
        }
    }
}

/// A model on its way.
enum Stage {
    Opening,
    /// It waits for room.
    Opened(Box<Opened>),
    Loading {
        bytes: u64,
    },
}

/// Why a model is not there.
pub(super) enum Missing {
    /// Its memory is taken by models that are in use; later, perhaps.
    NoRoom,
    /// It is being loaded, or the request is being tokenized.
    Coming,
    Failed(Error),
}

/// All loaded models.
pub(super) struct Models {
    loaded: Vec<Loaded>,
    coming: Vec<(ModelSource, Stage)>,
    loader: Worker,
    /// What [`crate::Engine::loaded_models`] shows.
    listing: Arc<Mutex<Vec<LoadedModel>>>,
    limit_bytes: u64,
    idle_timeout: Option<Duration>,
}

impl Models {
    pub(super) fn new(config: &Config, loader: Worker, listing: Arc<Mutex<Vec<LoadedModel>>>) -> Models {
        Models {
            loaded: Vec::new(),
            coming: Vec::new(),
            loader,
            listing,
            limit_bytes: match config.memory_limit_mb {
                0 => u64::MAX,
                mb => mb.saturating_mul(1 << 20),
            },
            idle_timeout: config.model_idle_timeout,
        }
    }

    /// Bytes left for keys and values, beside the models and what is reserved already.
    pub(super) fn room(&self, reserved: u64) -> u64 {
        self.limit_bytes.saturating_sub(reserved).saturating_sub(self.bytes())
    }

    /// Bytes of kept blocks that running requests hold.
    pub(super) fn held_bytes(&self) -> u64 {
        self.loaded.iter().map(|loaded| loaded.prefixes.held() as u64 * loaded.block_bytes()).sum()
    }

    /// Frees kept blocks until they take at most `bytes` in all, as far as running requests do not hold them.
    /// Those of the models that were not used for the longest time go first.
    pub(super) fn trim_prefixes(&mut self, bytes: u64) {
        let kept = |loaded: &Loaded| loaded.prefixes.len() as u64 * loaded.block_bytes();
        let mut total: u64 = self.loaded.iter().map(kept).sum();
        if total <= bytes {
            return;
        }
        let mut by_age: Vec<&mut Loaded> = self.loaded.iter_mut().collect();
        by_age.sort_by_key(|loaded| loaded.used);
        for loaded in by_age {
            while total > bytes && loaded.prefixes.evict() {
                total -= loaded.block_bytes();
            }
        }
    }

    fn bytes(&self) -> u64 {
        let coming = self.coming.iter().map(|(_, stage)| match stage {
            Stage::Loading { bytes } => *bytes,
            Stage::Opening | Stage::Opened(_) => 0,
        });
        self.loaded.iter().map(|loaded| loaded.bytes).chain(coming).sum()
    }

    /// Whether the model is there without loading it.
    pub(super) fn has(&self, source: &ModelSource) -> bool {
        self.loaded.iter().any(|loaded| loaded.source == *source)
    }

    /// Whether it is being opened or loaded; not while it waits for room.
    pub(super) fn is_coming(&self, source: &ModelSource) -> bool {
        self.coming.iter().any(|(coming, stage)| coming == source && !matches!(stage, Stage::Opened(_)))
    }

    /// The model, if it is there.
    pub(super) fn get(&mut self, source: &ModelSource) -> Option<&mut Loaded> {
        let loaded = self.loaded.iter_mut().find(|loaded| loaded.source == *source)?;
        loaded.used = Instant::now();
        Some(loaded)
    }

    /// The model; where it is not there, the next thing is done to load it. `in_use` says which models have
    /// running requests, `reserved` how many bytes of keys and values those have.
    pub(super) fn load(
        &mut self,
        source: &ModelSource,
        in_use: &dyn Fn(&ModelSource) -> bool,
        reserved: u64,
    ) -> Result<&mut Loaded, Missing> {
        if self.has(source) {
            return self.get(source).ok_or(Missing::NoRoom);
        }
        let Some(index) = self.coming.iter().position(|(coming, _)| coming == source) else {
            self.coming.push((source.clone(), Stage::Opening));
            self.loader.send(Job::Open(source.clone()));
            return Err(Missing::Coming);
        };
        let loads = self.coming.iter().filter(|(_, stage)| matches!(stage, Stage::Loading { .. })).count();
        if let Stage::Opened(opened) = &self.coming[index].1
            && loads < MAX_LOADS
        {
            let bytes = opened.bytes;
            self.make_room(bytes, in_use, reserved)?;
            if let Stage::Opened(opened) =
                std::mem::replace(&mut self.coming[index].1, Stage::Loading { bytes })
            {
                self.loader.send(Job::Load(source.clone(), opened));
            }
        }
        Err(Missing::Coming)
    }

    /// Takes in what came of opening a model's file.
    ///
    /// # Errors
    /// Why it cannot be loaded: that of opening it, or [`Error::OutOfMemory`].
    pub(super) fn opened(
        &mut self,
        source: &ModelSource,
        opened: Result<Box<Opened>, Error>,
    ) -> Result<(), Error> {
        let opened = opened.and_then(|opened| {
            if opened.bytes <= self.limit_bytes {
                return Ok(opened);
            }
            Err(Error::OutOfMemory {
                what: format!("model file \"{}\"", opened.gguf.path().display()),
                needed_mb: opened.bytes.div_ceil(1 << 20),
                limit_mb: Some(self.limit_bytes >> 20),
            })
        });
        let index = self.coming.iter().position(|(coming, _)| coming == source);
        match (opened, index) {
            (Ok(opened), Some(index)) => self.coming[index].1 = Stage::Opened(opened),
            (Err(error), index) => {
                index.map(|index| self.coming.remove(index));
                return Err(error);
            }
            (Ok(_), None) => {}
        }
        Ok(())
    }

    /// Takes in what came of loading a model.
    ///
    /// # Errors
    /// Why it is not loaded.
    pub(super) fn loaded(
        &mut self,
        source: &ModelSource,
        loaded: Result<Box<Loaded>, Error>,
    ) -> Result<(), Error> {
        self.coming.retain(|(coming, _)| coming != source);
        let mut loaded = *loaded?;
        loaded.used = Instant::now();
        self.loaded.push(loaded);
        self.list();
        Ok(())
    }

    /// Unloads idle models, the longest unused first, until `bytes` fit.
    fn make_room(
        &mut self,
        bytes: u64,
        in_use: &dyn Fn(&ModelSource) -> bool,
        reserved: u64,
    ) -> Result<(), Missing> {
        while bytes > self.room(reserved) {
            let idle = self.loaded.iter().enumerate().filter(|(_, loaded)| !in_use(&loaded.source));
            let Some((oldest, _)) = idle.min_by_key(|(_, loaded)| loaded.used) else {
                return Err(Missing::NoRoom);
            };
            self.loaded.remove(oldest);
            self.list();
        }
        let others =
            self.bytes().saturating_add(bytes).saturating_add(reserved.saturating_sub(self.held_bytes()));
        self.trim_prefixes(self.limit_bytes.saturating_sub(others));
        Ok(())
    }

    /// Unloads models that were idle for too long; returns how long the next one has left.
    pub(super) fn unload_idle(&mut self, in_use: &dyn Fn(&ModelSource) -> bool) -> Option<Duration> {
        let timeout = self.idle_timeout?;
        let before = self.loaded.len();
        self.loaded.retain(|loaded| in_use(&loaded.source) || loaded.used.elapsed() < timeout);
        if self.loaded.len() != before {
            self.list();
        }
        self.loaded.iter().map(|loaded| timeout.saturating_sub(loaded.used.elapsed())).min()
    }

    /// What is wrong with a model's file, if it can no longer be read.
    pub(super) fn lost(&self, source: &ModelSource) -> Option<Error> {
        let loaded = self.loaded.iter().find(|loaded| loaded.source == *source)?;
        loaded.model.check_lost().err()
    }

    /// Unloads the models whose files can no longer be read.
    pub(super) fn unload_lost(&mut self) -> Vec<(ModelSource, Error)> {
        let lost = |loaded: &Loaded| Some((loaded.source.clone(), loaded.model.check_lost().err()?));
        let lost: Vec<_> = self.loaded.iter().filter_map(lost).collect();
        if !lost.is_empty() {
            self.loaded.retain(|loaded| loaded.model.check_lost().is_ok());
            self.list();
        }
        lost
    }

    /// Unloads everything.
    pub(super) fn clear(&mut self) {
        self.loaded.clear();
        self.coming.clear();
        self.list();
    }

    fn list(&self) {
        let models = self.loaded.iter().map(|loaded| LoadedModel {
            name: source_name(&loaded.source),
            memory_mb: loaded.bytes.div_ceil(1 << 20),
        });
        *self.listing.lock().unwrap_or_else(PoisonError::into_inner) = models.collect();
    }
}

fn source_name(source: &ModelSource) -> String {
    match source {
        ModelSource::Builtin => builtin::NAME.to_owned(),
        ModelSource::File(path) => path.display().to_string(),
    }
}
