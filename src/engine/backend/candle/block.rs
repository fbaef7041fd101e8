//! One block of a decoder, as tensors: attention and feed-forward, each with the norms around it, added to
//! the residual stream.

use candle_core::Tensor;

use super::Pass;
use super::attention::Attention;
use super::feed_forward::{FeedForward, activate};
use super::layers::{Matrix, Norm, Source};
use super::recurrent::{DeltaNet, ShortConv};
use super::state::CandleState;
use super::state_space::StateSpace;
use crate::Error;
use crate::model::spec::{self, BlockSpec, FeedForwardKind, ModelSpec, NormSpec, Residual};

/// The weights of one block.
pub(super) struct Block {
    index: usize,
    residual_scale: f32,
    mixer: Mixer,
    mixer_norms: Norms,
    feed_forward: FeedForward,
    feed_forward_norms: Norms,
    per_layer: Option<PerLayerInput>,
    /// The factor of the result, `[1]`.
    output_scale: Option<Tensor>,
}

/// The first half of a block, which combines positions.
enum Mixer {
    Attention(Box<Attention>),
    ShortConv(Box<ShortConv>),
    DeltaNet(Box<DeltaNet>),
    StateSpace(Box<StateSpace>),
}

/// The norms around a half of a block.
struct Norms {
    before: Option<Norm>,
    behind: Option<Norm>,
}

impl Block {
    /// Block `index` of the file.
    ///
    /// # Errors
    /// Errors of loading tensors.
    pub(super) fn load(source: Source<'_>, spec: &ModelSpec, index: usize) -> Result<Block, Error> {
        let (block, width) = (&spec.blocks[index], spec.width);
        let name = |part: &str| format!("blk.{index}.{part}");
        let norm = |part: &str| Norm::load(source, &name(part), block.norm, width);
        let norms = |before: &str, behind: &str| {
            let [has_before, has_behind] = match block.residual {
                Residual::PreNorm => [true, false],
                Residual::Sandwich => [true, true],
                Residual::NormedResult => [false, true],
                Residual::PostNorm => return Err(source.gguf.unsupported("its sums are normalised")),
            };
            Ok(Norms {
                before: has_before.then(|| norm(before)).transpose()?,
                behind: has_behind.then(|| norm(behind)).transpose()?,
            })
        };
        let per_layer = spec.per_layer;
        Ok(Block {
            index,
            residual_scale: block.residual_scale,
            mixer: Mixer::load(source, &name, block, width)?,
            mixer_norms: match block.bare_mixer {
                true => Norms { before: None, behind: None },
                false => norms("attn_norm", "post_attention_norm")?,
            },
            feed_forward: FeedForward::load(source, &name, block.feed_forward, width)?,
            feed_forward_norms: norms(block.feed_forward_norm, "post_ffw_norm")?,
            per_layer: per_layer
                .map(|length| PerLayerInput::load(source, &name, index, block.norm, [width, length]))
                .transpose()?,
            output_scale: match block.output_scale {
                true => Some(source.vector(&name("layer_output_scale.weight"), 1)?),
                false => None,
            },
        })
    }

    /// The residual stream `[rows, width]` behind the block. Keys and values are stored in the state.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        pass: &Pass<'_>,
        state: &mut CandleState,
    ) -> candle_core::Result<Tensor> {
        let x = self.half(x, &self.mixer_norms, |x| match &self.mixer {
            Mixer::Attention(attention) => attention.forward(x, self.index, pass, state),
            Mixer::ShortConv(conv) => conv.forward(x, self.index, pass, state),
            Mixer::DeltaNet(net) => net.forward(x, self.index, pass, state),
            Mixer::StateSpace(space) => space.forward(x, self.index, pass, state),
        })?;
        let x = self.half(&x, &self.feed_forward_norms, |x| self.feed_forward.forward(x, pass.pool))?;
        let x = match &self.per_layer {
            Some(per_layer) => per_layer.add(&x, pass)?,
            None => x,
        };
        match &self.output_scale {
            Some(scale) => x.broadcast_mul(scale),
            None => Ok(x),
        }
    }

    /// `x + scale · norm(f(norm(x)))`.
    fn half(
        &self,
        x: &Tensor,
        norms: &Norms,
        f: impl FnOnce(&Tensor) -> candle_core::Result<Tensor>,
    ) -> candle_core::Result<Tensor> {
        let y = match &norms.before {
            Some(norm) => f(&norm.forward(x)?)?,
            None => f(x)?,
        };
        let y = match &norms.behind {
            Some(norm) => norm.forward(&y)?,
            None => y,
        };
        x + (y * f64::from(self.residual_scale))?
    }
}

