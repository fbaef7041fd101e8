//! Qwen 3: Llama with norms of each query and key head.
//!
//! Reference:
//! [`modeling_qwen3.py`](https://github.com/huggingface/transformers/blob/main/src/transformers/models/qwen3/modeling_qwen3.py)
//! of transformers; [Yang et al. 2025](https://arxiv.org/abs/2505.09388).

use super::{ATTENTION, Family, GATED, PRE_NORM, QUERY_KEY_NORMS, decoder};
use crate::Error;
use crate::kernels::rope::Pairs;
use crate::model::metadata::Metadata;
use crate::model::spec::{ModelSpec, QueryKeyNorm};

pub(super) const FAMILY: Family = Family { name: "qwen3", spec };

fn spec(metadata: &Metadata<'_>) -> Result<ModelSpec, Error> {
    let mut spec = decoder(metadata, Pairs::Halves)?;
    // Within one window, a sliding window and full attention are the same.
    spec.context_length = spec.context_length.min(metadata.window()?.unwrap_or(usize::MAX));
    for block in &mut spec.blocks {
        block.attention.query_key_norm = Some(QueryKeyNorm::Head(block.norm));
    }
    spec.tensors.block = &[PRE_NORM, ATTENTION, QUERY_KEY_NORMS, GATED];
    Ok(spec)
}
