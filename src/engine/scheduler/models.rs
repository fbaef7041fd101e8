//! The loaded models: opened on first use, kept by their source, unloaded when idle or in the way.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::job_queue::EngineJob;
use super::loaded::{AnyModel, LoadedDecoder, Opened, RequestPlanner};
use super::loaded_encoder::LoadedEncoder;
use super::loader::JobThread;
use crate::config::Config;
use crate::memory::Ledger;
use crate::{Error, ModelIdentity, ModelSource, builtin};

/// Most models that are loaded at the same time.
const MAX_LOADS: usize = 4;

/// A model that is loaded, for listings.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LoadedModel {
    /// `builtin`, or the path of its file.
    pub name: String,
    /// Memory that it takes, keys and values of its requests apart.
    pub memory_mb: u64,
    /// The last use by a request, in milliseconds since 1970.
    pub used_at_ms: u64,
}

/// A line of the listing.
#[derive(Debug)]
pub(super) struct Listed {
    name: String,
    memory_mb: u64,
    used_at_ms: Arc<AtomicU64>,
}

impl Listed {
    /// Its current state.
    pub(super) fn shown(&self) -> LoadedModel {
        LoadedModel {
            name: self.name.clone(),
            memory_mb: self.memory_mb,
            used_at_ms: self.used_at_ms.load(Relaxed),
        }
    }
}

/// A loaded model.
struct LoadedEntry {
    source: ModelSource,
    bytes: u64,
    used: Instant,
    /// The same for listings.
    used_at_ms: Arc<AtomicU64>,
    /// Unique for each load.
    number: u64,
    /// The identity of its file, which comes with every result.
    identity: ModelIdentity,
    model: AnyModel,
}

/// A model on its way.
enum LoadStage {
    Opening,
    /// The model is open and waits for room.
    Opened(Box<Opened>),
    Loading {
        bytes: u64,
    },
}

/// The reason why a model is not there.
pub(super) enum Missing {
    /// Its memory is taken by models that are in use; later, perhaps.
    NoRoom,
    /// The model is being loaded, or the request is being tokenized.
    Coming,
    Failed(Error),
}

/// All loaded models.
pub(super) struct EngineModels {
    loaded: Vec<LoadedEntry>,
    coming: Vec<(ModelSource, LoadStage)>,
    loader: JobThread,
    /// The list that [`crate::Engine::loaded_models`] reads.
    listing: Arc<Mutex<Vec<Listed>>>,
    memory: Arc<Ledger>,
    idle_timeout: Option<Duration>,
    /// Number of loads so far.
    loads: u64,
}

impl EngineModels {
    pub(super) fn new(
        config: &Config,
        loader: JobThread,
        listing: Arc<Mutex<Vec<Listed>>>,
        memory: Arc<Ledger>,
    ) -> EngineModels {
        EngineModels {
            loaded: Vec::new(),
            coming: Vec::new(),
            loader,
            listing,
            memory,
            idle_timeout: config.model_idle_timeout,
            loads: 0,
        }
    }

    /// Bytes left for keys and values, beside the models, the memory of requests, and `reserved` bytes.
    pub(super) fn room(&self, reserved: u64) -> u64 {
        let others = reserved.saturating_add(self.memory.held_bytes()).saturating_add(self.bytes());
        self.memory.limit_bytes().saturating_sub(others)
    }

    /// Bytes of kept blocks that running requests hold.
    pub(super) fn held_bytes(&self) -> u64 {
        self.loaded.iter().map(|entry| entry.model.kept_bytes(true)).sum()
    }

    /// Bytes of all kept blocks.
    pub(super) fn kept_bytes(&self) -> u64 {
        self.loaded.iter().map(|entry| entry.model.kept_bytes(false)).sum()
    }

    /// Number of loaded models.
    pub(super) fn count(&self) -> usize {
        self.loaded.len()
    }

    /// Frees kept blocks until they take at most `bytes` in all, as far as running requests do not hold them.
    /// The blocks of the models that were not used for the longest time go first.
    pub(super) fn trim_prefixes(&mut self, bytes: u64) {
        let mut total = self.kept_bytes();
        if total <= bytes {
            return;
        }
        let mut by_age: Vec<&mut LoadedEntry> = self.loaded.iter_mut().collect();
        by_age.sort_by_key(|entry| entry.used);
        for entry in by_age {
            let AnyModel::Decoder(loaded) = &mut entry.model else { continue };
            while total > bytes
                && let Some(freed) = loaded.prefixes.evict()
            {
                total -= freed;
            }
        }
    }

    /// Bytes of models that are there or being loaded.
    pub(super) fn bytes(&self) -> u64 {
        let coming = self.coming.iter().map(|(_, stage)| match stage {
            LoadStage::Loading { bytes } => *bytes,
            LoadStage::Opening | LoadStage::Opened(_) => 0,
        });
        self.loaded.iter().map(|loaded| loaded.bytes).chain(coming).sum()
    }