impl Mixer {
    fn load(
        source: Source<'_>,
        name: &dyn Fn(&str) -> String,
        block: &BlockSpec,
        width: usize,
    ) -> Result<Mixer, Error> {
        Ok(match block.mixer {
            spec::Mixer::Attention => {
                Mixer::Attention(Box::new(Attention::load(source, name, block.attention, width)?))
            }
            spec::Mixer::ShortConv(conv) => Mixer::ShortConv(Box::new(ShortConv::load(source, name, conv)?)),
            spec::Mixer::DeltaNet(net) => {
                Mixer::DeltaNet(Box::new(DeltaNet::load(source, name, net, block.norm, width)?))
            }
            spec::Mixer::StateSpace(space) => {
                Mixer::StateSpace(Box::new(StateSpace::load(source, name, space, block.norm, width)?))
            }
        })
    }
}

/// The weights that make the embeddings of tokens which each block gets for itself.
pub(super) struct PerLayerEmbedding {
    /// The embeddings of a token for all blocks: `[vocabulary, blocks · length]`.
    tokens: Matrix,
    /// The projection of the embedding of the model: `[blocks · length, width]`.
    projection: Matrix,
    norm: Norm,
    blocks: usize,
    length: usize,
    width: usize,
}

impl PerLayerEmbedding {
    /// The embeddings of each layer that the file has, if its family has any.
    ///
    /// # Errors
    /// As [`Matrix::load`].
    pub(super) fn load(
        source: Source<'_>,
        spec: &ModelSpec,
        norm: NormSpec,
        vocabulary: usize,
    ) -> Result<Option<PerLayerEmbedding>, Error> {
        let Some(length) = spec.per_layer else { return Ok(None) };
        let (blocks, width) = (spec.blocks.len(), spec.width);
        let all = blocks * length;
        Ok(Some(PerLayerEmbedding {
            tokens: Matrix::load(source, "per_layer_token_embd.weight", all, vocabulary)?,
            projection: Matrix::load(source, "per_layer_model_proj.weight", width, all)?,
            norm: Norm::load(source, "per_layer_proj_norm", norm, length)?,
            blocks,
            length,
            width,
        }))
    }

    /// The embeddings of tokens, whose embeddings for the model are `x` `[rows, width]`, for each block:
    /// `[rows, blocks, length]`.
    pub(super) fn forward(&self, tokens: &[u32], x: &Tensor, pass: &Pass<'_>) -> candle_core::Result<Tensor> {
        let shape = (tokens.len(), self.blocks, self.length);
        let root = |size: usize| (size as f64).sqrt();
        let projected = (self.projection.forward(x, pass.pool)? * (1.0 / root(self.width)))?;
        let projected = self.norm.forward(&projected.reshape(shape)?)?;
        let mut own = vec![0.0; tokens.len() * self.blocks * self.length];
        for (token, own) in tokens.iter().zip(own.chunks_exact_mut(self.blocks * self.length)) {
            self.tokens.row(*token as usize, own);
        }
        let own = (Tensor::from_vec(own, shape, x.device())? * root(self.length))?;
        (projected + own)? * std::f64::consts::FRAC_1_SQRT_2
    }
}

/// The weights with which a block mixes in its embedding of each token.
struct PerLayerInput {
    index: usize,
    gate: Matrix,
    projection: Matrix,
    norm: Norm,
}

impl PerLayerInput {
    fn load(
        source: Source<'_>,
        name: &dyn Fn(&str) -> String,
        index: usize,
        norm: NormSpec,
        [width, length]: [usize; 2],
    ) -> Result<PerLayerInput, Error> {
        Ok(PerLayerInput {
            index,
            gate: Matrix::load(source, &name("inp_gate.weight"), width, length)?,
            projection: Matrix::load(source, &name("proj.weight"), length, width)?,
            norm: Norm::load(source, &name("post_norm"), norm, width)?,
        })
    }

    /// `x + norm(projection(gelu(gate(x)) · embedding))`.
    fn add(&self, x: &Tensor, pass: &Pass<'_>) -> candle_core::Result<Tensor> {
        let Some(per_layer) = &pass.per_layer else {
            candle_core::bail!("there are no embeddings of blocks")
        };
        let own = per_layer.narrow(1, self.index, 1)?.squeeze(1)?.contiguous()?;
        let gate = self.gate.forward(x, pass.pool)?;
        let inner = activate(FeedForwardKind::TanhGeGlu, &gate, &own)?;
        x + self.norm.forward(&self.projection.forward(&inner, pass.pool)?)?
    }
}
