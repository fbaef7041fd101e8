//! The mixtures of experts of Qwen 3.5: layers as in Qwen 3.5, with experts beside a gated one that all rows
//! use.
//!
//! Reference:
//! [`modeling_qwen3_5_moe.py`](https://github.com/huggingface/transformers/blob/main/src/transformers/models/qwen3_5_moe/modeling_qwen3_5_moe.py)
//! of transformers; [a model's page](https://huggingface.co/Qwen/Qwen3.5-35B-A3B).

use super::qwen35::{AHEAD, DELTA_NET, NORMS, hybrid};
use super::{ATTENTION, EXPERTS, FUSED_EXPERTS, Family, QUERY_KEY_NORMS, SHARED_EXPERT, mixture};
use crate::Error;
use crate::kernels::rope::Pairs;
use crate::kernels::routing::Weighting;
use crate::model::metadata::Metadata;
use crate::model::spec::{ModelSpec, SharedExpert, SharedWeighting};

pub(super) const FAMILY: Family = Family { name: "qwen35moe", spec };

/// The weights of the shared expert's gate.
const GATE: &[&str] = &["ffn_gate_inp_shexp.weight"];

fn spec(metadata: &Metadata<'_>) -> Result<ModelSpec, Error> {
    let mut spec = hybrid(metadata, mixture(metadata, Pairs::Halves, Weighting::SoftmaxOfUsed)?)?;
    let width = match metadata.opt_size("expert_shared_feed_forward_length")? {
        Some(width) => width,
        None => metadata.size("feed_forward_length")?,
    };
    let experts = spec.blocks.iter_mut().filter_map(|block| block.feed_forward.experts.as_mut());
    experts.for_each(|experts| {
        experts.shared = Some(SharedExpert { width, weighting: SharedWeighting::Gate });
    });
    spec.tensors.block =
        &[NORMS, ATTENTION, QUERY_KEY_NORMS, DELTA_NET, EXPERTS, FUSED_EXPERTS, SHARED_EXPERT, GATE, AHEAD];
    Ok(spec)
}
