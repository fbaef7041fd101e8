//! Requirements of a model file: every tensor in its shape and type, and nothing that the decoder leaves out.

use std::path::PathBuf;

use steadytext_engine::{Error, ModelSource, Probe};
use steadytext_test_models::gguf::{File, Value};
use steadytext_test_models::{Architecture, Kind, Quantization, Spec, file};
use tempfile::TempDir;

/// Opens a model that was altered before it was written.
fn open(spec: &Spec, alter: impl FnOnce(&mut File)) -> Result<Probe, Error> {
    let mut file = file(spec).unwrap();
    alter(&mut file);
    let directory = TempDir::new().unwrap();
    let path: PathBuf = directory.path().join("model.gguf");
    file.write(&mut std::fs::File::create(&path).unwrap()).unwrap();
    // The mapping outlives the name.
    Probe::open(&ModelSource::File(path), 1)
}

fn corrupt(spec: &Spec, alter: impl FnOnce(&mut File), naming: &str) {
    match open(spec, alter) {
        Err(Error::CorruptModel { reason, .. }) => assert!(reason.contains(naming), "{reason}"),
        other => panic!("{naming}: {other:?}"),
    }
}

fn unsupported(spec: &Spec, alter: impl FnOnce(&mut File), naming: &str) {
    match open(spec, alter) {
        Err(Error::UnsupportedModel { reason, .. }) => assert!(reason.contains(naming), "{reason}"),
        other => panic!("{naming}: {other:?}"),
    }
}

fn tiny() -> Spec {
    Spec::tiny(Architecture::Qwen3)
}

#[test]
fn every_tensor_is_missed_by_its_name() {
    for architecture in Architecture::ALL {
        let spec = Spec { tied: true, ..Spec::tiny(architecture) };
        for tensor in file(&spec).unwrap().tensors {
            // Biases, except for those of experts, and the factors of Llama 3 are optional in every
            // architecture, and errors about a missing fused matrix name its parts.
            let optional = [".bias", "attn_qkv.weight", "ffn_gate_up_exps.weight", "rope_freqs.weight"];
            // Keys are values in blocks of Gemma 4 that have none.
            let of_gemma4 = ["attn_v.weight", "layer_output_scale.weight", "ffn_down_exps.scale"];
            let is_gemma4 = matches!(architecture, Architecture::Gemma4 | Architecture::Gemma4Moe);
            if is_gemma4 && of_gemma4.iter().any(|end| tensor.name.ends_with(end)) {
                continue;
            }
            if optional.iter().any(|end| tensor.name.ends_with(end)) && !tensor.name.ends_with("_exps.bias") {
                continue;
            }
            let name = tensor.name.clone();
            corrupt(&spec, |file| file.tensors.retain(|tensor| tensor.name != name), &name);
        }
    }
}

#[test]
fn every_shape_is_checked() {
    for architecture in Architecture::ALL {
        let spec = Spec::tiny(architecture);
        for tensor in file(&spec).unwrap().tensors {
            let name = tensor.name.clone();
            let alter = |file: &mut File| {
                let tensor = file.tensor_mut(&name).unwrap();
                // Another shape with the same number of bytes; a tensor of one dimension is halved.
                match &mut tensor.shape[..] {
                    [row, rows] | [row, rows, _] => (*row, *rows) = (*row * 2, *rows / 2),
                    shape => shape[0] /= 2,
                }
                if tensor.shape.len() == 1 {
                    tensor.data.truncate(tensor.data.len() / 2);
                }
            };
            corrupt(&spec, alter, &name);
        }
    }
}

