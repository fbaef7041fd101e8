//! The mixtures of experts of Granite 3 and 4, with or without an expert that all rows use.
//!
//! Reference:
//! [`modeling_granitemoeshared.py`](https://github.com/huggingface/transformers/blob/main/src/transformers/models/granitemoeshared/modeling_granitemoeshared.py)
//! of transformers; [Shen et al. 2024](https://arxiv.org/abs/2408.13359).

use super::{ATTENTION, EXPERTS, Family, PRE_NORM, SHARED_EXPERT, granite, mixture};
use crate::Error;
use crate::kernels::rope::Pairs;
use crate::kernels::routing::Weighting;
use crate::model::metadata::Metadata;
use crate::model::spec::{ModelSpec, SharedExpert, SharedWeighting};

pub(super) const FAMILY: Family = Family { name: "granitemoe", spec };

fn spec(metadata: &Metadata<'_>) -> Result<ModelSpec, Error> {
    granite::multiplied(metadata, shared(metadata)?)
}

/// A mixture with the expert that all rows use, where the file has one.
///
/// # Errors
/// As [`Family::spec`].
pub(super) fn shared(metadata: &Metadata<'_>) -> Result<ModelSpec, Error> {
    let mut spec = mixture(metadata, Pairs::Interleaved, Weighting::SoftmaxOfUsed)?;
    if let Some(shared) = metadata.opt_size("expert_shared_feed_forward_length")? {
        let experts = spec.blocks.iter_mut().filter_map(|block| block.feed_forward.experts.as_mut());
        experts.for_each(|experts| {
            experts.shared = Some(SharedExpert { width: shared, weighting: SharedWeighting::Sum })
        });
        spec.tensors.block = &[PRE_NORM, ATTENTION, EXPERTS, SHARED_EXPERT];
    }
    Ok(spec)
}
