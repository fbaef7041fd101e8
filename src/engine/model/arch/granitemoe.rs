//! The mixtures of experts of Granite 3 and 4, with or without an expert that all rows use.
//!
//! Reference: [`modeling_granitemoeshared.py`](https://github.com/huggingface/transformers/blob/main/src/transformers/models/granitemoeshared/modeling_granitemoeshared.py)
//! of transformers.

use super::{ATTENTION, EXPERTS, Family, PRE_NORM, granite, mixture};
use crate::Error;
use crate::kernels::rope::Pairs;
use crate::kernels::routing::Weighting;
use crate::model::metadata::Metadata;
use crate::model::spec::Spec;

pub(super) const FAMILY: Family = Family { name: "granitemoe", spec };

/// Tensors of the expert that all rows use.
const SHARED: &[&str] = &["ffn_gate_shexp.weight", "ffn_up_shexp.weight", "ffn_down_shexp.weight"];

fn spec(metadata: &Metadata<'_>) -> Result<Spec, Error> {
    let mut spec = mixture(metadata, Pairs::Neighbours, Weighting::SoftmaxOfUsed)?;
    if let Some(shared) = metadata.opt_size("expert_shared_feed_forward_length")? {
        let experts = spec.blocks.iter_mut().filter_map(|block| block.feed_forward.experts.as_mut());
        experts.for_each(|experts| experts.shared = Some(shared));
        spec.tensors.block = &[PRE_NORM, ATTENTION, EXPERTS, SHARED];
    }
    granite::multiplied(metadata, spec)
}
