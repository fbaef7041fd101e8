//! Encoders of the BERT family: every token of a text sees all others, and what comes of it is a vector, or the scores
//! of a head.
//!
//! A pass takes several texts at once ([`Encoder::begin`]) and is computed layer by layer ([`Encoder::advance`]), so that
//! whoever drives it can do something else in between.
//!
//! Invariant: what a text becomes depends on its own tokens and nothing else: not on the texts beside it, nor on threads.

mod head;
mod layer;
mod sizes;
#[cfg(test)]
mod tests;
mod workspace;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::hyperparameters::Pooling;
use super::packed_weights::{self, Loading, PackedWeights};
use super::weights::{Matrix, multiply_all};
use crate::Error;
use crate::gguf::Gguf;
use crate::kernels::Pool;
use crate::kernels::attention::{Projections, Rows, attend};
use crate::kernels::gelu::gelu;
use crate::kernels::matrix::{Instructions, each_row};
use crate::kernels::norm::{layer_norm, normalise};
use crate::kernels::swiglu::add;
use crate::mapping::Mapping;
use head::Head;
use layer::{Attention, Dense, Layer, Norm};
pub(crate) use sizes::Sizes;
pub(crate) use workspace::{MAX_TEXTS, Workspace};

use super::cache::KvCache;

/// A loaded encoder.
pub(crate) struct Encoder {
    gguf: Gguf,
    /// What holds the panels, once there are some.
    panels: Option<Arc<Mapping>>,
    sizes: Sizes,
    vocabulary: usize,
    tokens: Matrix,
    positions: Matrix,
    /// Embeddings of the first and the second text of a pair; those of a model without are zeros.
    types: [Vec<f32>; 2],
    norm: Norm,
    layers: Vec<Layer>,
    head: Option<Head>,
}

/// A text of a pass.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Text<'a> {
    /// At least one token, and not more than the context has.
    pub(crate) tokens: &'a [u32],
    /// Tokens from here on belong to the second text of a pair.
    pub(crate) second: usize,
}

/// Whether the file holds an encoder.
///
/// # Errors
/// [`Error::CorruptModel`] where it does not name its architecture.
pub(crate) fn is_encoder(gguf: &Gguf) -> Result<bool, Error> {
    Ok(gguf.str("general.architecture")? == sizes::ARCHITECTURE)
}

impl Encoder {
    /// Checks every tensor of the file, then maps or makes the panels of those that have some.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] and [`Error::UnsupportedModel`], naming the key or the tensor;
    /// [`Error::OutOfMemory`], [`Error::Stopped`].
    pub(crate) fn load(gguf: &Gguf, loading: &Loading<'_>) -> Result<Encoder, Error> {
        // Without panels first: nothing is made or stored for a file that is refused.
        Encoder::assemble(gguf, None)?;
        gguf.check_lost()?;
        let panels = PackedWeights::open(gguf, loading)?;
        let mut encoder = Encoder::assemble(gguf, Some(&panels))?;
        encoder.panels = Some(panels.mapping());
        gguf.release_all();
        encoder.check_lost()?;
        Ok(encoder)
    }

    fn assemble(gguf: &Gguf, panels: Option<&PackedWeights>) -> Result<Encoder, Error> {
        let sizes = Sizes::of(gguf)?;
        refuse_unknown_tensors(gguf)?;
        let width = sizes.width;
        let rows = |name: &str| match gguf.tensor(name)?.shape {
            [_, rows] => Ok(*rows),
            other => Err(gguf.corrupt(format!("tensor \"{name}\" has shape {other:?}"))),
        };
        let vocabulary = rows("token_embd.weight")?;
        let positions = rows("position_embd.weight")?;
        if positions < sizes.context_length {
            return Err(gguf.corrupt(format!(
                "tensor \"position_embd.weight\" has {positions} rows for a context of {}",
                sizes.context_length
            )));
        }
        let mut types = [vec![0.0; width], vec![0.0; width]];
        if gguf.opt_tensor("token_types.weight")?.is_some() {
            let count = rows("token_types.weight")?;
            let table = Matrix::load(gguf, "token_types.weight", width, count)?;
            for (index, target) in types.iter_mut().enumerate().take(count) {
                table.row(index, target);
            }
        }
        Ok(Encoder {
            gguf: gguf.clone(),
            panels: None,
            vocabulary,
            tokens: Matrix::load(gguf, "token_embd.weight", width, vocabulary)?,
            positions: Matrix::load(gguf, "position_embd.weight", width, positions)?,
            types,
            norm: Norm::load(gguf, "token_embd_norm", width)?,
            layers: (0..sizes.layers)
                .map(|index| Layer::load(gguf, panels, index, &sizes))
                .collect::<Result<Vec<_>, _>>()?,
            head: Head::load(gguf, panels, width)?,
            sizes,
        })
    }

