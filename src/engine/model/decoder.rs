//! A model that predicts the next token: an embedding, blocks, a norm and a head over the vocabulary.
//!
//! A forward pass takes rows of several sequences at once ([`Segment`]); each sequence brings its own
//! [`SequenceState`]. Everything lies in plain slices of a preallocated [`Workspace`].

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::arch;
use super::block::Block;
use super::layers::Norm;
use super::packed_weights::{self, PackedWeights};
use super::per_layer::PerLayerEmbedding;
use super::rank::RankHead;
use super::spec::{Kind, LogitsSpec, ModelSpec};
use super::state::{SequenceState, StateLayout};
use super::streams::Streams;
use super::weights::Matrix;
use super::workspace::{Size, Workspace};
use crate::Error;
use crate::computing::{Loading, ModelLimits, Segment, State};
use crate::gguf::Gguf;
use crate::kernels::Pool;
use crate::kernels::gelu::soft_cap;
use crate::kernels::instructions::Instructions;
use crate::kernels::matrix::each_row;
use crate::kernels::norm::sum_of_squares;
use crate::kernels::rows::Rows;
use crate::kernels::swiglu::scale;
use crate::kernels::tile::KvCacheType;
use crate::mapping::Mapping;
use crate::memory::{try_grow, try_vec};

/// The purpose of the memory, as errors name it.
const WORKSPACE: &str = "the workspace of a model";

/// A loaded decoder.
pub(crate) struct DecoderNetwork {
    gguf: Gguf,
    /// The mapping of the packed weights, once they are made.
    packed: Option<Arc<Mapping>>,
    spec: ModelSpec,
    layout: StateLayout,
    vocabulary: usize,
    /// `[vocabulary, width]`.
    embedding: Matrix,
    embedding_scale: f32,
    per_layer: Option<PerLayerEmbedding>,
    streams: Option<Streams>,
    blocks: Vec<Block>,
    norm: Norm,
    /// `[vocabulary, width]`, the embedding itself where the file has no head.
    head: Matrix,
    logits: LogitsSpec,
    rank_head: Option<RankHead>,
}

/// Memory for passes of a decoder.
pub(crate) struct DecoderWorkspace {
    blocks: Workspace,
    /// Final hidden states of the rows that were asked for, `[rows, width]`.
    hidden: Vec<f32>,
    /// The rows of these that go through the head, `[rows, width]`.
    head_input: Vec<f32>,
    /// `[rows, vocabulary]`.
    logits: Vec<f32>,
}

/// The state of a segment, which a decoder of this backend has made.
fn state_of<'a>(segment: &'a mut Segment<'_>) -> &'a mut SequenceState {
    let state = segment.state.as_any_mut().downcast_mut();
    let Some(state) = state else { unreachable!("a sequence stays with the decoder that it began on") };
    state
}

fn note_fault(segment: &mut Segment<'_>, row: usize) {
    let position = segment.state.len() + row;
    segment.fault = Some(segment.fault.map_or(position, |first| first.min(position)));
}

impl DecoderNetwork {
    /// Checks every tensor of the file, then maps or makes the packed weights. `kind` is the type of the keys
    /// and values of its sequences; with `whole`, sequences also keep those that no window sees any more.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] and [`Error::UnsupportedModel`], naming the key or the tensor;
    /// [`Error::OutOfMemory`], [`Error::Stopped`].
    pub(crate) fn load(
        gguf: &Gguf,
        loading: &Loading<'_>,
        kind: KvCacheType,
        whole: bool,
    ) -> Result<DecoderNetwork, Error> {
        // The model is put together without packed weights first, so that nothing is made or stored for a
        // file that is refused.
        DecoderNetwork::assemble(gguf, None, kind, whole)?;
        gguf.check_lost()?;
        let packed = PackedWeights::open(gguf, loading)?;
        let mut decoder = DecoderNetwork::assemble(gguf, Some(&packed), kind, whole)?;
        decoder.packed = Some(packed.mapping());
        // The pages that are looked up later come back one by one.
        gguf.release_all();
        decoder.check_lost()?;
        Ok(decoder)
    }

