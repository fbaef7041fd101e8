//! Gemma 3n: several residual streams of which blocks compute one, a low-rank product beside attention, gates
//! of which only the largest are kept in the first blocks, embeddings of each token for each block, and
//! blocks that use the keys and values of earlier ones. Text only.
//!
//! Reference:
//! [`modeling_gemma3n.py`](https://github.com/huggingface/transformers/blob/main/src/transformers/models/gemma3n/modeling_gemma3n.py)
//! of transformers; [the model's page](https://huggingface.co/google/gemma-3n-E4B). Its small size is cut out
//! of the large one, so that blocks may have feed-forwards of different widths ([Devvrit et al.
//! 2023](https://arxiv.org/abs/2310.07707)).

use super::{
    ATTENTION, Family, GATED, PER_LAYER, PRE_NORM, QUERY_KEY_NORMS, RESULT_NORMS, decoder_of, gemma, gemma4,
    rms,
};
use crate::Error;
use crate::kernels::rope::Pairs;
use crate::kernels::streams::STREAMS;
use crate::model::metadata::Metadata;
use crate::model::spec::{FeedForwardSpec, Kind, ModelSpec, QueryKeyNorm, Residual, Span};

pub(super) const FAMILY: Family = Family { name: "gemma3n", spec };

/// Base of the rotation where a window is in force, unless the file says otherwise.
const WINDOW_BASE: f32 = 10_000.0;
/// Bound of the logits, unless the file says otherwise.
const LOGITS: f32 = 30.0;
/// The values of files without these keys: blocks with keys and values of their own, and blocks with few
/// gates, which keep one in twenty.
const OWN_KEYS: usize = 20;
const SPARSE: usize = 10;
const ONE_IN_20: f32 = 1.644_853_5;

/// Tensors of the model.
const MODEL_TENSORS: &[&str] = &[
    "token_embd.weight",
    "output.weight",
    "output_norm.weight",
    "per_layer_token_embd.weight",
    "per_layer_model_proj.weight",
    "per_layer_proj_norm.weight",
    "altup_proj.weight",
    "altup_unembd_proj.weight",
];

/// Tensors of a block beside those of other families.
const STREAM_TENSORS: &[&str] = &[
    "altup_correct_coef.weight",
    "altup_correct_scale.weight",
    "altup_predict_coef.weight",
    "altup_router.weight",
    "altup_router_norm.weight",
    "laurel_l.weight",
    "laurel_r.weight",
    "laurel_post_norm.weight",
];

fn spec(metadata: &Metadata<'_>) -> Result<ModelSpec, Error> {
    metadata.refuse_experts()?;
    let gguf = metadata.gguf;
    for (name, only) in [("altup.num_inputs", STREAMS as u32), ("altup.active_idx", 0)] {
        if let Some(other) = gguf.opt_u32(&metadata.key(name))?.filter(|value| *value != only) {
            return Err(gguf.unsupported(format!("key \"{}\" is {other}", metadata.key(name))));
        }
    }
    let count = metadata.block_count()?;
    let windowed = metadata.windowed(count, 5)?;
    let heads = metadata.heads(metadata.size("embedding_length")?)?;
    let inner = metadata.layer_sizes("feed_forward_length", count)?;
    let cutoffs = cutoffs(metadata, count)?;
    let blocks: Vec<_> = inner
        .into_iter()
        .zip(cutoffs)
        .map(|(inner, cutoff)| (heads, FeedForwardSpec { cutoff, ..FeedForwardSpec::gated(inner) }))
        .collect();
    let rope = metadata.rope(Pairs::Halves, heads.dim)?;
    let mut spec = gemma::scaled(decoder_of(metadata, rope, rms(metadata)?, &blocks)?);
    let base = metadata.opt_positive("rope.freq_base_swa")?.unwrap_or(WINDOW_BASE);
    spec.ropes.push(metadata.plain_rope(Pairs::Halves, heads.dim, base)?);
    if let Kind::Decoder { logits, .. } = &mut spec.kind {
        logits.cap = Some(metadata.opt_positive("final_logit_softcapping")?.unwrap_or(LOGITS));
    }
    spec.per_layer = Some(metadata.size("embedding_length_per_layer_input")?);
    spec.streams = true;
    let window = metadata.size("attention.sliding_window")?;
    let own = match gguf.opt_u32(&metadata.key("attention.shared_kv_layers"))? {
        Some(sharing) => count.saturating_sub(sharing as usize),
        None => count.min(OWN_KEYS),
    };
    for index in 0..count {
        let source = gemma4::shared(gguf, &windowed, own, index)?;
        let rank = gguf.tensor(&format!("blk.{index}.laurel_l.weight"))?.shape.get(1).copied();
        let block = &mut spec.blocks[index];
        block.residual = Residual::Sandwich;
        // A wrong rank is refused when the shapes of both tensors are checked.
        block.laurel = Some(rank.unwrap_or(1));
        block.attention.scale = 1.0;
        block.attention.query_key_norm = Some(QueryKeyNorm::Head(block.norm));
        block.attention.value_norm = Some(block.norm);
        block.attention.shares = source;
        if windowed[index] {
            block.attention.span = Span::Window(window);
            block.attention.rope = Some(1);
        }
    }
    spec.tensors.model = MODEL_TENSORS;
    spec.tensors.block =
        &[PRE_NORM, RESULT_NORMS, ATTENTION, QUERY_KEY_NORMS, GATED, PER_LAYER, STREAM_TENSORS];
    Ok(spec)
}

/// For each block, the number of standard deviations above the mean from which on gates are kept; minus
/// infinity keeps all of them.
fn cutoffs(metadata: &Metadata<'_>, count: usize) -> Result<Vec<Option<f32>>, Error> {
    let (gguf, key) = (metadata.gguf, metadata.key("activation_sparsity_scale"));
    let Some(scales) = gguf.opt_f32s(&key)? else {
        return Ok((0..count).map(|index| (index < SPARSE).then_some(ONE_IN_20)).collect());
    };
    if scales.len() != count {
        return Err(gguf.corrupt(format!("key \"{key}\" is an array of {} f32", scales.len())));
    }
    scales
        .map(|scale| match scale {
            f32::NEG_INFINITY => Ok(None),
            scale if scale.is_finite() => Ok(Some(scale)),
            other => Err(gguf.corrupt(format!("key \"{key}\" holds {other}, out of range"))),
        })
        .collect()
}
