//! Refusal of files with keys or tensors that their family does not read and that would change what is
//! computed: leaving them out would change every answer without a word.

use std::collections::BTreeSet;

use crate::Error;
use crate::gguf::{Gguf, Value};

/// Keys without an effect on the computation, or with effects that tensors show as well: tensors without a
/// place and tensors of another shape are refused. A `*` at the end of a name stands for any characters.
const HARMLESS: &[&str] = &[
    "vocab_size",
    "tensor_data_layout",
    "pooling_type",
    "classifier.output_labels",
    "feed_forward_length",
    "expert_used_count",
    "expert_group_used_count",
    "expert_feed_forward_length",
    "expert_shared_feed_forward_length",
    // The epsilon of the kind of norm that the family does not use.
    "attention.layer_norm_epsilon",
    "attention.layer_norm_rms_epsilon",
    // Whether the model was trained with stretched positions; and values that llama.cpp computes itself.
    "rope.scaling.finetuned",
    "rope.scaling.yarn_attn_factor",
    // Files of models without recurrent layers may have the keys of models with some.
    "ssm.*",
    // These keys are about images and sounds.
    "deepstack_mapping",
    "vision.*",
    "audio.*",
    "mm.*",
];

/// Keys that have an effect only where a window is in force.
const OF_WINDOWS: &[&str] = &[
    "attention.sliding_window_pattern",
    "attention.key_length_swa",
    "attention.value_length_swa",
    "rope.freq_base_swa",
    "rope.dimension_count_swa",
];

/// Keys that files of a family have, but that do not apply to its models.
const OF_FAMILIES: &[(&str, &str)] = &[
    ("bert", "rope.*"),
    ("qwen2", "use_parallel_residual"),
    // Keys of one size only, which reads them.
    ("exaone4", "attention.sliding_window"),
    ("exaone4", "attention.sliding_window_pattern"),
];

/// Factors, which change nothing where they are 1.
const FACTORS: &[&str] = &[
    "logit_scale",
    "embedding_scale",
    "residual_scale",
    "expert_weights_scale",
    "attention.output_scale",
    "attention.value_scale",
    "rope.scale_linear",
    "rope.scaling.factor",
    "rope.scaling.attn_factor",
    "rope.scaling.yarn_ext_factor",
];

/// Keys that have no effect where they equal another one.
const SAME: &[(&str, &str)] = &[
    ("embedding_length_out", "embedding_length"),
    ("attention.head_count_kv", "attention.head_count"),
    ("rope.freq_base_swa", "rope.freq_base"),
];

/// The effects of keys, by the beginnings of their names.
const EFFECTS: &[(&str, &str)] = &[
    ("attn_logit_softcapping", "it bounds the scores of attention"),
    ("final_logit_softcapping", "it bounds the logits"),
    ("router_logit_softcapping", "it bounds the logits of routers"),
    ("logit_scale", "it scales the logits"),
    ("embedding_scale", "it scales the embeddings"),
    ("residual_scale", "it scales what blocks add"),
    ("use_parallel_residual", "it computes attention and feed-forward side by side"),
    ("attention.sliding_window", "it hides what is further away"),
    ("attention.scale", "it scales the scores of attention"),
    ("attention.temperature", "it scales queries by their position"),
    ("attention.", "it changes attention"),
    ("rope.", "it changes how positions are rotated in"),
    ("expert", "it changes how experts are chosen"),
    ("nextn_predict_layers", "it leaves the last layers out"),
];

/// Refuses a file with a key of its family that is not among those that were `read`, and could change the
/// results.
///
/// # Errors
/// [`Error::UnsupportedModel`], naming the key and its effect.
pub(super) fn refuse_keys(gguf: &Gguf, family: &str, read: &BTreeSet<String>) -> Result<(), Error> {
    let of_family = |key: &str| Some(key.strip_prefix(family)?.strip_prefix('.')?.to_owned());
    let window =
        gguf.opt_u32(&format!("{family}.attention.sliding_window"))?.is_some_and(|window| window > 0);
    for (key, value) in gguf.keys() {
        let Some(name) = of_family(key) else { continue };
        let known = read.contains(&name)
            || matches(HARMLESS, &name)
            || !window && matches(OF_WINDOWS, &name)
            || OF_FAMILIES.iter().any(|(of, known)| *of == family && matches(&[known], &name));
        if known || is_neutral(gguf, family, &name, key, value) {
            continue;
        }
        let effect = EFFECTS.iter().find(|(beginning, _)| name.starts_with(beginning));
        let effect = effect.map_or("it may change what is computed", |(_, effect)| *effect);
        return Err(gguf.unsupported_but(
            format!(
                "key \"{}\" is {}, which models of this family are not read with: {effect}",
                key.escape_debug(),
                shown(value)
            ),
            "Use a file of the same model that llama.cpp's converter wrote, or a newer version of the engine.",
        ));
    }
    Ok(())
}

/// Refuses tensors of attention that stand beside their replacements, and would be left out.
///
/// # Errors
/// [`Error::UnsupportedModel`], naming the tensor.
pub(super) fn refuse_doubles(gguf: &Gguf) -> Result<(), Error> {
    let exists = |name: &str| gguf.opt_tensor(name).map(|tensor| tensor.is_some());
    for tensor in gguf.tensors() {
        let Some((block, part)) = tensor.name.rsplit_once(".attn_") else { continue };
        let fused = format!("{block}.attn_qkv.weight");
        let beside = match part {
            "q.weight" | "q.bias" | "k.weight" | "k.bias" | "v.weight" | "v.bias" => exists(&fused)?,
            "qkv.bias" => !exists(&fused)?,
            _ => false,
        };
        if beside {
            return Err(gguf.unsupported(format!(
                "tensor \"{}\" has no place beside those that its block is made of",
                tensor.name
            )));
        }
    }
    Ok(())
}

/// Whether one of the names is this one.
fn matches(names: &[&str], name: &str) -> bool {
    names.iter().any(|known| match known.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => *known == name,
    })
}

/// Whether a value has no effect: zero, false, an array of these, or the value that the tables above name for
/// its key.
fn is_neutral(gguf: &Gguf, family: &str, name: &str, key: &str, value: Value<'_>) -> bool {
    let same = SAME.iter().find(|(same, _)| *same == name).is_some_and(|(_, as_this)| {
        let other = format!("{family}.{as_this}");
        gguf.keys().any(|(key, as_this)| key == other && as_this == value)
    });
    let one = FACTORS.contains(&name);
    same || match value {
        Value::Integer(number) => number == 0 || one && number == 1,
        Value::Float(number) => number == 0.0 || one && number == 1.0,
        Value::Bool(flag) => !flag,
        Value::String(text) => text == Some(""),
        Value::Array("f32", _) => {
            gguf.opt_f32s(key).ok().flatten().is_some_and(|mut all| all.all(|x| x == 0.0))
        }
        Value::Array(_, count) => {
            let numbers = gguf.opt_per_layer(key, count).ok().flatten();
            numbers.is_some_and(|numbers| numbers.iter().all(|number| *number == 0))
        }
    }
}

/// A value in an error.
fn shown(value: Value<'_>) -> String {
    match value {
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Bool(flag) => flag.to_string(),
        Value::String(Some(text)) => {
            let beginning: String = text.chars().take(40).collect();
            format!("\"{}\"", beginning.escape_debug())
        }
        Value::String(None) => "a string".to_owned(),
        Value::Array(kind, count) => format!("an array of {count} {kind}"),
    }
}