#[test]
fn sizes_of_recurrent_layers_are_checked() {
    let spec = Spec::tiny(Architecture::Qwen35);
    let set = |key: &'static str, value: u32| {
        move |file: &mut File| file.set(&format!("qwen35.{key}"), Value::U32(value))
    };
    for taps in [0, 1, 65, u32::MAX] {
        corrupt(&spec, set("ssm.conv_kernel", taps), "qwen35.ssm.conv_kernel");
    }
    corrupt(&spec, set("ssm.group_count", 3), "3 key heads");
    corrupt(&spec, set("ssm.group_count", 1), "ssm_conv1d.weight");
    corrupt(&spec, set("ssm.time_step_rank", 8), "8 value heads");
    corrupt(&spec, set("ssm.inner_size", 64), "64 values");
    corrupt(&spec, set("full_attention_interval", 0), "qwen35.full_attention_interval");
    corrupt(&spec, set("full_attention_interval", 3), "blk.1.");
    corrupt(&spec, set("nextn_predict_layers", 2), "2 layers");
    corrupt(&spec, |file| file.remove("qwen35.ssm.state_size"), "qwen35.ssm.state_size");
    unsupported(&spec, set("ssm.state_size", 24), "is 24");
    let sections = Value::I32s(vec![3, 3, 1, 0]);
    unsupported(&spec, |file| file.set("qwen35.rope.dimension_sections", sections), "dimension_sections");
    assert!(open(&spec, set("nextn_predict_layers", 1)).is_ok(), "the last layer is left out");

    let spec = Spec::tiny(Architecture::GraniteHybrid);
    let set = |key: &'static str, value: u32| {
        move |file: &mut File| file.set(&format!("granitehybrid.{key}"), Value::U32(value))
    };
    corrupt(&spec, set("ssm.conv_kernel", 1), "granitehybrid.ssm.conv_kernel");
    corrupt(&spec, set("ssm.group_count", 3), "8 heads in 3 groups");
    corrupt(&spec, set("ssm.time_step_rank", 7), "7 heads in 2 groups");
    corrupt(&spec, set("ssm.time_step_rank", u32::MAX), "granitehybrid.ssm.time_step_rank");
    unsupported(&spec, set("ssm.time_step_rank", 16), "heads is 8");
    unsupported(&spec, set("ssm.state_size", 24), "states is 24");
    corrupt(&spec, set("ssm.state_size", 64), "ssm_in.weight");
    corrupt(&spec, set("ssm.inner_size", 256), "ssm_in.weight");
    corrupt(&spec, |file| file.remove("granitehybrid.ssm.state_size"), "granitehybrid.ssm.state_size");

    let spec = Spec::tiny(Architecture::Lfm2);
    corrupt(&spec, |file| file.set("lfm2.shortconv.l_cache", Value::U32(0)), "lfm2.shortconv.l_cache");
    unsupported(&spec, |file| file.set("lfm2.attention.causal", Value::Bool(false)), "both ways");
    let set = |heads: [i32; 2]| {
        move |file: &mut File| file.set("lfm2.attention.head_count_kv", Value::I32s(heads.to_vec()))
    };
    corrupt(&spec, set([0, 0]), "lfm2.attention.head_count_kv");
    corrupt(&spec, set([2, 0]), "blk.0.");
    unsupported(&spec, set([4, 2]), "differs from layer to layer");
    unsupported(&spec, set([-1, 2]), "differs from layer to layer");
}

#[test]
fn what_gemma_3n_says_of_its_streams_gates_and_keys_is_checked() {
    let spec = Spec::tiny(Architecture::Gemma3n);
    let set =
        |key: &'static str, value: Value| move |file: &mut File| file.set(&format!("gemma3n.{key}"), value);
    let number = |key: &'static str, value: u32| set(key, Value::U32(value));
    unsupported(&spec, number("altup.num_inputs", 3), "gemma3n.altup.num_inputs");
    unsupported(&spec, number("altup.active_idx", 1), "gemma3n.altup.active_idx");
    let key = "activation_sparsity_scale";
    for scales in [vec![], vec![1.0], vec![1.0; 3], vec![1.0, f32::NAN], vec![f32::INFINITY, 1.0]] {
        corrupt(&spec, set(key, Value::F32s(scales)), "gemma3n.activation_sparsity_scale");
    }
    corrupt(&spec, number(key, 1), "gemma3n.activation_sparsity_scale");
    for sharing in [1, 2, u32::MAX] {
        corrupt(&spec, number("attention.shared_kv_layers", sharing), "shares the keys of a block");
    }
    corrupt(&spec, number("embedding_length_per_layer_input", 0), "embedding_length_per_layer_input");
    corrupt(&spec, number("embedding_length_per_layer_input", 128), "inp_gate.weight");
    corrupt(&spec, number("attention.sliding_window", 0), "gemma3n.attention.sliding_window");
    // No matrix has such a rank.
    for shape in [vec![64], vec![64, 1 << 40]] {
        let alter = |file: &mut File| file.tensor_mut("blk.1.laurel_l.weight").unwrap().shape = shape;
        corrupt(&spec, alter, "");
    }
    // Missing keys mean the values of the published sizes: the first blocks keep one gate in twenty.
    let logits = |alter: &dyn Fn(&mut File)| {
        let mut probe = open(&spec, alter).unwrap();
        probe.extend(&[3, 1, 4, 1, 5, 9, 2, 6]).unwrap().unwrap().to_vec()
    };
    let written = logits(&|_| {});
    assert_eq!(written, logits(&|file| file.remove("gemma3n.activation_sparsity_scale")));
    assert_eq!(written, logits(&|file| file.remove("gemma3n.attention.shared_kv_layers")));
    let all_gates = Value::F32s(vec![f32::NEG_INFINITY; 2]);
    assert_ne!(written, logits(&|file| file.set("gemma3n.activation_sparsity_scale", all_gates.clone())));
}

