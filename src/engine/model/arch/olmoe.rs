//! OLMoE: Llama with norms over all queries and all keys, and a mixture of experts whose weights do not add
//! up to 1.
//!
//! Reference:
//! [`modeling_olmoe.py`](https://github.com/huggingface/transformers/blob/main/src/transformers/models/olmoe/modeling_olmoe.py)
//! of transformers; [Muennighoff et al. 2024](https://arxiv.org/abs/2409.02060).

use super::{ATTENTION, EXPERTS, Family, PRE_NORM, QUERY_KEY_NORMS, mixture};
use crate::Error;
use crate::kernels::rope::Pairs;
use crate::kernels::routing::Weighting;
use crate::model::metadata::Metadata;
use crate::model::spec::{ModelSpec, QueryKeyNorm};

pub(super) const FAMILY: Family = Family { name: "olmoe", spec };

fn spec(metadata: &Metadata<'_>) -> Result<ModelSpec, Error> {
    if metadata.opt_positive("attention.clamp_kqv")?.is_some() {
        return Err(metadata.gguf.unsupported("its queries, keys and values are clamped"));
    }
    let mut spec = mixture(metadata, Pairs::Halves, Weighting::Softmax)?;
    for block in &mut spec.blocks {
        block.attention.query_key_norm = Some(QueryKeyNorm::Row(block.norm));
    }
    spec.tensors.block = &[PRE_NORM, ATTENTION, QUERY_KEY_NORMS, EXPERTS];
    Ok(spec)
}
