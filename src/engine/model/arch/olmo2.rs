//! OLMo 2 and OLMo 3: results of halves are normalised instead of their inputs, and queries and keys over all
//! heads together; OLMo 3 with windows in three layers of four, whose rotation is not stretched.
//!
//! Reference:
//! [`modeling_olmo2.py`](https://github.com/huggingface/transformers/blob/main/src/transformers/models/olmo2/modeling_olmo2.py)
//! and
//! [`modeling_olmo3.py`](https://github.com/huggingface/transformers/blob/main/src/transformers/models/olmo3/modeling_olmo3.py)
//! of transformers; [OLMo et al. 2024](https://arxiv.org/abs/2501.00656).

use super::{ATTENTION, Family, GATED, QUERY_KEY_NORMS, RESULT_NORMS, decoder};
use crate::Error;
use crate::kernels::rope::Pairs;
use crate::model::metadata::Metadata;
use crate::model::spec::{ModelSpec, QueryKeyNorm, Residual, Span};

pub(super) const FAMILY: Family = Family { name: "olmo2", spec };

fn spec(metadata: &Metadata<'_>) -> Result<ModelSpec, Error> {
    let mut spec = decoder(metadata, Pairs::Halves)?;
    for block in &mut spec.blocks {
        block.residual = Residual::NormedResult;
        block.attention.query_key_norm = Some(QueryKeyNorm::Row(block.norm));
    }
    if let Some(window) = metadata.window()? {
        let heads = metadata.heads(spec.width)?;
        let base = match metadata.opt_positive("rope.freq_base_swa")? {
            Some(base) => base,
            None => metadata.rope_base()?,
        };
        spec.ropes.push(metadata.plain_rope(Pairs::Halves, heads.dim, base)?);
        let windowed = metadata.windowed(spec.blocks.len(), 4)?;
        for (block, _) in spec.blocks.iter_mut().zip(windowed).filter(|(_, windowed)| *windowed) {
            block.attention.span = Span::Window(window);
            block.attention.rope = Some(1);
        }
    }
    spec.tensors.block = &[RESULT_NORMS, ATTENTION, QUERY_KEY_NORMS, GATED];
    Ok(spec)
}
