//! The backend of this crate's own kernels, on the CPU.

use crate::Error;
use crate::computing::{
    Backend, Decoder, DecoderFacts, Encoder, EncoderFacts, EncoderText, Loading, ModelLimits, Segment, State,
    StateBytes,
};
use crate::gguf::Gguf;
use crate::kernels::Pool;
use crate::kernels::tile::KvCacheType;
use crate::model::encoder::{self, EncoderWorkspace};
use crate::model::{self, DecoderWorkspace, SequenceState};

/// The backend that computes with [`crate::kernels`].
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Native {
    /// The type of keys and values.
    pub(crate) kv_cache_type: KvCacheType,
    /// Whether sequences also keep the keys and values that no window sees any more.
    pub(crate) whole: bool,
}

/// A decoder with the memory for its passes.
struct NativeDecoder {
    model: model::DecoderNetwork,
    workspace: DecoderWorkspace,
    /// Most rows of a pass.
    rows: usize,
}

/// An encoder with its current pass.
struct NativeEncoder {
    model: encoder::EncoderNetwork,
    workspace: EncoderWorkspace,
}

impl Backend for Native {
    fn bytes(&self, gguf: &Gguf, limits: ModelLimits) -> Result<u64, Error> {
        let spec = model::spec(gguf)?;
        let workspace = if model::is_encoder(gguf)? {
            encoder::EncoderNetwork::workspace_bytes(&spec, limits.threads)
        } else {
            model::DecoderNetwork::workspace_bytes(gguf, &spec, limits)
        };
        Ok(model::weight_bytes(gguf).saturating_add(workspace))
    }

    fn state(&self, gguf: &Gguf, limits: ModelLimits, positions: usize) -> Result<Option<StateBytes>, Error> {
        let state = model::check(gguf, self.kv_cache_type, limits.rows, self.whole)?;
        Ok(state.map(|state| StateBytes {
            per_position: state.bytes_per_position(),
            window: state.window(),
            in_all: state.bytes(positions),
        }))
    }

    fn is_encoder(&self, gguf: &Gguf) -> Result<bool, Error> {
        model::is_encoder(gguf)
    }

    fn decoder(
        &self,
        gguf: &Gguf,
        limits: ModelLimits,
        loading: &Loading<'_>,
    ) -> Result<Box<dyn Decoder>, Error> {
        let model = model::DecoderNetwork::load(gguf, loading, self.kv_cache_type, self.whole)?;
        let workspace = model.workspace(limits)?;
        Ok(Box::new(NativeDecoder { model, workspace, rows: limits.rows }))
    }

    fn encoder(
        &self,
        gguf: &Gguf,
        limits: ModelLimits,
        loading: &Loading<'_>,
    ) -> Result<Box<dyn Encoder>, Error> {
        let model = encoder::EncoderNetwork::load(gguf, loading)?;
        let workspace = model.workspace(limits.threads)?;
        Ok(Box::new(NativeEncoder { model, workspace }))
    }
}

impl Decoder for NativeDecoder {
    fn facts(&self) -> DecoderFacts {
        let spec = self.model.spec();
        DecoderFacts {
            vocabulary: self.model.vocabulary(),
            width: spec.width,
            context_length: spec.context_length,
            pooling: spec.pooling,
        }
    }

    fn new_state(&self) -> Box<dyn State> {
        Box::new(SequenceState::new(self.model.layout().clone(), self.rows))
    }

    fn forward(
        &mut self,
        segments: &mut [Segment<'_>],
        pool: &Pool,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<bool, Error> {
        Ok(self.model.forward(segments, &mut self.workspace, pool, interrupted))
    }

    fn hidden(&self) -> &[f32] {
        self.model.hidden(&self.workspace)
    }

    fn logits(&mut self, rows: &[usize], pool: &Pool) -> Result<&[f32], Error> {
        let logits = self.model.logits(&mut self.workspace, rows, pool);
        self.model.check_lost()?;
        Ok(logits)
    }

    fn logits_of(&mut self, rows: &[usize], tokens: [u32; 2], pool: &Pool) -> Result<Vec<[f32; 2]>, Error> {
        Ok(self.model.logits_of(&mut self.workspace, rows, tokens, pool))
    }

    fn ranks(&self, row: usize, pool: &Pool) -> Vec<f32> {
        self.model.ranks(&self.workspace, row, pool)
    }

    fn check_lost(&self) -> Result<(), Error> {
        self.model.check_lost()
    }
}

impl Encoder for NativeEncoder {
    fn facts(&self) -> EncoderFacts {
        EncoderFacts {
            vocabulary: self.model.vocabulary(),
            context_length: self.model.spec().context_length,
            scores_per_text: self.model.scores_per_text(),
            rows: self.model.rows(),
        }
    }

    fn begin(&mut self, texts: &[EncoderText<'_>], pool: &Pool) -> Result<(), Error> {
        self.model.begin(texts, &mut self.workspace, pool)
    }

    fn more_bytes(&self, rows: usize, threads: usize) -> u64 {
        self.model.more_bytes(rows, threads)
    }

    fn rest(&mut self, threads: usize) {
        self.model.rest(&mut self.workspace, threads);
    }

    fn advance(&mut self, pool: &Pool) -> bool {
        self.model.advance(&mut self.workspace, pool)
    }

    fn fault(&self, text: usize) -> Option<usize> {
        self.model.fault(&self.workspace, text)
    }

    fn vector(&mut self, text: usize, pool: &Pool) -> Vec<f32> {
        self.model.vector(&mut self.workspace, text, pool)
    }

    fn scores(&mut self, texts: &[usize], pool: &Pool) -> Vec<f32> {
        self.model.scores(&mut self.workspace, texts, pool)
    }

    fn check_lost(&self) -> Result<(), Error> {
        self.model.check_lost()
    }
}
