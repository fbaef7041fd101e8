//! The backend of [candle](https://github.com/huggingface/candle)'s tensors: another implementation of the
//! specifications of models, to compare the first one with, and for models that the first one does not
//! compute.
//!
//! It is on the CPU. Weights stay in ggml's blocks; activations, keys and values are f32. Sequences are
//! computed one after the other, their rows with products whose sizes follow from the row's own position, so
//! that the invariant of backends holds: the same bytes on one machine, however rows are put together.
//! Another processor may give others, as candle chooses its instructions by those that the processor has.

mod attention;
mod block;
mod feed_forward;
mod layer_memory;
mod layers;
mod recurrent;
mod state;
mod state_sizes;
mod state_space;
mod threads;

use candle_core::{Device, Tensor};

use crate::Error;
use crate::computing::{
    Backend, Decoder, DecoderFacts, Encoder, Loading, ModelLimits, Segment, State, StateBytes,
};
use crate::gguf::Gguf;
use crate::kernels::float_environment::Standard;
use crate::kernels::rope::Rope;
use crate::kernels::{Pool, ggml};
use crate::memory::watched;
use crate::model::spec::{BlockSpec, Kind, LogitsSpec, Mixer, ModelSpec, SharedWeighting};
use crate::model::{self, RankHead, is_encoder};
use block::{CandleBlock, CandlePerLayerEmbedding};
use layers::{CandleMatrix, CandleNorm, WeightSource};
use state::{CandleState, Layers};
use state_sizes::StateSizes;

/// The backend that computes with candle's tensors.
#[derive(Debug, Clone)]
pub(crate) struct Candle {
    device: Device,
}

impl Candle {
    /// The backend on the CPU.
    pub(crate) fn new() -> Candle {
        Candle { device: Device::Cpu }
    }

    /// Whether the specification of a file can be computed, as far as that is known without loading it.
    pub(crate) fn computes(gguf: &Gguf) -> bool {
        spec(gguf).is_ok_and(|spec| model::refuse_unknown_tensors(gguf, &spec).is_ok())
    }
}

/// The purpose of the memory, as errors name it.
const WORKSPACE: &str = "the tensors of a pass";

/// An error of candle's, which is a bug here: shapes were checked when the model was loaded.
fn raised(error: candle_core::Error) -> Error {
    let said = error.to_string();
    Error::Panicked(format!("candle: {}", said.lines().next().unwrap_or_default()))
}

impl Backend for Candle {
    fn bytes(&self, gguf: &Gguf, limits: ModelLimits) -> Result<u64, Error> {
        let spec = spec(gguf)?;
        let weights = gguf.tensors().map(|tensor| {
            let bytes = tensor.data.len() as u64;
            model::format(tensor.kind).map_or(bytes, |format| ggml::bytes(format, bytes))
        });
        Ok(weights.fold(0, u64::saturating_add).saturating_add(workspace_bytes(gguf, &spec, limits)))
    }

    fn state(&self, gguf: &Gguf, _: ModelLimits, positions: usize) -> Result<Option<StateBytes>, Error> {
        let spec = spec(gguf)?;
        model::refuse_unknown_tensors(gguf, &spec)?;
        Ok(Some(StateSizes::of(&spec).state_bytes(positions)))
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
        threads::stay_alone()?;
        let spec = spec(gguf)?;
        model::refuse_unknown_tensors(gguf, &spec)?;
        let workspace = workspace_bytes(gguf, &spec, limits);
        let decoder = CandleDecoder::load(self, gguf, spec, workspace, loading)?;
        gguf.check_lost()?;
        // The weights were copied.
        gguf.release_all();
        Ok(Box::new(decoder))
    }

    fn encoder(&self, gguf: &Gguf, _: ModelLimits, _: &Loading<'_>) -> Result<Box<dyn Encoder>, Error> {
        Err(refused_encoder(gguf))
    }
}

