//! Keys and tensors that a family does not read: those that would change a result are refused by name, but
//! none that files of the family have.

use std::path::PathBuf;

use steadytext_engine::{Error, ModelSource, Probe};
use steadytext_test_models::gguf::{File, Tensor, Value};
use steadytext_test_models::{Architecture, Spec, file};
use tempfile::TempDir;

const TOKENS: [u32; 12] = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8];

/// The logits behind some tokens, of a model that was altered before it was written.
fn logits(spec: &Spec, alter: impl FnOnce(&mut File)) -> Result<Vec<f32>, Error> {
    let mut file = file(spec).unwrap();
    alter(&mut file);
    let directory = TempDir::new().unwrap();
    let path: PathBuf = directory.path().join("model.gguf");
    file.write(&mut std::fs::File::create(&path).unwrap()).unwrap();
    let mut probe = Probe::open(&ModelSource::File(path), 1)?;
    Ok(probe.extend(&TOKENS)?.unwrap().to_vec())
}

fn refusal(spec: &Spec, alter: impl FnOnce(&mut File)) -> String {
    match logits(spec, alter) {
        Err(Error::UnsupportedModel { reason, .. } | Error::CorruptModel { reason, .. }) => reason,
        other => panic!("{:?} was not refused: {:?}", spec.architecture, other.map(|_| "logits")),
    }
}

/// A tensor of this name that is like another one.
fn copy(file: &mut File, of: &str, name: &str) {
    let tensor = file.tensor_mut(of).unwrap().clone();
    file.tensors.push(Tensor { name: name.to_owned(), ..tensor });
}

#[test]
fn a_key_changes_the_logits_or_is_refused_by_name() {
    // Keys that change the positions that a row sees, the positions themselves, scores, logits or sums.
    let keys = [
        ("attn_logit_softcapping", Value::F32(0.01)),
        ("final_logit_softcapping", Value::F32(0.5)),
        ("router_logit_softcapping", Value::F32(0.5)),
        ("logit_scale", Value::F32(3.0)),
        ("embedding_scale", Value::F32(5.0)),
        ("residual_scale", Value::F32(0.3)),
        ("attention.scale", Value::F32(0.01)),
        ("attention.temperature_scale", Value::F32(0.3)),
        ("attention.temperature_length", Value::U32(4)),
        ("attention.sliding_window", Value::U32(3)),
        ("attention.shared_kv_layers", Value::U32(1)),
        ("attention.causal", Value::Bool(false)),
        ("attention.clamp_kqv", Value::F32(0.1)),
        ("use_parallel_residual", Value::Bool(true)),
        ("rope.dimension_sections", Value::I32s(vec![2, 2, 2, 2])),
        ("rope.scaling.alpha", Value::F32(7.0)),
        ("num_loops", Value::U32(2)),
        ("nobody_knows_it", Value::String("on".into())),
    ];
    for architecture in Architecture::ALL {
        let spec = Spec::tiny(architecture);
        let name = architecture.name();
        let plain = logits(&spec, |_| {}).unwrap();
        for (key, value) in &keys {
            // Keys that end the context, or that files of the family have without an effect.
            match (name, *key) {
                ("qwen2" | "qwen3" | "exaone4", "attention.sliding_window") => continue,
                ("qwen2", "use_parallel_residual") => continue,
                // Its positions are below the first interval.
                ("mistral3", "attention.temperature_scale") => continue,
                _ => {}
            }
            let full = format!("{name}.{key}");
            match logits(&spec, |file| file.set(&full, value.clone())) {
                Ok(altered) => assert_ne!(plain, altered, "{full} changes nothing"),
                Err(Error::UnsupportedModel { reason, .. } | Error::CorruptModel { reason, .. }) => {
                    let by_name = reason.contains(&full);
                    let in_words = *key == "attention.causal" || reason.contains("shares the keys");
                    assert!(by_name || in_words || reason.contains("clamped"), "{full}: {reason}");
                }
                Err(other) => panic!("{full}: {other}"),
            }
        }
    }
}

#[test]
fn a_refusal_says_what_the_key_would_change() {
    let spec = Spec::tiny(Architecture::Granite);
    let of = |key: &str, value: Value| refusal(&spec, |file| file.set(&format!("granite.{key}"), value));
    let reason = of("attn_logit_softcapping", Value::F32(50.0));
    assert!(
        reason.contains("\"granite.attn_logit_softcapping\" is 50") && reason.contains("bounds the scores"),
        "{reason}"
    );
    let reason = of("use_parallel_residual", Value::Bool(true));
    assert!(reason.contains("is true") && reason.contains("side by side"), "{reason}");
    let reason = of("rope.dimension_sections", Value::I32s(vec![1, 2, 3]));
    assert!(reason.contains("an array of 3 i32"), "{reason}");
    let reason = of("x", Value::String("\u{1b}[31m".repeat(1000)));
    assert!(reason.len() < 500 && !reason.contains('\u{1b}'), "{reason}");
}

