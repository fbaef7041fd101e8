//! Qwen 3.5: gated delta nets in three layers of four, gated attention in the fourth.
//!
//! Only the text is computed. Layers that predict tokens further ahead, which are the last ones of a file,
//! are left out: they change no result.
//!
//! Reference:
//! [`modeling_qwen3_5.py`](https://github.com/huggingface/transformers/blob/main/src/transformers/models/qwen3_5/modeling_qwen3_5.py)
//! of transformers; [Yang et al. 2024](https://arxiv.org/abs/2412.06464) for the delta net.

use super::{ATTENTION, Family, GATED, QUERY_KEY_NORMS, decoder};
use crate::Error;
use crate::kernels::rope::Pairs;
use crate::model::metadata::Metadata;
use crate::model::spec::{DeltaNetSpec, Mixer, ModelSpec, QueryKeyNorm};

pub(super) const FAMILY: Family = Family { name: "qwen35", spec };

/// One layer in so many is attention, where the file does not say which.
const INTERVAL: usize = 4;

/// The norm before feed-forward has the name of one behind attention.
pub(super) const NORMS: &[&str] = &["attn_norm.weight", "post_attention_norm.weight"];

pub(super) const DELTA_NET: &[&str] = &[
    "attn_gate.weight",
    "ssm_conv1d.weight",
    "ssm_dt.bias",
    "ssm_a",
    "ssm_beta.weight",
    "ssm_alpha.weight",
    "ssm_norm.weight",
    "ssm_out.weight",
];

/// Tensors of the layers that are left out.
pub(super) const AHEAD: &[&str] = &[
    "nextn.eh_proj.weight",
    "nextn.enorm.weight",
    "nextn.hnorm.weight",
    "nextn.embed_tokens.weight",
    "nextn.shared_head_head.weight",
    "nextn.shared_head_norm.weight",
];

fn spec(metadata: &Metadata<'_>) -> Result<ModelSpec, Error> {
    let mut spec = hybrid(metadata, decoder(metadata, Pairs::Halves)?)?;
    spec.tensors.block = &[NORMS, ATTENTION, QUERY_KEY_NORMS, DELTA_NET, GATED, AHEAD];
    Ok(spec)
}

/// A decoder with delta nets in the layers that are not attention.
///
/// # Errors
/// As [`Family::spec`].
pub(super) fn hybrid(metadata: &Metadata<'_>, mut spec: ModelSpec) -> Result<ModelSpec, Error> {
    let net = delta_net(metadata)?;
    check_sections(metadata, spec.ropes[0].pairs())?;
    let recurrent = metadata.opt_flags("attention.recurrent_layers")?;
    let interval = metadata.opt_size("full_attention_interval")?.unwrap_or(INTERVAL);
    for (index, block) in spec.blocks.iter_mut().enumerate() {
        block.feed_forward_norm = "post_attention_norm";
        let by_index = !(index + 1).is_multiple_of(interval);
        if recurrent.as_ref().map_or(by_index, |recurrent| recurrent[index]) {
            block.mixer = Mixer::DeltaNet(net);
        } else {
            block.attention.gated = true;
            block.attention.query_key_norm = Some(QueryKeyNorm::Head(block.norm));
        }
    }
    let ahead = metadata.layers_or_0("nextn_predict_layers")?;
    if ahead >= spec.blocks.len() {
        return Err(metadata
            .gguf
            .corrupt(format!("{ahead} layers predict tokens further ahead, of {}", spec.blocks.len())));
    }
    spec.blocks.truncate(spec.blocks.len() - ahead);
    Ok(spec)
}

/// The sizes of the delta nets.
fn delta_net(metadata: &Metadata<'_>) -> Result<DeltaNetSpec, Error> {
    let gguf = metadata.gguf;
    let net = DeltaNetSpec {
        key_heads: metadata.size("ssm.group_count")?,
        value_heads: metadata.size("ssm.time_step_rank")?,
        dim: metadata.size("ssm.state_size")?,
        taps: metadata.taps("ssm.conv_kernel")?,
    };
    let values = metadata.size("ssm.inner_size")?;
    if net.dim > 1024 || !net.dim.is_multiple_of(16) {
        return Err(gguf.unsupported(format!("the length of its delta nets' heads is {}", net.dim)));
    }
    if net.value_width() != values || !net.value_heads.is_multiple_of(net.key_heads) {
        return Err(gguf.corrupt(format!(
            "{} key heads and {} value heads of {} cannot make {values} values",
            net.key_heads, net.value_heads, net.dim
        )));
    }
    Ok(net)
}

/// Pairs of a rotation take turns in belonging to time, height and width, each of which has so many pairs. A
/// token of a text has the same position in all three; a pair beyond them would have none.
fn check_sections(metadata: &Metadata<'_>, pairs: usize) -> Result<(), Error> {
    let key = metadata.key("rope.dimension_sections");
    let Some(sections) = metadata.gguf.opt_i32s(&key)? else { return Ok(()) };
    let sections: Vec<i64> = sections.take(4).map(i64::from).collect();
    let [time, height, width, rest @ ..] = &sections[..] else {
        return Err(metadata.gguf.corrupt(format!("key \"{key}\" is {sections:?}")));
    };
    let of_axes = [*time, *height, *width];
    let all: i64 = of_axes.iter().sum();
    let whole = usize::try_from(all).is_ok_and(|all| all >= pairs)
        && rest.iter().all(|section| *section == 0)
        && (0..pairs).all(|pair| ((pair / 3) as i64) < of_axes[pair % 3]);
    if whole {
        return Ok(());
    }
    Err(metadata.gguf.unsupported(format!("key \"{key}\" is {sections:?}, for {pairs} pairs")))
}
