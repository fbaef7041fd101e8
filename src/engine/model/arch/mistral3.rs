//! Mistral Small 3.1 and later, and Ministral 3: Llama whose queries grow with their position.
//!
//! Reference:
//! [`modeling_ministral3.py`](https://github.com/huggingface/transformers/blob/main/src/transformers/models/ministral3/modeling_ministral3.py)
//! of transformers; [Ministral 3, 2026](https://arxiv.org/abs/2601.08584).

use super::{Family, decoder};
use crate::Error;
use crate::kernels::rope::Pairs;
use crate::model::metadata::Metadata;
use crate::model::spec::{ModelSpec, Temperature};

pub(super) const FAMILY: Family = Family { name: "mistral3", spec };

fn spec(metadata: &Metadata<'_>) -> Result<ModelSpec, Error> {
    let mut spec = decoder(metadata, Pairs::Interleaved)?;
    if let Some(scale) = metadata.opt_positive("attention.temperature_scale")? {
        let temperature = Temperature { scale, interval: metadata.original_context_length()? };
        spec.blocks.iter_mut().for_each(|block| block.attention.temperature = Some(temperature));
    }
    Ok(spec)
}