    /// Whether the model is there without loading it.
    pub(super) fn has(&self, source: &ModelSource) -> bool {
        self.loaded.iter().any(|loaded| loaded.source == *source)
    }

    /// Whether the model is being opened or loaded, or will be when the requests have ended that still use
    /// the former file. False while it waits for room.
    pub(super) fn is_coming(&self, source: &ModelSource) -> bool {
        self.is_outdated(source)
            || self
                .coming
                .iter()
                .any(|(coming, stage)| coming == source && !matches!(stage, LoadStage::Opened(_)))
    }

    /// Whether another file is in the place of the one that the model was loaded from.
    pub(super) fn is_outdated(&self, source: &ModelSource) -> bool {
        let ModelSource::File(path) = source else { return false };
        let Some(entry) = self.loaded.iter().find(|entry| entry.source == *source) else { return false };
        ModelIdentity::file_of(path).is_ok_and(|file| Some(file) != entry.identity.file)
    }

    /// Unloads the model if its file is another one by now. False where running requests still use it.
    pub(super) fn renew(&mut self, source: &ModelSource, in_use: &dyn Fn(&ModelSource) -> bool) -> bool {
        if !self.is_outdated(source) {
            return true;
        }
        if in_use(source) {
            return false;
        }
        self.loaded.retain(|loaded| loaded.source != *source);
        self.list();
        true
    }

    /// The identity of a loaded model; the default one, which is that of none, where it is not there.
    pub(super) fn identity(&self, source: &ModelSource) -> ModelIdentity {
        let entry = self.loaded.iter().find(|entry| entry.source == *source);
        entry.map(|entry| entry.identity).unwrap_or_default()
    }

    /// The number of this load of the model. State that was kept with another load is gone.
    pub(super) fn load_number(&self, source: &ModelSource) -> Option<u64> {
        self.loaded.iter().find(|entry| entry.source == *source).map(|entry| entry.number)
    }

    fn any(&mut self, source: &ModelSource) -> Option<&mut AnyModel> {
        let entry = self.loaded.iter_mut().find(|entry| entry.source == *source)?;
        entry.used = Instant::now();
        entry.used_at_ms.store(now_ms(), Relaxed);
        Some(&mut entry.model)
    }

    /// The decoder, if it is there.
    pub(super) fn get(&mut self, source: &ModelSource) -> Option<&mut LoadedDecoder> {
        match self.any(source)? {
            AnyModel::Decoder(loaded) => Some(loaded),
            AnyModel::Encoder(_) => None,
        }
    }

    /// The encoder, if it is there.
    pub(super) fn get_encoder(&mut self, source: &ModelSource) -> Option<&mut LoadedEncoder> {
        match self.any(source)? {
            AnyModel::Decoder(_) => None,
            AnyModel::Encoder(loaded) => Some(loaded),
        }
    }

    /// Whether the model is there and an encoder.
    pub(super) fn is_encoder(&self, source: &ModelSource) -> bool {
        self.loaded.iter().any(|entry| entry.source == *source && entry.model.decoder().is_none())
    }

    /// Whether any model that is there is an encoder.
    pub(super) fn have_encoders(&self) -> bool {
        self.loaded.iter().any(|entry| entry.model.decoder().is_none())
    }

    /// The part of the model that plans its requests, if the model is loaded.
    pub(super) fn texts(&mut self, source: &ModelSource) -> Option<RequestPlanner> {
        Some(match self.any(source)? {
            AnyModel::Decoder(loaded) => RequestPlanner::Decoder(loaded.reader()),
            AnyModel::Encoder(loaded) => RequestPlanner::Encoder(loaded.reader()),
        })
    }

    /// Takes the next step to load the model; Ok if it is there. `in_use` tells whether a model has running
    /// requests, `reserved` how many bytes of keys and values those have.
    pub(super) fn load(
        &mut self,
        source: &ModelSource,
        in_use: &dyn Fn(&ModelSource) -> bool,
        reserved: u64,
    ) -> Result<(), Missing> {
        if self.has(source) {
            return Ok(());
        }
        let Some(index) = self.coming.iter().position(|(coming, _)| coming == source) else {
            self.coming.push((source.clone(), LoadStage::Opening));
            self.loader.send(EngineJob::Open(source.clone()));
            return Err(Missing::Coming);
        };
        let loads =
            self.coming.iter().filter(|(_, stage)| matches!(stage, LoadStage::Loading { .. })).count();
        if let LoadStage::Opened(opened) = &self.coming[index].1
            && loads < MAX_LOADS
        {
            let bytes = opened.bytes;
            self.make_room(bytes, in_use, reserved)?;
            if let LoadStage::Opened(opened) =
                std::mem::replace(&mut self.coming[index].1, LoadStage::Loading { bytes })
            {
                self.loader.send(EngineJob::Load(source.clone(), opened));
            }
        }
        Err(Missing::Coming)
    }