    /// Checks every tensor of the file, and returns the state of a sequence without tokens, for passes of so
    /// many rows. `kind` and `whole` are as in [`DecoderNetwork::load`].
    ///
    /// # Errors
    /// [`Error::CorruptModel`] and [`Error::UnsupportedModel`], naming the key or the tensor.
    pub(super) fn check(
        gguf: &Gguf,
        kind: KvCacheType,
        rows: usize,
        whole: bool,
    ) -> Result<SequenceState, Error> {
        DecoderNetwork::assemble(gguf, None, kind, whole)
            .map(|decoder| SequenceState::new(decoder.layout, rows))
    }

    fn assemble(
        gguf: &Gguf,
        packed: Option<&PackedWeights>,
        kind: KvCacheType,
        whole: bool,
    ) -> Result<DecoderNetwork, Error> {
        let spec = arch::spec(gguf)?;
        let Kind::Decoder { embedding_scale, output_norm, logits } = spec.kind else {
            return Err(gguf.unsupported("it is an encoder, which has no logits"));
        };
        arch::refuse_unknown_tensors(gguf, &spec)?;
        let width = spec.width;
        let vocabulary = match gguf.tensor("token_embd.weight")?.shape {
            [_, rows] => *rows,
            other => return Err(gguf.corrupt(format!("tensor \"token_embd.weight\" has shape {other:?}"))),
        };
        let mut embedding = Matrix::load(gguf, "token_embd.weight", width, vocabulary)?;
        let head = match gguf.opt_tensor("output.weight")? {
            Some(_) => Matrix::load(gguf, "output.weight", width, vocabulary)?.pack(packed)?,
            None => {
                embedding = embedding.pack(packed)?;
                embedding.clone()
            }
        };
        // Files of LFM2 have the output norm under the name of a norm behind the embedding.
        let usual = spec.tensors.include("output_norm.weight");
        let norm_name = if usual { "output_norm" } else { "token_embd_norm" };
        let blocks = 0..spec.blocks.len();
        let blocks =
            blocks.map(|index| Block::load(gguf, packed, index, &spec)).collect::<Result<Vec<_>, _>>()?;
        Ok(DecoderNetwork {
            gguf: gguf.clone(),
            packed: None,
            layout: StateLayout::of(&spec, kind, whole),
            vocabulary,
            embedding,
            embedding_scale,
            per_layer: PerLayerEmbedding::load(gguf, packed, &spec, output_norm, vocabulary)?,
            streams: Streams::load(gguf, packed, &spec)?,
            blocks,
            norm: Norm::load(gguf, norm_name, output_norm, width)?,
            head,
            logits,
            rank_head: RankHead::load(gguf, width)?,
            spec,
        })
    }

    /// Whether everything that was computed up to now came from weights that were there.
    ///
    /// # Errors
    /// [`Error::LostModel`], naming the file.
    pub(crate) fn check_lost(&self) -> Result<(), Error> {
        packed_weights::check_lost(&self.gguf, self.packed.as_deref())
    }

    /// Sizes and constants.
    pub(crate) fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Number of token ids, which is the number of logits.
    pub(crate) fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// The layout of the states of its sequences.
    pub(crate) fn layout(&self) -> &StateLayout {
        &self.layout
    }

