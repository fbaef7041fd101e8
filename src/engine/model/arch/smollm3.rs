//! SmolLM3: Llama with positions rotated in by three layers of four only
//! ([Yang et al. 2025](https://arxiv.org/abs/2501.18795)).
//!
//! Reference:
//! [`modeling_smollm3.py`](https://github.com/huggingface/transformers/blob/main/src/transformers/models/smollm3/modeling_smollm3.py)
//! of transformers.

use super::{Family, decoder};
use crate::Error;
use crate::kernels::rope::Pairs;
use crate::model::metadata::Metadata;
use crate::model::spec::ModelSpec;

pub(super) const FAMILY: Family = Family { name: "smollm3", spec };

/// One layer in so many has no rotation. No key says so.
const PERIOD: usize = 4;

fn spec(metadata: &Metadata<'_>) -> Result<ModelSpec, Error> {
    let mut spec = decoder(metadata, Pairs::Interleaved)?;
    for block in spec.blocks.iter_mut().skip(PERIOD - 1).step_by(PERIOD) {
        block.attention.rope = None;
    }
    Ok(spec)
}
