//! Phi-3, Phi-3.5 and Phi-4: Llama whose matrices are kept together, with a rotation stretched pair by pair,
//! and in Phi-4-mini of a part of each head.
//!
//! Reference:
//! [`modeling_phi3.py`](https://github.com/huggingface/transformers/blob/main/src/transformers/models/phi3/modeling_phi3.py)
//! of transformers; [Abdin et al. 2024](https://arxiv.org/abs/2404.14219).

use super::{Family, decoder};
use crate::Error;
use crate::kernels::rope::Pairs;
use crate::model::metadata::Metadata;
use crate::model::spec::{ModelSpec, Span};

pub(super) const FAMILY: Family = Family { name: "phi3", spec };

fn spec(metadata: &Metadata<'_>) -> Result<ModelSpec, Error> {
    let mut spec = decoder(metadata, Pairs::Halves)?;
    if let Some(window) = metadata.window()? {
        spec.blocks.iter_mut().for_each(|block| block.attention.span = Span::Window(window));
    }
    Ok(spec)
}
