//! One block of a model, a decoder's or an encoder's: attention (or another mixer) and feed-forward, each
//! with the norms around it, added to the residual stream.
//!
//! The residual stream is `x` `[rows, width]`; all other rows are scratch of the [`Workspace`]. Steps for
//! each row by itself (norms, sums, activations) are done by the thread that quantizes the row for the next
//! product, where there is one.

use std::sync::atomic::{AtomicBool, Ordering};

use super::attention::Attention;
use super::delta_net::DeltaNet;
use super::experts::Experts;
use super::feed_forward::FeedForward;
use super::layers::{Dense, Norm, normalised};
use super::packed_weights::PackedWeights;
use super::per_layer::PerLayerInput;
use super::short_conv::ShortConv;
use super::spec::{self, BlockSpec, ModelSpec, Residual};
use super::state_space::StateSpace;
use super::streams::{Laurel, Update};
use super::tensors::vector;
use super::workspace::Workspace;
use crate::Error;
use crate::gguf::Gguf;
use crate::kernels::Pool;
use crate::kernels::matrix::each_row;
use crate::kernels::recurrence::StatePlace;
use crate::kernels::rope::Rope;
use crate::kernels::rows::Rows;
use crate::kernels::swiglu::{add, add_scaled, scale};

/// The weights of one block, and their computation.
pub(super) struct Block {
    spec: BlockSpec,
    mixer: MixerWeights,
    mixer_norms: Norms,
    feed_forward: SecondHalf,
    feed_forward_norms: Norms,
    per_layer: Option<PerLayerInput>,
    update: Option<Update>,
    laurel: Option<Laurel>,
    /// The factor of the block's result.
    output_scale: Option<f32>,
}

/// The second half of a block.
enum SecondHalf {
    Dense(Box<FeedForward>),
    Experts(Box<Experts>),
}

/// The first half of a block, which combines positions.
enum MixerWeights {
    Attention(Attention),
    ShortConv(ShortConv),
    DeltaNet(Box<DeltaNet>),
    StateSpace(Box<StateSpace>),
}

/// The norms around a half of a block.
struct Norms {
    /// The norm of its input.
    before: Option<Norm>,
    /// The norm of its result, before it is added; of the sum with [`Residual::PostNorm`].
    behind: Option<Norm>,
}

impl Block {
    /// Block `index` of the model.
    ///
    /// # Errors
    /// As [`Dense::load`] and [`Norm::load`].
    pub(super) fn load(
        gguf: &Gguf,
        packed: Option<&PackedWeights>,
        index: usize,
        model: &ModelSpec,
    ) -> Result<Block, Error> {
        let (spec, width) = (&model.blocks[index], model.width);
        let name = |part: &str| format!("blk.{index}.{part}");
        let norm = |part: &str| Norm::load(gguf, &name(part), spec.norm, width);
        let norms = |before: &str, behind: &str, post: &str| {
            Ok(match spec.residual {
                Residual::PreNorm => Norms { before: Some(norm(before)?), behind: None },
                Residual::Sandwich => Norms { before: Some(norm(before)?), behind: Some(norm(behind)?) },
                Residual::NormedResult => Norms { before: None, behind: Some(norm(behind)?) },
                Residual::PostNorm => Norms { before: None, behind: Some(norm(post)?) },
            })
        };
        let feed_forward = match spec.feed_forward.experts {
            Some(experts) => {
                let norm = (spec.norm, width);
                let experts = Experts::load(gguf, packed, &name, spec.feed_forward, experts, norm)?;
                SecondHalf::Experts(Box::new(experts))
            }
            None => {
                SecondHalf::Dense(Box::new(FeedForward::load(gguf, packed, &name, spec.feed_forward, width)?))
            }
        };
        Ok(Block {
            spec: *spec,
            mixer_norms: match spec.bare_mixer {
                true => Norms { before: None, behind: None },
                false => norms("attn_norm", "post_attention_norm", "attn_output_norm")?,
            },
            mixer: match &spec.mixer {
                spec::Mixer::Attention => {
                    MixerWeights::Attention(Attention::load(gguf, packed, &name, spec, width)?)
                }
                spec::Mixer::ShortConv(conv) => {
                    MixerWeights::ShortConv(ShortConv::load(gguf, packed, &name, *conv)?)
                }
                spec::Mixer::DeltaNet(net) => {
                    let net = DeltaNet::load(gguf, packed, &name, *net, spec.norm, width)?;
                    MixerWeights::DeltaNet(Box::new(net))
                }
                spec::Mixer::StateSpace(space) => {
                    let space = StateSpace::load(gguf, packed, &name, *space, spec.norm, width)?;
                    MixerWeights::StateSpace(Box::new(space))
                }
            },
            feed_forward_norms: norms(spec.feed_forward_norm, "post_ffw_norm", "layer_output_norm")?,
            feed_forward,
            per_layer: model
                .per_layer
                .map(|length| PerLayerInput::load(gguf, packed, &name, index, spec.norm, [width, length]))
                .transpose()?,
            update: match model.streams {
                true => Some(Update::load(gguf, &name, spec.norm, width)?),
                false => None,
            },
            laurel: spec
                .laurel
                .map(|rank| Laurel::load(gguf, packed, &name, spec.norm, width, rank))
                .transpose()?,
            output_scale: match spec.output_scale {
                true => Some(vector(gguf, &name("layer_output_scale.weight"), 1)?[0]),
                false => None,
            },
        })
    }

