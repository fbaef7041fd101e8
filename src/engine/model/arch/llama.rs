//! Llama, and Mistral, Mixtral, SmolLM and others with its layout.
//!
//! Reference:
//! [`modeling_llama.py`](https://github.com/huggingface/transformers/blob/main/src/transformers/models/llama/modeling_llama.py)
//! and
//! [`modeling_mistral.py`](https://github.com/huggingface/transformers/blob/main/src/transformers/models/mistral/modeling_mistral.py)
//! of transformers; [Touvron et al. 2023](https://arxiv.org/abs/2302.13971), [Jiang et al.
//! 2024](https://arxiv.org/abs/2401.04088). GGUF files of this architecture have the rows of queries and keys
//! in an order in which neighbours rotate together.

use super::{Family, decoder, mixture};
use crate::Error;
use crate::kernels::rope::Pairs;
use crate::kernels::routing::Weighting;
use crate::model::metadata::Metadata;
use crate::model::spec::{ModelSpec, Span};

pub(super) const FAMILY: Family = Family { name: "llama", spec };

fn spec(metadata: &Metadata<'_>) -> Result<ModelSpec, Error> {
    let mut spec = match metadata.has_experts()? {
        true => mixture(metadata, Pairs::Interleaved, Weighting::SoftmaxOfUsed)?,
        false => decoder(metadata, Pairs::Interleaved)?,
    };
    let window = metadata.window()?;
    for block in &mut spec.blocks {
        // The first Mistral models have a window, in all of their layers.
        block.attention.span = window.map_or(Span::Causal, Span::Window);
        block.attention.scale = metadata.opt_positive("attention.scale")?.unwrap_or(block.attention.scale);
    }
    Ok(spec)
}
