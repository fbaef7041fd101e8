//! One block of a decoder, as tensors: attention and feed-forward, each with the norms around it, added to
//! the residual stream.

use candle_core::Tensor;

use super::Pass;
use super::attention::CandleAttention;
use super::feed_forward::{CandleFeedForward, activate};
use super::layers::{CandleMatrix, CandleNorm, WeightSource};
use super::recurrent::{CandleDeltaNet, CandleShortConv};
use super::state::CandleState;
use super::state_space::CandleStateSpace;
use crate::Error;
use crate::model::spec::{self, BlockSpec, FeedForwardKind, ModelSpec, NormSpec, Residual};

/// The weights of one block.
pub(super) struct CandleBlock {
    index: usize,
    residual_scale: f32,
    mixer: CandleMixer,
    mixer_norms: CandleNorms,
    feed_forward: CandleFeedForward,
    feed_forward_norms: CandleNorms,
    per_layer: Option<CandlePerLayerInput>,
    /// The factor of the result, `[1]`.
    output_scale: Option<Tensor>,
}

/// The first half of a block, which combines positions.
enum CandleMixer {
    Attention(Box<CandleAttention>),
    ShortConv(Box<CandleShortConv>),
    DeltaNet(Box<CandleDeltaNet>),
    StateSpace(Box<CandleStateSpace>),
}

/// The norms around a half of a block.
struct CandleNorms {
    before: Option<CandleNorm>,
    behind: Option<CandleNorm>,
}

impl CandleBlock {
    /// Block `index` of the file.
    ///
    /// # Errors
    /// Errors of loading tensors.
    pub(super) fn load(
        source: WeightSource<'_>,
        spec: &ModelSpec,
        index: usize,
    ) -> Result<CandleBlock, Error> {
        let (block, width) = (&spec.blocks[index], spec.width);
        let name = |part: &str| format!("blk.{index}.{part}");
        let norm = |part: &str| CandleNorm::load(source, &name(part), block.norm, width);
        let norms = |before: &str, behind: &str| {
            let [has_before, has_behind] = match block.residual {
                Residual::PreNorm => [true, false],
                Residual::Sandwich => [true, true],
                Residual::NormedResult => [false, true],
                Residual::PostNorm => return Err(source.gguf.unsupported("its sums are normalised")),
            };
            Ok(CandleNorms {
                before: has_before.then(|| norm(before)).transpose()?,
                behind: has_behind.then(|| norm(behind)).transpose()?,
            })
        };
        let per_layer = spec.per_layer;
        Ok(CandleBlock {
            index,
            residual_scale: block.residual_scale,
            mixer: CandleMixer::load(source, &name, block, width)?,
            mixer_norms: match block.bare_mixer {
                true => CandleNorms { before: None, behind: None },
                false => norms("attn_norm", "post_attention_norm")?,
            },
            feed_forward: CandleFeedForward::load(source, &name, block.feed_forward, width)?,
            feed_forward_norms: norms(block.feed_forward_norm, "post_ffw_norm")?,
            per_layer: per_layer
                .map(|length| CandlePerLayerInput::load(source, &name, index, block.norm, [width, length]))
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
            CandleMixer::Attention(attention) => attention.forward(x, self.index, pass, state),
            CandleMixer::ShortConv(conv) => conv.forward(x, self.index, pass, state),
            CandleMixer::DeltaNet(net) => net.forward(x, self.index, pass, state),
            CandleMixer::StateSpace(space) => space.forward(x, self.index, pass, state),
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
        norms: &CandleNorms,
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

impl CandleMixer {
    fn load(
        source: WeightSource<'_>,
        name: &dyn Fn(&str) -> String,
        block: &BlockSpec,
        width: usize,
    ) -> Result<CandleMixer, Error> {
        Ok(match block.mixer {
            spec::Mixer::Attention => {
                CandleMixer::Attention(Box::new(CandleAttention::load(source, name, block.attention, width)?))
            }
            spec::Mixer::ShortConv(conv) => {
                CandleMixer::ShortConv(Box::new(CandleShortConv::load(source, name, conv)?))
            }
            spec::Mixer::DeltaNet(net) => {
                CandleMixer::DeltaNet(Box::new(CandleDeltaNet::load(source, name, net, block.norm, width)?))
            }
            spec::Mixer::StateSpace(space) => CandleMixer::StateSpace(Box::new(CandleStateSpace::load(
                source, name, space, block.norm, width,
            )?)),
        })
    }
}

/// The weights that make the embeddings of tokens which each block gets for itself.
pub(super) struct CandlePerLayerEmbedding {
    /// The embeddings of a token for all blocks: `[vocabulary, blocks · length]`.
    tokens: CandleMatrix,
    /// The projection of the embedding of the model: `[blocks · length, width]`.
    projection: CandleMatrix,
    norm: CandleNorm,
    blocks: usize,
    length: usize,
    width: usize,
}

impl CandlePerLayerEmbedding {
    /// The embeddings of each layer that the file has, if its family has any.
    ///
    /// # Errors
    /// As [`CandleMatrix::load`].
    pub(super) fn load(
        source: WeightSource<'_>,
        spec: &ModelSpec,
        norm: NormSpec,
        vocabulary: usize,
    ) -> Result<Option<CandlePerLayerEmbedding>, Error> {
        let Some(length) = spec.per_layer else { return Ok(None) };
        let (blocks, width) = (spec.blocks.len(), spec.width);
        let all = blocks * length;
        Ok(Some(CandlePerLayerEmbedding {
            tokens: CandleMatrix::load(source, "per_layer_token_embd.weight", all, vocabulary)?,
            projection: CandleMatrix::load(source, "per_layer_model_proj.weight", width, all)?,
            norm: CandleNorm::load(source, "per_layer_proj_norm", norm, length)?,
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
struct CandlePerLayerInput {
    index: usize,
    gate: CandleMatrix,
    projection: CandleMatrix,
    norm: CandleNorm,
}

impl CandlePerLayerInput {
    fn load(
        source: WeightSource<'_>,
        name: &dyn Fn(&str) -> String,
        index: usize,
        norm: NormSpec,
        [width, length]: [usize; 2],
    ) -> Result<CandlePerLayerInput, Error> {
        Ok(CandlePerLayerInput {
            index,
            gate: CandleMatrix::load(source, &name("inp_gate.weight"), width, length)?,
            projection: CandleMatrix::load(source, &name("proj.weight"), length, width)?,
            norm: CandleNorm::load(source, &name("post_norm"), norm, width)?,
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