    /// Memory for its passes.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(crate) fn workspace(&self, limits: ModelLimits) -> Result<DecoderWorkspace, Error> {
        let ModelLimits { rows, wanted, threads } = limits;
        let size = Size { what: WORKSPACE, rows, threads };
        let mut blocks = Workspace::new(&self.spec, size)?;
        blocks.quantized.reserve(Workspace::longest_input(&self.spec), rows, threads)?;
        let mut logits = Vec::new();
        try_grow("the logits of a model", &mut logits, wanted * self.vocabulary)?;
        Ok(DecoderWorkspace {
            blocks,
            hidden: try_vec(WORKSPACE, rows * self.spec.width)?,
            head_input: try_vec(WORKSPACE, rows * self.spec.width)?,
            logits,
        })
    }

    /// Bytes of [`DecoderNetwork::workspace`] of the model that a file describes, and of the logits in it.
    pub(crate) fn workspace_bytes(gguf: &Gguf, spec: &ModelSpec, limits: ModelLimits) -> u64 {
        let ModelLimits { rows, wanted, threads } = limits;
        let embedding = gguf.opt_tensor("token_embd.weight").ok().flatten();
        let vocabulary = embedding.and_then(|tensor| tensor.shape.get(1).copied()).unwrap_or(0);
        let logits =
            (vocabulary as u64).saturating_mul(wanted as u64).saturating_mul(size_of::<f32>() as u64);
        logits.saturating_add(Workspace::bytes(spec, Size { what: WORKSPACE, rows, threads }))
    }

    /// Computes the segments' rows, at most as many as the workspace has, and adds them to their states.
    /// `interrupted` is asked between blocks: once it says yes the pass ends, false is returned and the
    /// states are [given up](SequenceState::give_up).
    pub(crate) fn forward(
        &self,
        segments: &mut [Segment<'_>],
        workspace: &mut DecoderWorkspace,
        pool: &Pool,
        interrupted: &dyn Fn() -> bool,
    ) -> bool {
        let rows: usize = segments.iter().map(|segment| segment.tokens.len()).sum();
        let most = workspace.blocks.rows;
        assert!(rows <= most, "{rows} rows in a workspace of {most}");
        workspace.blocks.begin(rows);
        self.embed(segments, &mut workspace.blocks, pool.instructions());
        for segment in segments.iter_mut() {
            let guesses = segment.wanted.guesses();
            state_of(segment).begin(guesses);
        }
        if let Some(per_layer) = &self.per_layer {
            let tokens = segments.iter().flat_map(|segment| segment.tokens);
            per_layer.embed(tokens, rows, &mut workspace.blocks, pool);
        }
        if let Some(streams) = &self.streams {
            streams.split(rows, &mut workspace.blocks, pool);
        }
        for (index, block) in self.blocks.iter().enumerate() {
            if interrupted() {
                segments.iter_mut().for_each(|segment| state_of(segment).give_up());
                return false;
            }
            let state = block.state_index(index);
            let sequences = sequences(segments, block.sees_both_ways(), self.layout.is_windowed(state));
            block.forward(
                &sequences,
                self.layout.place(state),
                &self.spec.ropes,
                &mut workspace.blocks,
                pool,
            );
        }
        if let Some(streams) = &self.streams {
            streams.merge(rows, &mut workspace.blocks, pool);
        }
        self.finish(segments, workspace, pool.instructions());
        for segment in segments {
            let count = segment.tokens.len();
            state_of(segment).advance(count);
        }
        true
    }

    /// Final hidden states of the rows that the last pass was asked for, in their order: `[rows, width]`.
    pub(crate) fn hidden<'w>(&self, workspace: &'w DecoderWorkspace) -> &'w [f32] {
        &workspace.hidden
    }

    /// Logits of some of those rows: `[rows, vocabulary]`.
    pub(crate) fn logits<'w>(
        &self,
        workspace: &'w mut DecoderWorkspace,
        rows: &[usize],
        pool: &Pool,
    ) -> &'w [f32] {
        self.gather(workspace, rows);
        let DecoderWorkspace { blocks, head_input, logits, .. } = workspace;
        logits.resize(rows.len() * self.vocabulary, 0.0);
        self.head.multiply(head_input, None, logits, &mut blocks.quantized, pool);
        if self.logits != LogitsSpec::PLAIN {
            let instructions = pool.instructions();
            each_row(logits, self.vocabulary, pool, &|_, row| {
                finish_logits(self.logits, row, instructions);
            });
        }
        logits
    }

    /// [`DecoderNetwork::logits`] of two tokens only, bit for bit, without the rest of the head.
    pub(crate) fn logits_of(
        &self,
        workspace: &mut DecoderWorkspace,
        rows: &[usize],
        tokens: [u32; 2],
        pool: &Pool,
    ) -> Vec<[f32; 2]> {
        self.gather(workspace, rows);
        let DecoderWorkspace { blocks, head_input, .. } = workspace;
        let columns = tokens.map(|token| {
            let mut column = self.head.output(token as usize, head_input, &mut blocks.quantized, pool);
            finish_logits(self.logits, &mut column, pool.instructions());
            column
        });
        columns[0].iter().zip(&columns[1]).map(|(first, second)| [*first, *second]).collect()
    }

    /// Gathers some of the hidden states.
    fn gather(&self, workspace: &mut DecoderWorkspace, rows: &[usize]) {
        let width = self.spec.width;
        let DecoderWorkspace { hidden, head_input, .. } = workspace;
        head_input.clear();
        for row in rows {
            head_input.extend_from_slice(&hidden[row * width..(row + 1) * width]);
        }
    }

    /// The outputs of the head for ranking for one of those rows; nothing without a head.
    pub(crate) fn ranks(&self, workspace: &DecoderWorkspace, row: usize, pool: &Pool) -> Vec<f32> {
        let width = self.spec.width;
        let hidden = &workspace.hidden[row * width..(row + 1) * width];
        self.rank_head.as_ref().map(|head| head.outputs(hidden, pool.instructions())).unwrap_or_default()
    }

    /// Writes token embeddings into the residual stream, and makes the angles of the rows' positions.
    fn embed(&self, segments: &[Segment<'_>], workspace: &mut Workspace, instructions: Instructions) {
        let tokens = segments.iter().flat_map(|segment| (segment.state.len()..).zip(segment.tokens));
        for ((position, token), x) in tokens.zip(workspace.x.chunks_exact_mut(self.spec.width)) {
            workspace.positions.push(position);
            self.embedding.row(*token as usize, x);
            if self.embedding_scale != 1.0 {
                scale(instructions, x, self.embedding_scale);
            }
        }
        workspace.turn(&self.spec.ropes);
    }

    /// The final norm of the wanted rows, and which rows were not finite.
    fn finish(
        &self,
        segments: &mut [Segment<'_>],
        workspace: &mut DecoderWorkspace,
        instructions: Instructions,
    ) {
        let width = self.spec.width;
        let DecoderWorkspace { blocks: Workspace { x, finite, .. }, hidden, .. } = workspace;
        hidden.clear();
        let mut rows = x.chunks_exact(width).zip(&*finite);
        for segment in segments {
            let count = segment.tokens.len();
            for (row, (x, finite)) in rows.by_ref().take(count).enumerate() {
                let ends_finite = if segment.wanted.includes(row, count) {
                    let start = hidden.len();
                    hidden.resize(start + width, 0.0);
                    self.norm.apply(instructions, x, &mut hidden[start..])
                } else {
                    sum_of_squares(instructions, x).is_finite()
                };
                if !(ends_finite && finite.load(Ordering::Relaxed)) {
                    note_fault(segment, row);
                }
            }
        }
    }
}

/// Makes logits of outputs of the head.
fn finish_logits(spec: LogitsSpec, outputs: &mut [f32], instructions: Instructions) {
    if spec.scale != 1.0 {
        scale(instructions, outputs, spec.scale);
    }
    if let Some(cap) = spec.cap {
        soft_cap(instructions, outputs, cap);
    }
}

/// The rows of the segments, with the blocks of state that they see and store to; the window parts of the
/// blocks where the layer has a window.
fn sequences<'s>(segments: &'s mut [Segment<'_>], both_ways: bool, windowed: bool) -> Vec<Rows<'s>> {
    let mut first_row = 0;
    let rows = segments.iter_mut().map(|segment| {
        let rows = segment.tokens.len();
        let state = state_of(segment);
        let (position, kind) = (state.len(), state.kind());
        let (done, open, running) = state.parts(rows, windowed);
        let sequence = Rows { kind, done, open, position, rows, first_row, running, both_ways };
        first_row += rows;
        sequence
    });
    rows.collect()
}