    /// Takes the result of opening a model's file.
    ///
    /// # Errors
    /// The reason why it cannot be loaded: the error of opening it, or [`Error::OutOfMemory`].
    pub(super) fn opened(
        &mut self,
        source: &ModelSource,
        opened: Result<Box<Opened>, Error>,
    ) -> Result<(), Error> {
        let opened = opened.and_then(|opened| {
            if opened.bytes <= self.memory.limit_bytes() {
                return Ok(opened);
            }
            Err(Error::OutOfMemory {
                what: format!("model file \"{}\"", opened.gguf.path().display()),
                needed_mb: opened.bytes.div_ceil(1 << 20),
                limit_mb: Some(self.memory.limit_bytes() >> 20),
            })
        });
        let index = self.coming.iter().position(|(coming, _)| coming == source);
        match (opened, index) {
            (Ok(opened), Some(index)) => self.coming[index].1 = LoadStage::Opened(opened),
            (Err(error), index) => {
                index.map(|index| self.coming.remove(index));
                return Err(error);
            }
            (Ok(_), None) => {}
        }
        Ok(())
    }

    /// Takes the result of loading a model.
    ///
    /// # Errors
    /// The reason why it is not loaded.
    pub(super) fn loaded(
        &mut self,
        source: &ModelSource,
        loaded: Result<(AnyModel, ModelIdentity), Error>,
    ) -> Result<(), Error> {
        let coming = self.coming.iter().position(|(coming, _)| coming == source);
        let stage = coming.map(|index| self.coming.remove(index).1);
        let bytes = match stage {
            Some(LoadStage::Loading { bytes }) => bytes,
            Some(LoadStage::Opening | LoadStage::Opened(_)) | None => 0,
        };
        let (model, identity) = loaded?;
        self.loads += 1;
        let (number, used) = (self.loads, Instant::now());
        let used_at_ms = Arc::new(AtomicU64::new(now_ms()));
        self.loaded.push(LoadedEntry {
            source: source.clone(),
            bytes,
            used,
            used_at_ms,
            number,
            identity,
            model,
        });
        self.list();
        Ok(())
    }

    /// Forgets that the model is being opened or loaded.
    pub(super) fn forget(&mut self, source: &ModelSource) {
        self.coming.retain(|(coming, _)| coming != source);
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
                // Where nothing else could end, the request would wait for ever: the model alone does not
                // fit.
                if self.bytes() == 0 && reserved == 0 {
                    return Err(Missing::Failed(Error::OutOfMemory {
                        what: "the model beside all requests that wait".to_owned(),
                        needed_mb: bytes.div_ceil(1 << 20),
                        limit_mb: Some(self.room(0) >> 20),
                    }));
                }
                return Err(Missing::NoRoom);
            };
            self.loaded.remove(oldest);
            self.list();
        }
        let others = bytes.saturating_add(reserved.saturating_sub(self.held_bytes()));
        self.trim_prefixes(self.room(others));
        Ok(())
    }

    /// Unloads models that were idle for too long; returns the time until the next one has been.
    pub(super) fn unload_idle(&mut self, in_use: &dyn Fn(&ModelSource) -> bool) -> Option<Duration> {
        let timeout = self.idle_timeout?;
        let before = self.loaded.len();
        self.loaded.retain(|loaded| in_use(&loaded.source) || loaded.used.elapsed() < timeout);
        if self.loaded.len() != before {
            self.list();
        }
        self.loaded.iter().map(|loaded| timeout.saturating_sub(loaded.used.elapsed())).min()
    }

    /// The error of a model whose file can no longer be read; None while it can.
    pub(super) fn lost(&self, source: &ModelSource) -> Option<Error> {
        let entry = self.loaded.iter().find(|entry| entry.source == *source)?;
        entry.model.check_lost().err()
    }

    /// Unloads the models whose files can no longer be read.
    pub(super) fn unload_lost(&mut self) -> Vec<(ModelSource, Error)> {
        let lost = |entry: &LoadedEntry| Some((entry.source.clone(), entry.model.check_lost().err()?));
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
        let models = self.loaded.iter().map(|loaded| Listed {
            name: source_name(&loaded.source),
            memory_mb: loaded.bytes.div_ceil(1 << 20),
            used_at_ms: Arc::clone(&loaded.used_at_ms),
        });
        *self.listing.lock().unwrap_or_else(PoisonError::into_inner) = models.collect();
    }
}

/// Milliseconds since 1970.
fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |passed| passed.as_millis() as u64)
}

fn source_name(source: &ModelSource) -> String {
    match source {
        ModelSource::Builtin => builtin::NAME.to_owned(),
        ModelSource::File(path) => path.display().to_string(),
    }
}
