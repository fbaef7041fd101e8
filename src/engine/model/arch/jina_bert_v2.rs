//! Jina's BERT without positions (jina-embeddings-v2): scores of attention fall with the distance, and
//! feed-forward is gated.
//!
//! Reference:
//! [`modeling_bert.py`](https://huggingface.co/jinaai/jina-bert-implementation/blob/main/modeling_bert.py);
//! [Günther et al. 2023](https://arxiv.org/abs/2310.19923). The model for code normalises queries and keys,
//! and a sum more than the others; its tensors have no place here.

use super::bert::{self, ATTENTION_TENSORS};
use super::{Family, GATED};
use crate::Error;
use crate::model::metadata::Metadata;
use crate::model::spec::{Alibi, FeedForwardKind, ModelSpec, TensorNames};

pub(super) const FAMILY: Family = Family { name: "jina-bert-v2", spec };

/// The bias that the models were trained with, and the default of llama.cpp, whose converter does not write
/// it.
const MAX_BIAS: f32 = 8.0;

const MODEL_TENSORS: &[&str] =
    &["token_embd.weight", "token_types.weight", "token_embd_norm.weight", "token_embd_norm.bias"];

fn spec(metadata: &Metadata<'_>) -> Result<ModelSpec, Error> {
    metadata.refuse_experts()?;
    let mut spec = bert::encoder(metadata)?;
    let max_bias = metadata.opt_positive("attention.max_alibi_bias")?.unwrap_or(MAX_BIAS);
    for block in &mut spec.blocks {
        block.attention.alibi = Some(Alibi { max_bias });
        block.feed_forward.kind = FeedForwardKind::GeGlu;
    }
    spec.tensors =
        TensorNames { model: MODEL_TENSORS, block: &[ATTENTION_TENSORS, GATED, &["ffn_down.bias"]] };
    Ok(spec)
}
