//! Qwen 2 and 2.5: Llama with biases of queries, keys and values.
//!
//! Reference:
//! [`modeling_qwen2.py`](https://github.com/huggingface/transformers/blob/main/src/transformers/models/qwen2/modeling_qwen2.py)
//! of transformers; [Yang et al. 2024](https://arxiv.org/abs/2407.10671).

use super::{Family, decoder};
use crate::Error;
use crate::kernels::rope::Pairs;
use crate::model::metadata::Metadata;
use crate::model::spec::ModelSpec;

pub(super) const FAMILY: Family = Family { name: "qwen2", spec };

fn spec(metadata: &Metadata<'_>) -> Result<ModelSpec, Error> {
    let mut spec = decoder(metadata, Pairs::Halves)?;
    // Within one window, a sliding window and full attention are the same.
    spec.context_length = spec.context_length.min(metadata.window()?.unwrap_or(usize::MAX));
    Ok(spec)
}