/// The model that the file describes, if it can be computed here.
fn spec(gguf: &Gguf) -> Result<ModelSpec, Error> {
    if is_encoder(gguf)? {
        return Err(refused_encoder(gguf));
    }
    let spec = model::spec(gguf)?;
    let of_blocks = |refused: &dyn Fn(&BlockSpec) -> bool| spec.blocks.iter().any(refused);
    let missing = if spec.streams || of_blocks(&|block| block.laurel.is_some()) {
        Some("it has several residual streams")
    } else if of_blocks(&|block| block.feed_forward.cutoff.is_some()) {
        Some("gates of its feed-forward are cut off")
    } else if of_blocks(&|block| has_experts_with_norms(block)) {
        Some("its experts have norms of their own")
    } else {
        None
    };
    match missing {
        Some(what) => Err(refused(gguf, format!("{what}, which candle does not compute here"))),
        None => Ok(spec),
    }
}

fn has_experts_with_norms(block: &BlockSpec) -> bool {
    let shared = block.feed_forward.experts.and_then(|experts| experts.shared);
    shared.is_some_and(|shared| shared.weighting == SharedWeighting::Norms)
}

fn refused_encoder(gguf: &Gguf) -> Error {
    refused(gguf, "it is an encoder, which candle does not compute here".to_owned())
}

fn refused(gguf: &Gguf, reason: String) -> Error {
    gguf.unsupported_but(reason, "Use the native backend for it.".to_owned())
}

/// Most bytes of a pass's tensors, those of one block together, keys and values apart.
fn workspace_bytes(gguf: &Gguf, spec: &ModelSpec, limits: ModelLimits) -> u64 {
    let of_block = |block: &BlockSpec| {
        let heads = block.attention.heads;
        // Several versions of each of these rows exist at a time: projected, normalised, rotated, transposed.
        let attention = 6 * heads.query * heads.dim + 8 * heads.kv * heads.dim;
        let experts = block.feed_forward.experts.map_or(0, |experts| 4 * experts.count);
        let mixed = match block.mixer {
            Mixer::Attention => attention,
            Mixer::ShortConv(conv) => 8 * conv.channels,
            Mixer::DeltaNet(net) => 6 * net.channels() + 4 * net.value_width() * (1 + net.dim),
            Mixer::StateSpace(space) => 6 * space.channels() + 4 * space.width() * (1 + space.state),
        };
        8 * spec.width + mixed + 5 * block.feed_forward.inner() + experts
    };
    let per_layer = 4 * spec.per_layer.unwrap_or(0).saturating_mul(spec.blocks.len());
    let row = spec.blocks.iter().map(of_block).max().unwrap_or(0).saturating_add(per_layer);
    let vocabulary = gguf.opt_tensor("token_embd.weight").ok().flatten();
    let vocabulary = vocabulary.and_then(|tensor| tensor.shape.get(1).copied()).unwrap_or(0);
    let values = (row as u64)
        .saturating_mul(limits.rows as u64)
        .saturating_add((3 * vocabulary as u64).saturating_mul(limits.wanted as u64));
    values.saturating_mul(size_of::<f32>() as u64)
}

/// A decoder with the results of its last pass.
struct CandleDecoder {
    device: Device,
    spec: ModelSpec,
    layers: Layers,
    vocabulary: usize,
    embedding: CandleMatrix,
    embedding_scale: f32,
    per_layer: Option<CandlePerLayerEmbedding>,
    blocks: Vec<CandleBlock>,
    norm: CandleNorm,
    head: CandleMatrix,
    logits_spec: LogitsSpec,
    rank_head: Option<RankHead>,
    /// [`workspace_bytes`].
    workspace: usize,
    /// Final hidden states of the rows that were asked for, `[rows, width]`.
    hidden: Vec<f32>,
    /// `[rows, vocabulary]`.
    logits: Vec<f32>,
}

/// The values that are the same for all blocks of a pass over one sequence.
struct Pass<'a> {
    /// The position of the first row.
    start: usize,
    rows: usize,
    ropes: &'a [Rope],
    /// Cosines and sines of each rotation, `[rows, pairs]`.
    angles: Vec<[Tensor; 2]>,
    /// `[rows, blocks, length]`.
    per_layer: Option<Tensor>,
    pool: &'a Pool,
}