#[test]
fn sizes_in_the_metadata_are_checked() {
    let spec = tiny();
    let set = |key: &'static str, value: u32| {
        move |file: &mut File| file.set(&format!("qwen3.{key}"), Value::U32(value))
    };
    corrupt(&spec, set("block_count", 0), "qwen3.block_count");
    corrupt(&spec, set("block_count", 3), "blk.2.");
    corrupt(&spec, set("embedding_length", u32::MAX), "qwen3.embedding_length");
    corrupt(&spec, set("attention.head_count", 5), "heads");
    corrupt(&spec, set("context_length", 0), "qwen3.context_length");
    corrupt(&spec, set("rope.dimension_count", 1 << 20), "qwen3.rope.dimension_count");
    corrupt(&spec, |file| file.remove("qwen3.feed_forward_length"), "qwen3.feed_forward_length");
    unsupported(&spec, set("attention.value_length", 16), "different lengths");
    unsupported(&spec, set("expert_count", 8), "experts");
    unsupported(&spec, set("pooling_type", 5), "qwen3.pooling_type");
    corrupt(
        &spec,
        |file| file.set("qwen3.attention.layer_norm_rms_epsilon", Value::F32(-1.0)),
        "layer_norm_rms_epsilon",
    );
}

#[test]
fn numbers_of_experts_and_ways_to_choose_them_are_checked() {
    let spec = Spec::tiny(Architecture::Qwen3Moe);
    let set =
        |key: &'static str, value: Value| move |file: &mut File| file.set(&format!("qwen3moe.{key}"), value);
    let number = |key: &'static str, value: u32| set(key, Value::U32(value));
    corrupt(&spec, number("expert_used_count", 7), "7 of 6");
    corrupt(&spec, number("expert_used_count", 0), "qwen3moe.expert_used_count");
    corrupt(&spec, number("expert_count", 0), "qwen3moe.expert_count");
    corrupt(&spec, number("expert_count", 1025), "2 of 1025");
    corrupt(&spec, number("expert_count", u32::MAX), "qwen3moe.expert_count");
    corrupt(&spec, |file| file.remove("qwen3moe.expert_count"), "qwen3moe.expert_count");
    corrupt(&spec, number("expert_count", 5), "blk.0.ffn_gate_inp.weight");
    corrupt(&spec, number("expert_feed_forward_length", 64), "blk.0.ffn_gate_exps.weight");
    unsupported(&spec, number("expert_gating_func", 2), "qwen3moe.expert_gating_func");
    unsupported(&spec, number("expert_group_count", 2), "qwen3moe.expert_group_count");
    unsupported(&spec, number("leading_dense_block_count", 1), "qwen3moe.leading_dense_block_count");
    unsupported(&spec, set("expert_weights_norm", Value::Bool(false)), "qwen3moe.expert_weights_norm");
    unsupported(&spec, set("expert_weights_scale", Value::F32(2.5)), "qwen3moe.expert_weights_scale");
    // The rows of an expert have to begin with a panel.
    let narrow = Spec {
        feed_forward: 40,
        quantization: Quantization::uniform(Kind::F32),
        ..Spec::tiny(Architecture::Qwen3Moe)
    };
    unsupported(&narrow, |_| {}, "blk.0.ffn_gate_exps.weight");
    // Dense families do not read the key.
    unsupported(&tiny(), |file| file.set("qwen3.expert_count", Value::U32(2)), "experts");
}

