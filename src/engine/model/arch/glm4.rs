//! GLM-4 of 2025: norms on both sides of the halves, and a rotation of neighbours in a part of each head.
//!
//! Reference:
//! [`modeling_glm4.py`](https://github.com/huggingface/transformers/blob/main/src/transformers/models/glm4/modeling_glm4.py)
//! of transformers; [GLM Team 2024](https://arxiv.org/abs/2406.12793).

use super::{ATTENTION, Family, GATED, PRE_NORM, RESULT_NORMS, decoder};
use crate::Error;
use crate::kernels::rope::Pairs;
use crate::model::metadata::Metadata;
use crate::model::spec::{ModelSpec, Residual};

pub(super) const FAMILY: Family = Family { name: "glm4", spec };

fn spec(metadata: &Metadata<'_>) -> Result<ModelSpec, Error> {
    if metadata.layers_or_0("nextn_predict_layers")? > 0 {
        return Err(metadata.gguf.unsupported("it has layers that predict several tokens"));
    }
    let mut spec = decoder(metadata, Pairs::Interleaved)?;
    spec.blocks.iter_mut().for_each(|block| block.residual = Residual::Sandwich);
    spec.tensors.block = &[PRE_NORM, RESULT_NORMS, ATTENTION, GATED];
    Ok(spec)
}