impl CandleDecoder {
    fn load(
        candle: &Candle,
        gguf: &Gguf,
        spec: ModelSpec,
        workspace: u64,
        loading: &Loading<'_>,
    ) -> Result<CandleDecoder, Error> {
        let Kind::Decoder { embedding_scale, output_norm, logits } = spec.kind else {
            return Err(refused_encoder(gguf));
        };
        let source = WeightSource { gguf, device: &candle.device };
        let vocabulary = match gguf.tensor("token_embd.weight")?.shape {
            [_, rows] => *rows,
            other => return Err(gguf.corrupt(format!("tensor \"token_embd.weight\" has shape {other:?}"))),
        };
        let embedding = CandleMatrix::load(source, "token_embd.weight", spec.width, vocabulary)?;
        let head = match gguf.opt_tensor("output.weight")? {
            Some(_) => CandleMatrix::load(source, "output.weight", spec.width, vocabulary)?,
            None => embedding.clone(),
        };
        let usual = spec.tensors.include("output_norm.weight");
        let norm_name = if usual { "output_norm" } else { "token_embd_norm" };
        let mut blocks = Vec::with_capacity(spec.blocks.len());
        for index in 0..spec.blocks.len() {
            if (loading.stop)() {
                return Err(Error::Stopped);
            }
            blocks.push(CandleBlock::load(source, &spec, index)?);
        }
        Ok(CandleDecoder {
            device: candle.device.clone(),
            layers: Layers::of(&spec, &candle.device)?,
            vocabulary,
            embedding,
            embedding_scale,
            per_layer: CandlePerLayerEmbedding::load(source, &spec, output_norm, vocabulary)?,
            blocks,
            norm: CandleNorm::load(source, norm_name, output_norm, spec.width)?,
            head,
            logits_spec: logits,
            rank_head: RankHead::load(gguf, spec.width)?,
            workspace: usize::try_from(workspace).unwrap_or(usize::MAX),
            hidden: Vec::new(),
            logits: Vec::new(),
            spec,
        })
    }

    /// Computes the rows of one sequence, and appends the final hidden states of the wanted rows to `hidden`.
    /// False once it is interrupted.
    fn compute(
        &self,
        segment: &mut Segment<'_>,
        hidden: &mut Vec<f32>,
        pool: &Pool,
        interrupted: &dyn Fn() -> bool,
    ) -> candle_core::Result<bool> {
        let (start, rows, width) = (segment.state.len(), segment.tokens.len(), self.spec.width);
        let state = state_of(segment.state);
        state.begin(rows, segment.wanted.guesses())?;
        let mut pass = Pass {
            start,
            rows,
            ropes: &self.spec.ropes,
            angles: self.angles(start, rows)?,
            per_layer: None,
            pool,
        };
        let mut x = vec![0.0; rows * width];
        for (token, x) in segment.tokens.iter().zip(x.chunks_exact_mut(width)) {
            self.embedding.row(*token as usize, x);
        }
        let x = Tensor::from_vec(x, (rows, width), &self.device)?;
        let mut x = (x * f64::from(self.embedding_scale))?;
        if let Some(per_layer) = &self.per_layer {
            pass.per_layer = Some(per_layer.forward(segment.tokens, &x, &pass)?);
        }
        for block in &self.blocks {
            if interrupted() {
                return Ok(false);
            }
            x = block.forward(&x, &pass, state)?;
        }
        let lengths = x.sqr()?.sum(1)?.to_vec1::<f32>()?;
        let normed = self.norm.forward(&x)?.flatten_all()?.to_vec1::<f32>()?;
        for (row, normed) in normed.chunks_exact(width).enumerate() {
            let wanted = segment.wanted.includes(row, rows);
            let finite = lengths[row].is_finite() && (!wanted || normed.iter().all(|x| x.is_finite()));
            if !finite {
                segment.fault.get_or_insert(start + row);
            }
            if wanted {
                hidden.extend_from_slice(normed);
            }
        }
        Ok(true)
    }