#[test]
fn what_the_decoder_cannot_do_is_refused_by_name() {
    let spec = tiny();
    unsupported(
        &spec,
        |file| file.set("general.architecture", Value::String("mamba".into())),
        "architecture \"mamba\"",
    );
    unsupported(&spec, |file| file.set("qwen3.rope.scaling.type", Value::String("ntk".into())), "\"ntk\"");
    unsupported(
        &spec,
        |file| {
            let mut extra = file.tensors[0].clone();
            extra.name = "blk.0.ffn_gate_exps.weight".into();
            file.tensors.push(extra);
        },
        "blk.0.ffn_gate_exps.weight",
    );
    // Blocks that would not be computed, and tensors of other families.
    unsupported(&spec, |file| file.set("qwen3.block_count", Value::U32(1)), "blk.1.");
    for name in ["blk.00.attn_q.weight", "blk.2.attn_q.weight", "per_layer_token_embd.weight"] {
        unsupported(
            &spec,
            |file| {
                let mut extra = file.tensors[0].clone();
                extra.name = name.into();
                file.tensors.push(extra);
            },
            name,
        );
    }
    unsupported(&spec, |file| file.set("qwen3.attention.causal", Value::Bool(false)), "both ways");
    unsupported(&spec, |file| file.set("qwen3.attention.clamp_kqv", Value::F32(3.0)), "clamp_kqv");
    // Type 24 is I8, which has no scale.
    unsupported(
        &spec,
        |file| {
            let tensor = file.tensor_mut("blk.1.attn_k.weight").unwrap();
            tensor.kind = 24;
            tensor.data = vec![0; tensor.shape.iter().product()];
        },
        "blk.1.attn_k.weight",
    );
}

#[test]
fn linear_scaling_stretches_positions() {
    let spec = Spec { quantization: Quantization::uniform(Kind::F32), ..Spec::tiny(Architecture::Llama) };
    let logits = |alter: &dyn Fn(&mut File)| {
        let mut probe = open(&spec, alter).unwrap();
        probe.extend(&[3, 1, 4, 1, 5, 9, 2, 6]).unwrap().unwrap().to_vec()
    };
    let plain = logits(&|_| {});
    let scaled = logits(&|file| {
        file.set("llama.rope.scaling.type", Value::String("linear".into()));
        file.set("llama.rope.scaling.factor", Value::F32(4.0));
    });
    assert_ne!(plain, scaled);
    // Frequencies divided by 4 one by one are the same as all of them scaled.
    let by_factors = logits(&|file| {
        let factors = [4.0f32; 16];
        file.tensors.push(steadytext_test_models::gguf::Tensor {
            name: "rope_freqs.weight".into(),
            shape: vec![16],
            kind: 0,
            data: factors.iter().flat_map(|factor| factor.to_le_bytes()).collect(),
        });
    });
    assert_eq!(scaled, by_factors);
}

#[test]
fn values_that_are_not_finite_fail_at_their_position() {
    let spec = Spec { quantization: Quantization::uniform(Kind::F32), ..tiny() };
    // The embedding of token 7 is infinite.
    let mut probe = open(&spec, |file| {
        let row = spec.width * 4;
        let data = &mut file.tensor_mut("token_embd.weight").unwrap().data;
        data[7 * row..7 * row + 4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    })
    .unwrap();
    assert!(probe.extend(&[1, 2, 3]).is_ok());
    let error = probe.extend(&[4, 7, 5]).unwrap_err();
    assert!(matches!(error, Error::NonFinite { position: 4 }), "{error:?}");
}

#[test]
fn tokens_and_contexts_out_of_range_are_refused() {
    let mut probe = open(&tiny(), |_| {}).unwrap();
    assert!(matches!(probe.extend(&[512]), Err(Error::InvalidRequest(_))));
    assert!(matches!(probe.extend(&[1; 513]), Err(Error::PromptTooLong { .. })));
    assert!(probe.is_empty());
}
