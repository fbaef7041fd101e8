//! Encoders: every token of a text sees all others. The result is a vector, pooled from the hidden states as
//! in Sentence-BERT ([Reimers and Gurevych 2019](https://arxiv.org/abs/1908.10084)), or the scores of a head.
//!
//! A pass takes several texts at once ([`EncoderNetwork::begin`]) and is computed block by block
//! ([`EncoderNetwork::advance`]), so that the caller can do something else in between.
//!
//! Invariant: the result of a text depends on its own tokens and nothing else: not on the texts beside it,
//! nor on threads.

mod head;
mod pass;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::adapters::{self, AdaptedEmbeddings, NO_ADAPTER};
use super::arch;
use super::block::Block;
use super::layers::{Dense, Norm};
use super::packed_weights::{self, PackedWeights};
use super::spec::{HeadSpec, Kind, ModelSpec};
use super::state::SequenceState;
use super::weights::Matrix;
use crate::Error;
use crate::computing::{EncoderText, Loading, MAX_TEXTS, Pooling, State};
use crate::gguf::Gguf;
use crate::kernels::Pool;
use crate::kernels::instructions::Instructions;
use crate::kernels::norm::normalise;
use crate::kernels::recurrence::StatePlace;
use crate::kernels::rows::Rows;
use crate::kernels::swiglu::{add, scale};
use crate::mapping::Mapping;
use head::EncoderHead;
pub(crate) use pass::EncoderWorkspace;

/// A loaded encoder.
pub(crate) struct EncoderNetwork {
    gguf: Gguf,
    /// The mapping that holds the packed weights, once they are made.
    packed: Option<Arc<Mapping>>,
    spec: ModelSpec,
    vocabulary: usize,
    /// `[vocabulary, width]`.
    tokens: Matrix,
    /// `[context_length, width]` or more, where positions have embeddings.
    positions: Option<Matrix>,
    /// Embeddings `[width]` of the first and the second text of a pair; those of a model without are zeros.
    types: [Vec<f32>; 2],
    /// The changes of each adapter to these embeddings.
    adapters: Vec<AdaptedEmbeddings>,
    /// The factor of token embeddings.
    scale: f32,
    norm: Option<Norm>,
    output_norm: Option<Norm>,
    blocks: Vec<Block>,
    /// Matrices that are applied to a pooled vector, one after the other.
    projections: Vec<Dense>,
    head: Option<EncoderHead>,
}

impl EncoderNetwork {
    /// Checks every tensor of the file, then maps or makes the packed weights.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] and [`Error::UnsupportedModel`], naming the key or the tensor;
    /// [`Error::OutOfMemory`], [`Error::Stopped`].
    pub(crate) fn load(gguf: &Gguf, loading: &Loading<'_>) -> Result<EncoderNetwork, Error> {
        // The model is put together without packed weights first, so that nothing is made or stored for a
        // file that is refused.
        EncoderNetwork::assemble(gguf, None)?;
        gguf.check_lost()?;
        let packed = PackedWeights::open(gguf, loading)?;
        let mut encoder = EncoderNetwork::assemble(gguf, Some(&packed))?;
        encoder.packed = Some(packed.mapping());
        gguf.release_all();
        encoder.check_lost()?;
        Ok(encoder)
    }

    /// Checks every tensor of the file.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] and [`Error::UnsupportedModel`], naming the key or the tensor.
    pub(super) fn check(gguf: &Gguf) -> Result<(), Error> {
        EncoderNetwork::assemble(gguf, None).map(|_| ())
    }