    /// Cosines and sines of the positions of some rows.
    fn angles(&self, start: usize, rows: usize) -> candle_core::Result<Vec<[Tensor; 2]>> {
        let of_rope = |rope: &Rope| {
            let pairs = rope.pairs();
            let (mut cos, mut sin) = (vec![0.0; rows * pairs], vec![0.0; rows * pairs]);
            let each = cos.chunks_exact_mut(pairs.max(1)).zip(sin.chunks_exact_mut(pairs.max(1)));
            for (row, (cos, sin)) in each.enumerate() {
                rope.angles(start + row, cos, sin);
            }
            let tensor = |values| Tensor::from_vec(values, (rows, pairs), &self.device);
            Ok([tensor(cos)?, tensor(sin)?])
        };
        self.spec.ropes.iter().map(of_rope).collect()
    }

    /// Outputs of the head for some of the hidden states, of the tokens of a range: `[rows, tokens]`.
    fn head(&self, head: &CandleMatrix, rows: &[usize], pool: &Pool) -> Result<Vec<f32>, Error> {
        let width = self.spec.width;
        let mut input = Vec::with_capacity(rows.len() * width);
        for row in rows {
            input.extend_from_slice(&self.hidden[row * width..(row + 1) * width]);
        }
        let computed = || {
            let input = Tensor::from_vec(input, (rows.len(), width), &self.device)?;
            let mut logits = (head.forward(&input, pool)? * f64::from(self.logits_spec.scale))?;
            if let Some(cap) = self.logits_spec.cap.map(f64::from) {
                logits = ((logits / cap)?.tanh()? * cap)?;
            }
            logits.flatten_all()?.to_vec1::<f32>()
        };
        watched(WORKSPACE, self.workspace, computed)?.map_err(raised)
    }
}

/// The state of a segment, which a decoder of this backend has made.
fn state_of(state: &mut dyn State) -> &mut CandleState {
    let state = state.as_any_mut().downcast_mut();
    let Some(state) = state else { unreachable!("a sequence stays with the decoder that it began on") };
    state
}

impl Decoder for CandleDecoder {
    fn facts(&self) -> DecoderFacts {
        DecoderFacts {
            vocabulary: self.vocabulary,
            width: self.spec.width,
            context_length: self.spec.context_length,
            pooling: self.spec.pooling,
        }
    }

    fn new_state(&self) -> Box<dyn State> {
        Box::new(CandleState::new(self.layers.clone()))
    }

    fn forward(
        &mut self,
        segments: &mut [Segment<'_>],
        pool: &Pool,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<bool, Error> {
        threads::stay_alone()?;
        let _standard = Standard::enter();
        let mut hidden = std::mem::take(&mut self.hidden);
        hidden.clear();
        let computed = watched(WORKSPACE, self.workspace, || {
            for segment in &mut *segments {
                if !self.compute(segment, &mut hidden, pool, interrupted)? {
                    return Ok(false);
                }
            }
            Ok(true)
        })?;
        if !computed.map_err(raised)? {
            return Ok(false);
        }
        for segment in segments {
            let (count, guesses) = (segment.tokens.len(), segment.wanted.guesses());
            state_of(segment.state).advance(count, guesses);
        }
        self.hidden = hidden;
        Ok(true)
    }

    fn hidden(&self) -> &[f32] {
        &self.hidden
    }

    fn logits(&mut self, rows: &[usize], pool: &Pool) -> Result<&[f32], Error> {
        self.logits = self.head(&self.head, rows, pool)?;
        Ok(&self.logits)
    }

    fn logits_of(&mut self, rows: &[usize], tokens: [u32; 2], pool: &Pool) -> Result<Vec<[f32; 2]>, Error> {
        let column = |token: u32| self.head(&self.head.part(token as usize..token as usize + 1), rows, pool);
        let [first, second] = [column(tokens[0])?, column(tokens[1])?];
        Ok(first.into_iter().zip(second).map(|(first, second)| [first, second]).collect())
    }

    fn ranks(&self, row: usize, pool: &Pool) -> Vec<f32> {
        let width = self.spec.width;
        let hidden = &self.hidden[row * width..(row + 1) * width];
        self.rank_head.as_ref().map(|head| head.outputs(hidden, pool.instructions())).unwrap_or_default()
    }

    fn check_lost(&self) -> Result<(), Error> {
        // The file is not read any more once it is loaded.
        Ok(())
    }
}