    /// Whether rows see the rows behind them too.
    pub(super) fn sees_both_ways(&self) -> bool {
        self.spec.attention.span.both_ways()
    }

    /// Adds the block's result for the rows to `x`. Its keys, values and other kept values are stored in the
    /// states of the sequences, at `place`. Rows in which a value was not finite are noted in
    /// [`Workspace::finite`].
    pub(super) fn forward(
        &self,
        sequences: &[Rows<'_>],
        place: StatePlace,
        ropes: &[Rope],
        workspace: &mut Workspace,
        pool: &Pool,
    ) {
        let rows = sequences.iter().map(|sequence| sequence.rows).sum();
        // In `x` before the half, in `h` behind it.
        let norm = self.mixer_norms.before.as_ref();
        if let Some(update) = &self.update {
            update.predict(rows, workspace, pool);
        }
        if let (Some(laurel), Some(norm)) = (&self.laurel, norm) {
            laurel.make(norm, rows, workspace, pool);
        }
        match &self.mixer {
            MixerWeights::Attention(attention) => {
                attention.forward(norm, sequences, place.block, ropes, workspace, pool);
            }
            MixerWeights::ShortConv(conv) => conv.forward(norm, sequences, place, workspace, pool),
            MixerWeights::DeltaNet(net) => net.forward(norm, sequences, place, workspace, pool),
            MixerWeights::StateSpace(space) => space.forward(norm, sequences, place, workspace, pool),
        }
        match self.spec.residual {
            Residual::PostNorm => return self.forward_post_norm(rows, workspace, pool),
            Residual::PreNorm | Residual::Sandwich | Residual::NormedResult => {}
        }
        self.add(Some(self.mixer.output()), self.mixer_norms.behind.as_ref(), rows, workspace, pool);
        if self.laurel.is_some() {
            Laurel::add(rows, workspace, pool);
        }
        let (instructions, width) = (pool.instructions(), workspace.width);
        let before = self.feed_forward_norms.before.as_ref();
        let down = match &self.feed_forward {
            SecondHalf::Dense(feed_forward) => {
                let Workspace { x, h, finite, adapters, inner, quantized, .. } = &mut *workspace;
                let (x, h) = (&mut x[..rows * width], &mut h[..rows * width]);
                match before {
                    Some(norm) => {
                        let make = normalised(norm, x, width, finite, instructions);
                        feed_forward.expand(h, Some(&make), adapters, inner, quantized, pool);
                    }
                    None => feed_forward.expand(x, None, adapters, inner, quantized, pool),
                }
                feed_forward.contract(h, adapters, inner, quantized, pool);
                Some(&feed_forward.down)
            }
            SecondHalf::Experts(experts) => {
                experts.forward(before, rows, workspace, pool);
                None
            }
        };
        self.add(down, self.feed_forward_norms.behind.as_ref(), rows, workspace, pool);
        if let Some(update) = &self.update {
            update.correct(rows, workspace, pool);
        }
        if let Some(per_layer) = &self.per_layer {
            let first_scale = self.update.as_ref().map(|update| &update.scale[..]);
            per_layer.add(first_scale, rows, workspace, pool);
        }
        if let Some(output_scale) = self.output_scale {
            let x = &mut workspace.x[..rows * width];
            each_row(x, width, pool, &|_, x| scale(instructions, x, output_scale));
        }
    }

    /// The block whose state it stores to or uses: its own, `index`, unless it shares another's.
    pub(super) fn state_index(&self, index: usize) -> usize {
        self.spec.attention.shares.unwrap_or(index)
    }

    /// `x += scale · norm(h + bias)`: the end of a half, with the bias of the matrix that made `h`.
    fn add(
        &self,
        dense: Option<&Dense>,
        norm: Option<&Norm>,
        rows: usize,
        workspace: &mut Workspace,
        pool: &Pool,
    ) {
        let (instructions, width, factor) = (pool.instructions(), workspace.width, self.spec.residual_scale);
        let Workspace { x, h, finite, .. } = workspace;
        let (x, h, finite) = (&mut x[..rows * width], &mut h[..rows * width], &finite[..]);
        match norm {
            None => dense.into_iter().for_each(|dense| dense.add_bias_to(h, pool)),
            Some(norm) => each_row(h, width, pool, &|row, h| {
                if let Some(dense) = dense {
                    dense.add_bias(instructions, h);
                }
                if !norm.apply_in_place(instructions, h) {
                    finite[row].store(false, Ordering::Relaxed);
                }
            }),
        }
        let h = &*h;
        each_row(x, width, pool, &|row, x| {
            let h = &h[row * width..(row + 1) * width];
            if factor == 1.0 { add(instructions, x, h) } else { add_scaled(instructions, x, h, factor) }
        });
    }

    /// The rest of a block behind its mixer with [`Residual::PostNorm`]: `x = norm(x + h)`, then `x = norm(x
    /// + feed_forward(x))`.
    fn forward_post_norm(&self, rows: usize, workspace: &mut Workspace, pool: &Pool) {
        let (instructions, width) = (pool.instructions(), workspace.width);
        let end = |dense: Option<&Dense>,
                   norms: &Norms,
                   h: &[f32],
                   finite: &[AtomicBool],
                   row: usize,
                   x: &mut [f32]| {
            let Some(norm) = &norms.behind else { unreachable!("it was loaded") };
            add(instructions, x, &h[row * width..(row + 1) * width]);
            if let Some(dense) = dense {
                dense.add_bias(instructions, x);
            }
            if !norm.apply_in_place(instructions, x) {
                finite[row].store(false, Ordering::Relaxed);
            }
        };
        let of_mixer = |h: &[f32], finite: &[AtomicBool], row: usize, x: &mut [f32]| {
            end(Some(self.mixer.output()), &self.mixer_norms, h, finite, row, x);
        };
        let down = match &self.feed_forward {
            SecondHalf::Dense(feed_forward) => {
                let Workspace { x, h, finite, adapters, inner, quantized, .. } = &mut *workspace;
                let (x, h, finite) = (&mut x[..rows * width], &mut h[..rows * width], &finite[..]);
                {
                    let h = &*h;
                    let make = |row: usize, x: &mut [f32]| of_mixer(h, finite, row, x);
                    feed_forward.expand(x, Some(&make), adapters, inner, quantized, pool);
                }
                feed_forward.contract(h, adapters, inner, quantized, pool);
                Some(&feed_forward.down)
            }
            SecondHalf::Experts(experts) => {
                let Workspace { x, h, finite, .. } = &mut *workspace;
                let (h, finite) = (&h[..], &finite[..]);
                each_row(&mut x[..rows * width], width, pool, &|row, x| of_mixer(h, finite, row, x));
                experts.forward(None, rows, workspace, pool);
                None
            }
        };
        let Workspace { x, h, finite, .. } = workspace;
        let (h, finite) = (&h[..], &finite[..]);
        each_row(&mut x[..rows * width], width, pool, &|row, x| {
            end(down, &self.feed_forward_norms, h, finite, row, x);
        });
    }
}

impl MixerWeights {
    /// The last matrix of the mixer, whose bias is added at the end of the half.
    fn output(&self) -> &Dense {
        match self {
            MixerWeights::Attention(attention) => &attention.output,
            MixerWeights::ShortConv(conv) => &conv.output,
            MixerWeights::DeltaNet(net) => &net.output,
            MixerWeights::StateSpace(space) => &space.output,
        }
    }
}