    fn assemble(gguf: &Gguf, packed: Option<&PackedWeights>) -> Result<EncoderNetwork, Error> {
        let spec = arch::spec(gguf)?;
        let Kind::Encoder { embedding_scale, embedding_norm, positions, output_norm, projections, head } =
            spec.kind
        else {
            return Err(gguf.unsupported("it is a decoder, which sees a text one way only"));
        };
        arch::refuse_unknown_tensors(gguf, &spec)?;
        adapters::refuse_unknown_tensors(gguf)?;
        let width = spec.width;
        let rows = |name: &str| match gguf.tensor(name)?.shape {
            [_, rows] => Ok(*rows),
            other => Err(gguf.corrupt(format!("tensor \"{name}\" has shape {other:?}"))),
        };
        let vocabulary = rows("token_embd.weight")?;
        let positions = match positions {
            false => None,
            true => {
                let rows = rows("position_embd.weight")?;
                if rows < spec.context_length {
                    return Err(gguf.corrupt(format!(
                        "tensor \"position_embd.weight\" has {rows} rows for a context of {}",
                        spec.context_length
                    )));
                }
                Some(Matrix::load(gguf, "position_embd.weight", width, rows)?)
            }
        };
        let mut types = [vec![0.0; width], vec![0.0; width]];
        let mut type_count = 0;
        if gguf.opt_tensor("token_types.weight")?.is_some() {
            let count = rows("token_types.weight")?;
            type_count = count;
            let table = Matrix::load(gguf, "token_types.weight", width, count)?;
            for (index, target) in types.iter_mut().enumerate().take(count) {
                table.row(index, target);
            }
        }
        let blocks = 0..spec.blocks.len();
        Ok(EncoderNetwork {
            gguf: gguf.clone(),
            packed: None,
            vocabulary,
            tokens: Matrix::load(gguf, "token_embd.weight", width, vocabulary)?,
            positions,
            adapters: AdaptedEmbeddings::load_all(gguf, vocabulary, &types, type_count)?,
            types,
            scale: embedding_scale,
            norm: embedding_norm.map(|norm| Norm::load(gguf, "token_embd_norm", norm, width)).transpose()?,
            output_norm: output_norm.map(|norm| Norm::load(gguf, "output_norm", norm, width)).transpose()?,
            blocks: blocks
                .map(|index| Block::load(gguf, packed, index, &spec))
                .collect::<Result<Vec<_>, _>>()?,
            projections: match projections {
                Some(inner) => vec![
                    Dense::load(gguf, packed, "dense_2", width, inner)?,
                    Dense::load(gguf, packed, "dense_3", inner, width)?,
                ],
                None => Vec::new(),
            },
            head: EncoderHead::load(gguf, packed, head, width)?,
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

    /// Number of token ids.
    pub(crate) fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Number of scores that its head gives a text; 0 where it has none.
    pub(crate) fn scores_per_text(&self) -> usize {
        self.head.as_ref().map_or(0, EncoderHead::outputs)
    }

    /// Most rows of a pass, unless it is of one text, or of two that are compared.
    pub(crate) fn rows(&self) -> usize {
        pass::usual_rows(&self.spec)
    }

    /// Memory for its passes.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(crate) fn workspace(&self, threads: usize) -> Result<EncoderWorkspace, Error> {
        EncoderWorkspace::new(&self.spec, threads)
    }

    /// Bytes of [`EncoderNetwork::workspace`] of a model.
    pub(crate) fn workspace_bytes(spec: &ModelSpec, threads: usize) -> u64 {
        EncoderWorkspace::bytes(spec, threads)
    }

    /// Bytes that a pass of so many rows takes beyond these.
    pub(crate) fn more_bytes(&self, rows: usize, threads: usize) -> u64 {
        EncoderWorkspace::more_bytes(&self.spec, rows, threads)
    }

    /// Gives back the extra memory of a long pass.
    pub(crate) fn rest(&self, workspace: &mut EncoderWorkspace, threads: usize) {
        // If there is no memory for a usual pass, the next pass returns the error.
        let _ = workspace.fit(&self.spec, 0, threads);
    }

    /// Begins a pass over some texts, at most [`MAX_TEXTS`], for which the workspace gets as many rows as
    /// they need. A pass that was under way is forgotten.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(crate) fn begin(
        &self,
        texts: &[EncoderText<'_>],
        workspace: &mut EncoderWorkspace,
        pool: &Pool,
    ) -> Result<(), Error> {
        let rows: usize = texts.iter().map(|text| text.tokens.len()).sum();
        assert!(texts.len() <= MAX_TEXTS, "{} texts", texts.len());
        let instructions = pool.instructions();
        workspace.next = 0;
        workspace.texts.clear();
        workspace.fit(&self.spec, rows, pool.threads())?;
        workspace.blocks.begin(rows);
        let has_adapters = texts.iter().any(|text| text.adapter.is_some());
        let width = self.spec.width;
        let mut first = 0;
        for (index, text) in texts.iter().enumerate() {
            if workspace.states.len() == index {
                workspace.states.push(SequenceState::new(pass::layout(&self.spec), self.rows()));
            }
            let state = &mut workspace.states[index];
            state.shrink(text.tokens.len());
            state.reserve(text.tokens.len())?;
            workspace.texts.push(first..first + text.tokens.len());
            let adapted = text.adapter.and_then(|adapter| self.adapters.get(usize::from(adapter)));
            let types = adapted.map_or(&self.types, |adapted| &adapted.types);
            if has_adapters {
                let adapters = &mut workspace.blocks.adapters;
                adapters.resize(adapters.len() + text.tokens.len(), text.adapter.unwrap_or(NO_ADAPTER));
            }
            for (position, token) in text.tokens.iter().enumerate() {
                let range = (first + position) * width..(first + position + 1) * width;
                let (x, h) = (&mut workspace.blocks.x[range.clone()], &mut workspace.blocks.h[range]);
                workspace.blocks.positions.push(position);
                self.tokens.row(*token as usize, x);
                if let Some(adapted) = adapted {
                    adapted.add(instructions, *token as usize, x);
                }
                if self.scale != 1.0 {
                    scale(instructions, x, self.scale);
                }
                if let Some(positions) = &self.positions {
                    positions.row(position, h);
                    add(instructions, x, h);
                }
                add(instructions, x, &types[usize::from(position >= text.second)]);
                let norm = self.norm.as_ref();
                if norm.is_some_and(|norm| !norm.apply_in_place(instructions, x)) {
                    workspace.blocks.finite[first + position].store(false, Ordering::Relaxed);
                }
            }
            first += text.tokens.len();
        }
        workspace.states.truncate(texts.len());
        workspace.blocks.turn(&self.spec.ropes);
        Ok(())
    }

    /// Computes the next block of the pass; true once there is none left.
    pub(crate) fn advance(&self, workspace: &mut EncoderWorkspace, pool: &Pool) -> bool {
        if let Some(block) = self.blocks.get(workspace.next) {
            let EncoderWorkspace { blocks, texts, states, .. } = workspace;
            let both_ways = block.sees_both_ways();
            let sequences = texts.iter().zip(states).map(|(text, state)| {
                let (done, open, _) = state.parts(text.len(), false);
                Rows {
                    kind: pass::KIND,
                    done,
                    open,
                    position: 0,
                    rows: text.len(),
                    first_row: text.start,
                    both_ways,
                    running: None,
                }
            });
            let place = StatePlace { running: 0, block: 0 };
            block.forward(&sequences.collect::<Vec<_>>(), place, &self.spec.ropes, blocks, pool);
            workspace.next += 1;
            if let Some(norm) = self.output_norm.as_ref().filter(|_| workspace.next == self.blocks.len()) {
                workspace.blocks.normalise(norm, pool);
            }
        }
        workspace.next >= self.blocks.len()
    }

    /// The position of the first row of a text that was not finite, if there is one.
    pub(crate) fn fault(&self, workspace: &EncoderWorkspace, text: usize) -> Option<usize> {
        let rows = workspace.texts[text].clone();
        workspace.blocks.finite[rows].iter().position(|finite| !finite.load(Ordering::Relaxed))
    }

    /// The vector of a text, `[width]` and of length 1, after the last block.
    pub(crate) fn vector(&self, workspace: &mut EncoderWorkspace, text: usize, pool: &Pool) -> Vec<f32> {
        let instructions = pool.instructions();
        let (mut vector, count) = self.pooled(workspace, text, self.spec.pooling, instructions);
        if !self.projections.is_empty() && count > 1 {
            scale(instructions, &mut vector, 1.0 / count as f32);
        }
        for dense in &self.projections {
            let mut projected = vec![0.0; dense.weight.outputs()];
            dense.weight.multiply(&mut vector, None, &mut projected, &mut workspace.blocks.quantized, pool);
            dense.add_bias(instructions, &mut projected);
            vector = projected;
        }
        normalise(instructions, vector)
    }

    /// The hidden state of a text, `[width]`: that of a token, or the sum of all; and the number of states
    /// summed.
    fn pooled(
        &self,
        workspace: &EncoderWorkspace,
        text: usize,
        pooling: Pooling,
        instructions: Instructions,
    ) -> (Vec<f32>, usize) {
        let width = self.spec.width;
        let rows = workspace.texts[text].clone();
        let rows = &workspace.blocks.x[rows.start * width..rows.end * width];
        let (first, last) = (&rows[..width], &rows[rows.len() - width..]);
        match pooling {
            Pooling::First => (first.to_vec(), 1),
            Pooling::Last => (last.to_vec(), 1),
            Pooling::Mean => {
                let mut sum = first.to_vec();
                rows[width..].chunks_exact(width).for_each(|row| add(instructions, &mut sum, row));
                (sum, rows.len() / width)
            }
        }
    }

    /// The scores that the head gives some texts of the pass, after the last block:
    /// `[texts, scores_per_text]`.
    pub(crate) fn scores(&self, workspace: &mut EncoderWorkspace, texts: &[usize], pool: &Pool) -> Vec<f32> {
        let Some(head) = &self.head else { return Vec::new() };
        let Kind::Encoder { head: HeadSpec { pooling, .. }, .. } = self.spec.kind else { return Vec::new() };
        let mut states = Vec::with_capacity(texts.len() * self.spec.width);
        for text in texts {
            let (mut state, count) = self.pooled(workspace, *text, pooling, pool.instructions());
            if count > 1 {
                scale(pool.instructions(), &mut state, 1.0 / count as f32);
            }
            states.append(&mut state);
        }
        head.scores(states, &mut workspace.blocks.quantized, pool)
    }
}