#[test]
fn what_files_of_all_families_may_have_changes_nothing() {
    let number = Value::U32;
    let keys = [
        ("vocab_size", number(512)),
        ("tensor_data_layout", Value::String("Meta AI original pth".into())),
        ("rope.scaling.yarn_attn_factor", Value::F32(1.2)),
        ("rope.scaling.yarn_ext_factor", Value::F32(1.0)),
        ("ssm.conv_kernel", number(4)),
        ("expert_group_used_count", number(1)),
        ("deepstack_mapping", Value::I32s(vec![3, 4])),
        ("vision.block_count", number(27)),
        ("mm.tokens_per_image", number(256)),
        ("attn_logit_softcapping", Value::F32(0.0)),
        ("nextn_predict_layers", number(0)),
        ("use_parallel_residual", Value::Bool(false)),
        ("rope.dimension_sections", Value::I32s(vec![0; 4])),
        ("embedding_length_out", number(64)),
        ("leading_dense_block_count", number(0)),
    ];
    for architecture in Architecture::ALL {
        let (spec, name) = (Spec::tiny(architecture), architecture.name());
        let all = |file: &mut File| {
            for (key, value) in &keys {
                let full = format!("{name}.{key}");
                // A key that the family reads would change the result.
                let of_gemma2 = name == "gemma2" && *key == "attn_logit_softcapping";
                if file.keys.iter().all(|(key, _)| *key != full) && !of_gemma2 {
                    file.set(&full, value.clone());
                }
            }
        };
        assert_eq!(logits(&spec, |_| {}).unwrap(), logits(&spec, all).unwrap(), "{name}");
    }
    let spec = Spec::tiny(Architecture::Qwen2);
    let parallel = |file: &mut File| file.set("qwen2.use_parallel_residual", Value::Bool(true));
    assert!(logits(&spec, parallel).is_ok(), "the first files of Qwen 1.5 have it");
    let spec = Spec::tiny(Architecture::Exaone4);
    let window = |file: &mut File| file.set("exaone4.attention.sliding_window", number(4096));
    assert!(logits(&spec, window).is_ok(), "those of the smaller size have it");
}

#[test]
fn tensors_that_stand_beside_those_that_are_used_are_refused_by_name() {
    let spec = Spec { tied: true, ..Spec::tiny(Architecture::Qwen3) };
    for (of, name) in [
        ("blk.0.attn_q.weight", "blk.0.attn_qkv.bias"),
        ("blk.0.attn_norm.weight", "blk.0.attn_rot_embd.weight"),
        ("token_embd.weight", "cls.weight"),
        ("output_norm.weight", "cls.bias"),
    ] {
        let reason = refusal(&spec, |file| copy(file, of, name));
        assert!(reason.contains(&format!("\"{name}\"")), "{reason}");
    }
    let spec = Spec::tiny(Architecture::Phi3);
    for part in ["q.weight", "q.bias", "k.bias", "v.weight"] {
        let name = format!("blk.1.attn_{part}");
        let reason = refusal(&spec, |file| copy(file, "blk.1.attn_norm.weight", &name));
        assert!(reason.contains(&format!("\"{name}\"")), "{reason}");
    }
    let reason = refusal(&spec, |file| copy(file, "rope_factors_long.weight", "rope_freqs.weight"));
    assert!(reason.contains("rope_factors_long.weight"), "{reason}");
    let spec = Spec::tiny(Architecture::Gemma4Moe);
    let reason = refusal(&spec, |file| {
        copy(file, "blk.0.ffn_gate_up_exps.weight", "blk.0.ffn_gate_exps.weight");
    });
    assert!(reason.contains("blk.0.ffn_gate_up_exps.weight"), "{reason}");
}

#[test]
fn arrays_have_a_value_for_each_block_and_no_more() {
    let spec = Spec::tiny(Architecture::Gemma4);
    for count in [1, 3] {
        let pattern = Value::Bools(vec![true; count]);
        let reason = refusal(&spec, |file| file.set("gemma4.attention.sliding_window_pattern", pattern));
        assert!(reason.contains("sliding_window_pattern") && reason.contains("for 2 layers"), "{reason}");
        let inner = Value::I32s(vec![128; count]);
        let reason = refusal(&spec, |file| file.set("gemma4.feed_forward_length", inner));
        assert!(reason.contains("gemma4.feed_forward_length"), "{reason}");
    }
}
