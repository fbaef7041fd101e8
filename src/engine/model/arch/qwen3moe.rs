//! The mixtures of experts of Qwen 3, such as Qwen3-30B-A3B.
//!
//! Reference:
//! [`modeling_qwen3_moe.py`](https://github.com/huggingface/transformers/blob/main/src/transformers/models/qwen3_moe/modeling_qwen3_moe.py)
//! of transformers; [Yang et al. 2025](https://arxiv.org/abs/2505.09388).

use super::{ATTENTION, EXPERTS, Family, PRE_NORM, QUERY_KEY_NORMS, mixture};
use crate::Error;
use crate::kernels::rope::Pairs;
use crate::kernels::routing::Weighting;
use crate::model::metadata::Metadata;
use crate::model::spec::{ModelSpec, QueryKeyNorm};

pub(super) const FAMILY: Family = Family { name: "qwen3moe", spec };

fn spec(metadata: &Metadata<'_>) -> Result<ModelSpec, Error> {
    let mut spec = mixture(metadata, Pairs::Halves, Weighting::SoftmaxOfUsed)?;
    for block in &mut spec.blocks {
        block.attention.query_key_norm = Some(QueryKeyNorm::Head(block.norm));
    }
    spec.tensors.block = &[PRE_NORM, ATTENTION, QUERY_KEY_NORMS, EXPERTS];
    Ok(spec)
}
