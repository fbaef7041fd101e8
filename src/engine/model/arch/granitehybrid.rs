//! Granite 4: state spaces in most layers, attention in the others, with or without experts.
//!
//! Reference:
//! [`modeling_granitemoehybrid.py`](https://github.com/huggingface/transformers/blob/main/src/transformers/models/granitemoehybrid/modeling_granitemoehybrid.py)
//! of transformers; [Dao and Gu 2024](https://arxiv.org/abs/2405.21060) for the state spaces.

use super::{ATTENTION, EXPERTS, Family, GATED, PRE_NORM, SHARED_EXPERT, decoder, granite, granitemoe};
use crate::Error;
use crate::kernels::rope::Pairs;
use crate::model::metadata::Metadata;
use crate::model::spec::{Mixer, ModelSpec, StateSpaceSpec};

pub(super) const FAMILY: Family = Family { name: "granitehybrid", spec };

const STATE_SPACE: &[&str] = &[
    "ssm_in.weight",
    "ssm_conv1d.weight",
    "ssm_conv1d.bias",
    "ssm_dt.bias",
    "ssm_a",
    "ssm_d",
    "ssm_norm.weight",
    "ssm_out.weight",
];

fn spec(metadata: &Metadata<'_>) -> Result<ModelSpec, Error> {
    let mut spec = if metadata.has_experts()? {
        let mut spec = granitemoe::shared(metadata)?;
        spec.tensors.block = &[PRE_NORM, ATTENTION, STATE_SPACE, EXPERTS, SHARED_EXPERT];
        spec
    } else {
        let mut spec = decoder(metadata, Pairs::Interleaved)?;
        spec.tensors.block = &[PRE_NORM, ATTENTION, STATE_SPACE, GATED];
        spec
    };
    let space = state_space(metadata)?;
    // A layer without key-value heads is a state space.
    let attends = metadata.opt_flags("attention.head_count_kv")?.unwrap_or_default();
    for (index, block) in spec.blocks.iter_mut().enumerate() {
        if attends.get(index).is_some_and(|attends| !attends) {
            block.mixer = Mixer::StateSpace(space);
        }
    }
    granite::multiplied(metadata, spec)
}

/// The sizes of the state spaces.
fn state_space(metadata: &Metadata<'_>) -> Result<StateSpaceSpec, Error> {
    let gguf = metadata.gguf;
    let (values, heads) = (metadata.size("ssm.inner_size")?, metadata.size("ssm.time_step_rank")?);
    let space = StateSpaceSpec {
        heads,
        dim: values / heads,
        groups: metadata.size("ssm.group_count")?,
        state: metadata.size("ssm.state_size")?,
        taps: metadata.taps("ssm.conv_kernel")?,
    };
    if space.width() != values || !heads.is_multiple_of(space.groups) {
        return Err(gguf.corrupt(format!(
            "{heads} heads in {} groups cannot make {values} values of a state space",
            space.groups
        )));
    }
    for (length, what) in [(space.dim, "heads"), (space.state, "states")] {
        if length > 1024 || !length.is_multiple_of(16) {
            return Err(gguf.unsupported(format!("the length of its state spaces' {what} is {length}")));
        }
    }
    Ok(space)
}