    /// Whether everything that was computed up to now came from weights that were there.
    ///
    /// # Errors
    /// [`Error::LostModel`], naming the file.
    pub(crate) fn check_lost(&self) -> Result<(), Error> {
        packed_weights::check_lost(&self.gguf, self.panels.as_deref())
    }

    /// Sizes and constants.
    pub(crate) fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    /// Number of token ids.
    pub(crate) fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// How many scores its head gives a text; 0 where it has none.
    pub(crate) fn scores_per_text(&self) -> usize {
        self.head.as_ref().map_or(0, Head::outputs)
    }

    /// Memory for its passes.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(crate) fn workspace(&self, threads: usize) -> Result<Workspace, Error> {
        let fused = self.layers.iter().any(|layer| matches!(layer.attention, Attention::Fused(_)));
        Workspace::new(&self.sizes, fused, threads)
    }

    /// Bytes of [`Encoder::workspace`].
    pub(crate) fn workspace_bytes(sizes: &Sizes, threads: usize) -> u64 {
        Workspace::bytes(sizes, threads)
    }

    /// Begins a pass over some texts, at most [`MAX_TEXTS`] and as many rows as the workspace has. A pass that was
    /// under way is forgotten.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] for keys and values.
    pub(crate) fn begin(
        &self,
        texts: &[Text<'_>],
        workspace: &mut Workspace,
        instructions: Instructions,
    ) -> Result<(), Error> {
        let rows: usize = texts.iter().map(|text| text.tokens.len()).sum();
        assert!(rows <= workspace.rows, "{rows} rows in a workspace of {}", workspace.rows);
        assert!(texts.len() <= MAX_TEXTS, "{} texts", texts.len());
        workspace.layer = 0;
        workspace.texts.clear();
        let width = self.sizes.width;
        let mut first = 0;
        for (index, text) in texts.iter().enumerate() {
            if workspace.caches.len() == index {
                workspace.caches.push(KvCache::new(workspace::shape(&self.sizes)));
            }
            let cache = &mut workspace.caches[index];
            cache.shrink(text.tokens.len());
            cache.reserve(text.tokens.len())?;
            workspace.texts.push(first..first + text.tokens.len());
            for (position, token) in text.tokens.iter().enumerate() {
                let range = (first + position) * width..(first + position + 1) * width;
                let (x, h) = (&mut workspace.x[range.clone()], &mut workspace.h[range]);
                self.tokens.row(*token as usize, x);
                self.positions.row(position, h);
                add(instructions, x, h);
                add(instructions, x, &self.types[usize::from(position >= text.second)]);
                let Norm { weight, bias } = &self.norm;
                let finite = layer_norm(instructions, x, weight, bias, self.sizes.norm_epsilon);
                workspace.finite[first + position].store(finite, Ordering::Relaxed);
            }
            first += text.tokens.len();
        }
        workspace.caches.truncate(texts.len());
        Ok(())
    }

    /// Computes the next layer of the pass; true once there is none left.
    pub(crate) fn advance(&self, workspace: &mut Workspace, pool: &Pool) -> bool {
        if let Some(layer) = self.layers.get(workspace.layer) {
            self.attention(layer, workspace, pool);
            self.feed_forward(layer, workspace, pool);
            workspace.layer += 1;
        }
        workspace.layer >= self.layers.len()
    }

    /// Whether a row of a text was not finite: its position.
    pub(crate) fn fault(&self, workspace: &Workspace, text: usize) -> Option<usize> {
        let rows = workspace.texts[text].clone();
        workspace.finite[rows].iter().position(|finite| !finite.load(Ordering::Relaxed))
    }

    /// The vector of a text, of length 1, after the last layer.
    pub(crate) fn vector(&self, workspace: &Workspace, text: usize, instructions: Instructions) -> Vec<f32> {
        let width = self.sizes.width;
        let rows = workspace.texts[text].clone();
        let rows = &workspace.x[rows.start * width..rows.end * width];
        let (first, last) = (&rows[..width], &rows[rows.len() - width..]);
        let pooled = match self.sizes.pooling {
            Pooling::First => first.to_vec(),
            Pooling::Last => last.to_vec(),
            Pooling::Mean => {
                let mut sum = first.to_vec();
                rows[width..].chunks_exact(width).for_each(|row| add(instructions, &mut sum, row));
                sum
            }
        };
        normalise(instructions, pooled)
    }

    /// The scores that the head gives some texts of the pass, [`Encoder::scores_per_text`] each, after the last layer.
    pub(crate) fn scores(&self, workspace: &mut Workspace, texts: &[usize], pool: &Pool) -> Vec<f32> {
        let Some(head) = &self.head else { return Vec::new() };
        let width = self.sizes.width;
        let mut firsts = Vec::with_capacity(texts.len() * width);
        for text in texts {
            let row = workspace.texts[*text].start;
            firsts.extend_from_slice(&workspace.x[row * width..(row + 1) * width]);
        }
        head.scores(firsts, &mut workspace.quantized, pool)
    }

    /// `x = norm(x + output(attention(x)))`, but for the norm, which comes with the next step.
    fn attention(&self, layer: &Layer, workspace: &mut Workspace, pool: &Pool) {
        let (width, heads) = (self.sizes.width, self.sizes.heads);
        let Workspace { texts, x, h, query, key, value, fused, attention, caches, tiles, quantized, .. } =
            workspace;
        let rows = texts.last().map_or(0, |last| last.end);
        let [x, h, query, key, value, attention] =
            [x, h, query, key, value, attention].map(|values| &mut values[..rows * width]);
        match &layer.attention {
            Attention::Apart(parts) => {
                let layers = parts.each_ref().map(|dense| &dense.weight);
                multiply_all(layers, x, None, [&mut *query, &mut *key, &mut *value], quantized, pool);
                for (dense, rows) in parts.iter().zip([&mut *query, &mut *key, &mut *value]) {
                    rows.chunks_exact_mut(width).for_each(|row| add(pool.instructions(), row, &dense.bias));
                }
            }
            Attention::Fused(dense) => {
                let fused = &mut fused[..rows * 3 * width];
                dense.weight.multiply(x, None, fused, quantized, pool);
                for (row, fused) in fused.chunks_exact_mut(3 * width).enumerate() {
                    add(pool.instructions(), fused, &dense.bias);
                    let range = row * width..(row + 1) * width;
                    let parts = fused.chunks_exact(width);
                    for (target, part) in [&mut *query, &mut *key, &mut *value].into_iter().zip(parts) {
                        target[range.clone()].copy_from_slice(part);
                    }
                }
            }
        }
        let sequences: Vec<Rows<'_>> = texts
            .iter()
            .zip(caches)
            .map(|(text, cache)| {
                let (done, open) = cache.parts(text.len());
                Rows { done, open, position: 0, rows: text.len(), first_row: text.start, both_ways: true }
            })
            .collect();
        let projections = Projections { queries: query, fresh: Some((key, value)), ready: &|_, _, _| {} };
        attend(heads, 0, &sequences, projections, attention, tiles, pool);
        layer.output.weight.multiply(attention, None, h, quantized, pool);
    }

    /// The norm of what attention leaves, then `x = norm(x + down(gelu(up(x))))`.
    fn feed_forward(&self, layer: &Layer, workspace: &mut Workspace, pool: &Pool) {
        let width = self.sizes.width;
        let Workspace { texts, x, h, finite, inner, quantized, .. } = workspace;
        let rows = texts.last().map_or(0, |last| last.end);
        let (x, h) = (&mut x[..rows * width], &mut h[..rows * width]);
        let inner = &mut inner[..rows * self.sizes.feed_forward];
        let (epsilon, instructions) = (self.sizes.norm_epsilon, pool.instructions());
        let add_and_norm = |h: &[f32], dense: &Dense, norm: &Norm, row: usize, x: &mut [f32]| {
            add(instructions, x, &h[row * width..(row + 1) * width]);
            add(instructions, x, &dense.bias);
            if !layer_norm(instructions, x, &norm.weight, &norm.bias, epsilon) {
                finite[row].store(false, Ordering::Relaxed);
            }
        };
        let attended = |row: usize, x: &mut [f32]| add_and_norm(h, &layer.output, &layer.output_norm, row, x);
        layer.up.weight.multiply(x, Some(&attended), inner, quantized, pool);
        let activate = |_: usize, inner: &mut [f32]| gelu(instructions, inner, &layer.up.bias);
        layer.down.weight.multiply(inner, Some(&activate), h, quantized, pool);
        let h = &*h;
        each_row(x, width, pool, &|row, x| add_and_norm(h, &layer.down, &layer.down_norm, row, x));
    }
}

/// A tensor that the encoder does not know would change the result if it were left out.
fn refuse_unknown_tensors(gguf: &Gguf) -> Result<(), Error> {
    for tensor in gguf.tensors() {
        let known = match tensor.name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
            Some((_, part)) => Layer::knows(part),
            None => {
                Head::knows(tensor.name)
                    || matches!(
                        tensor.name,
                        "token_embd.weight"
                            | "position_embd.weight"
                            | "token_types.weight"
                            | "token_embd_norm.weight"
                            | "token_embd_norm.bias"
                    )
            }
        };
        if !known {
            return Err(gguf.unsupported(format!("tensor \"{}\" has no place in the encoder", tensor.name)));
        }
    }
    Ok(())
}
