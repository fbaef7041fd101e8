//! Qwen 3: Llama with norms of each query and key head.
//!
//! Reference: [`modeling_qwen3.py`](https://github.com/huggingface/transformers/blob/main/src/transformers/models/qwen3/modeling_qwen3.py)
//! of transformers; [Yang et al. 2025](https://arxiv.org/abs/2505.09388).

use super::{ATTENTION, DECODER_TENSORS, Family, GATED, HEAD_NORMS, PRE_NORM};
use crate::Error;
use crate::kernels::rope::Pairs;
use crate::model::metadata::Metadata;
use crate::model::spec::{
    AttentionSpec, BlockSpec, FeedForwardKind, FeedForwardSpec, Kind, NormKind, NormSpec, Pooling, Residual,
    Spec, TensorNames,
};

pub(super) const FAMILY: Family = Family { name: "qwen3", spec };

fn spec(metadata: &Metadata<'_>) -> Result<Spec, Error> {
    metadata.refuse_experts()?;
    let width = metadata.size("embedding_length")?;
    let heads = metadata.heads(width)?;
    let context_length = metadata.context_length_of_window()?;
    let norm =
        NormSpec { kind: NormKind::Rms, epsilon: metadata.epsilon("attention.layer_norm_rms_epsilon")? };
    let blocks = metadata.block_count()?;
    let block = BlockSpec {
        residual: Residual::PreNorm,
        norm,
        attention: AttentionSpec { rope: Some(0), head_norm: Some(norm), ..AttentionSpec::plain(heads) },
        feed_forward: FeedForwardSpec {
            kind: FeedForwardKind::SwiGlu,
            width: metadata.size("feed_forward_length")?,
        },
    };
    Ok(Spec {
        kind: Kind::Decoder { output_norm: norm },
        width,
        context_length,
        pooling: metadata.pooling(Pooling::Last, Pooling::Last)?,
        ropes: vec![metadata.rope(Pairs::Halves, heads.dim)?],
        blocks: vec![block; blocks],
        tensors: TensorNames { model: DECODER_TENSORS, block: &[PRE_NORM, ATTENTION, HEAD_NORMS, GATED] },
    })
}
