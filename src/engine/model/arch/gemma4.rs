//! Gemma 4: Gemma 3 with normalised values, longer heads without a window, blocks that use the keys and
//! values of earlier ones, and in the small sizes an embedding of each token for each block. Text only.
//!
//! Reference:
//! [`modeling_gemma4.py`](https://github.com/huggingface/transformers/blob/main/src/transformers/models/gemma4/modeling_gemma4.py)
//! of transformers; [the models' page](https://ai.google.dev/gemma/docs/core).

use super::{
    ATTENTION, EXPERTS, FUSED_EXPERTS, Family, GATED, PER_LAYER, PRE_NORM, QUERY_KEY_NORMS, RESULT_NORMS,
    decoder_of, gemma, rms,
};
use crate::Error;
use crate::gguf::Gguf;
use crate::kernels::attention::AttentionSizes;
use crate::kernels::rope::{Pairs, Rope};
use crate::kernels::routing::Weighting;
use crate::model::metadata::Metadata;
use crate::model::spec::{
    ExpertsSpec, FeedForwardSpec, Kind, ModelSpec, QueryKeyNorm, Residual, SharedExpert, SharedWeighting,
    Span,
};

pub(super) const FAMILY: Family = Family { name: "gemma4", spec };

/// Base of the rotation where a window is in force, unless the file says otherwise.
const WINDOW_BASE: f32 = 10_000.0;

/// Tensors that blocks with experts have beside those of the experts.
const EXPERTS_BESIDE: &[&str] = &[
    "ffn_gate_inp.scale",
    "ffn_down_exps.scale",
    "pre_ffw_norm_2.weight",
    "post_ffw_norm_1.weight",
    "post_ffw_norm_2.weight",
];

fn spec(metadata: &Metadata<'_>) -> Result<ModelSpec, Error> {
    let experts = match metadata.has_experts()? {
        true => {
            Some((metadata.size("expert_feed_forward_length")?, metadata.experts(Weighting::SoftmaxOfUsed)?))
        }
        false => None,
    };
    let gguf = metadata.gguf;
    let count = metadata.block_count()?;
    let windowed = metadata.windowed(count, 0)?;
    let window = metadata.window()?.unwrap_or(usize::MAX);
    let dim = metadata.size("attention.key_length")?;
    let window_dim = metadata.opt_size("attention.key_length_swa")?.unwrap_or(dim);
    for (name, dim) in [("attention.value_length", dim), ("attention.value_length_swa", window_dim)] {
        if metadata.opt_size(name)?.is_some_and(|length| length != dim) {
            return Err(gguf.unsupported("keys and values have different lengths"));
        }
    }
    let [query, kv, inner] = ["attention.head_count", "attention.head_count_kv", "feed_forward_length"]
        .map(|name| metadata.layer_sizes(name, count));
    let (query, kv, inner) = (query?, kv?, inner?);
    let mut blocks = Vec::with_capacity(count);
    for index in 0..count {
        let dim = if windowed[index] { window_dim } else { dim };
        let heads = metadata.checked_heads(AttentionSizes { query: query[index], kv: kv[index], dim })?;
        let has = |part: &str| gguf.opt_tensor(&format!("blk.{index}.{part}")).map(|tensor| tensor.is_some());
        // In blocks with experts, the feed-forward of other blocks is the expert that all rows use.
        let feed_forward = match experts {
            Some((width, experts)) if has("ffn_gate_inp.weight")? || has("ffn_down_exps.weight")? => {
                let shared = SharedExpert { width: inner[index], weighting: SharedWeighting::Norms };
                let experts = ExpertsSpec { shared: Some(shared), ..experts };
                FeedForwardSpec { experts: Some(experts), ..FeedForwardSpec::gated(width) }
            }
            _ => FeedForwardSpec::gated(inner[index]),
        };
        blocks.push((heads, feed_forward));
    }
    let rope = metadata.rope(Pairs::Halves, dim)?;
    let mut spec = gemma::scaled(decoder_of(metadata, rope, rms(metadata)?, &blocks)?);
    let base = metadata.opt_positive("rope.freq_base_swa")?.unwrap_or(WINDOW_BASE);
    let rotated = metadata.opt_size("rope.dimension_count_swa")?.unwrap_or(window_dim);
    if rotated > window_dim || !rotated.is_multiple_of(2) {
        return Err(gguf.corrupt(format!("{rotated} elements of heads of {window_dim} are rotated")));
    }
    spec.ropes.push(Rope::new(Pairs::Halves, rotated, base, 1.0, None));
    if let Kind::Decoder { logits, .. } = &mut spec.kind {
        logits.cap = metadata.opt_positive("final_logit_softcapping")?;
    }
    spec.per_layer = gguf
        .opt_u32(&metadata.key("embedding_length_per_layer_input"))?
        .filter(|length| *length > 0)
        .map(|_| metadata.size("embedding_length_per_layer_input"))
        .transpose()?;
    let sharing = gguf.opt_u32(&metadata.key("attention.shared_kv_layers"))?.unwrap_or(0) as usize;
    let own = count.saturating_sub(sharing);
    for index in 0..count {
        let source = shared(gguf, &windowed, own, index)?;
        if source.is_some_and(|source| blocks[source].0 != blocks[index].0) {
            return Err(gguf.corrupt(format!("block {index} shares the keys of a block with other heads")));
        }
        let block = &mut spec.blocks[index];
        let part = |name: &str| format!("blk.{index}.{name}");
        block.residual = Residual::Sandwich;
        block.output_scale = gguf.opt_tensor(&part("layer_output_scale.weight"))?.is_some();
        block.attention.scale = 1.0;
        block.attention.query_key_norm = Some(QueryKeyNorm::Head(block.norm));
        block.attention.value_norm = Some(block.norm);
        block.attention.shares = source;
        block.attention.keys_are_values = source.is_none()
            && gguf.opt_tensor(&part("attn_v.weight"))?.is_none()
            && gguf.opt_tensor(&part("attn_qkv.weight"))?.is_none();
        if windowed[index] {
            block.attention.span = Span::Window(window);
            block.attention.rope = Some(1);
        }
    }
    spec.tensors.block = &[
        PRE_NORM,
        RESULT_NORMS,
        ATTENTION,
        QUERY_KEY_NORMS,
        GATED,
        PER_LAYER,
        &["layer_output_scale.weight"],
    ];
    if experts.is_some() {
        spec.tensors.block = &[
            PRE_NORM,
            RESULT_NORMS,
            ATTENTION,
            QUERY_KEY_NORMS,
            GATED,
            PER_LAYER,
            &["layer_output_scale.weight"],
            EXPERTS,
            FUSED_EXPERTS,
            EXPERTS_BESIDE,
        ];
    }
    Ok(spec)
}

/// The block whose keys and values block `index` uses, where it is not among the first `own` blocks, which
/// have their own: the last of those with a window, or without one, as block `index` is.
///
/// # Errors
/// [`Error::CorruptModel`] where there is none.
pub(super) fn shared(
    gguf: &Gguf,
    windowed: &[bool],
    own: usize,
    index: usize,
) -> Result<Option<usize>, Error> {
    if index < own {
        return Ok(None);
    }
    let source = (0..own).rfind(|source| windowed[*source] == windowed[index]);
    source
        .map(Some)
        .ok_or_else(|| gguf.corrupt(format!("block {index} shares the keys of a block that is not there")))
}
