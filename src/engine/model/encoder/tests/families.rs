//! Encoders that are not BERT, against candle-transformers' models where it has them, and against the same
//! computed by hand.

use candle_core::{D, DType, Device, Tensor};
use candle_nn::{Module, VarBuilder};
use candle_transformers::models::{jina_bert, modernbert, nomic_bert};
use steadytext_test_models::adapters::{ALPHA, RANK, loras};
use steadytext_test_models::{
    Bert, EncoderFamily, GEMMA_KV_HEADS, GEMMA_PERIOD, GEMMA_PROJECTION, NEIGHBOURHOOD,
};
use tempfile::TempDir;

use super::{EncoderNetwork, EncoderText};
use super::{cosine, load, mixed, one, pool, scores, tokens, vectors, vectors_on};
use crate::kernels::Pool;
use crate::kernels::instructions::Instructions;

/// Enough blocks that each kind of them comes twice.
fn spec(family: EncoderFamily) -> Bert {
    Bert { family, layers: 5, ..Bert::default() }
}

fn of(spec: &Bert) -> (TempDir, EncoderNetwork) {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("model.gguf");
    spec.write(&path).unwrap();
    let encoder = load(&path);
    (directory, encoder)
}

/// The weights under candle's names.
fn weights(spec: &Bert) -> VarBuilder<'static> {
    VarBuilder::from_buffered_safetensors(spec.safetensors().unwrap(), DType::F32, &Device::Cpu).unwrap()
}

fn config<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// Last hidden states, `[tokens, width]`.
fn hidden(spec: &Bert, tokens: &[u32]) -> Tensor {
    let ids = Tensor::new(tokens, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    let vocabulary = spec.vocabulary().len();
    match spec.family {
        EncoderFamily::ModernBert => {
            let config: modernbert::Config = config(serde_json::json!({
                "vocab_size": vocabulary, "hidden_size": spec.width, "num_hidden_layers": spec.layers,
                "num_attention_heads": spec.heads, "intermediate_size": spec.feed_forward,
                "max_position_embeddings": spec.context, "layer_norm_eps": 1e-12, "pad_token_id": 0,
                "global_attn_every_n_layers": 3, "global_rope_theta": 160_000.0, "local_attention": 24,
                "local_rope_theta": 10_000.0,
            }));
            let model = modernbert::ModernBert::load(weights(spec), &config).unwrap();
            model.forward(&ids, &ids.ones_like().unwrap()).unwrap().squeeze(0).unwrap()
        }
        EncoderFamily::NomicBert => {
            let config: nomic_bert::Config = config(serde_json::json!({
                "vocab_size": vocabulary, "n_embd": spec.width, "n_head": spec.heads, "n_layer": spec.layers,
                "n_inner": spec.feed_forward, "n_positions": spec.context,
            }));
            let model = nomic_bert::NomicBertModel::load(weights(spec), &config).unwrap();
            model.forward(&ids, None, None).unwrap().squeeze(0).unwrap()
        }
        EncoderFamily::JinaBertV2 => {
            let config = jina_bert::Config {
                vocab_size: vocabulary,
                hidden_size: spec.width,
                num_hidden_layers: spec.layers,
                num_attention_heads: spec.heads,
                intermediate_size: spec.feed_forward,
                max_position_embeddings: spec.context,
                ..jina_bert::Config::v2_base()
            };
            let model = jina_bert::BertModel::new(weights(spec), &config).unwrap();
            model.forward(&ids).unwrap().squeeze(0).unwrap()
        }
        EncoderFamily::GemmaEmbedding => gemma(spec, tokens).unwrap(),
        _ => by_hand(spec, tokens, None).unwrap(),
    }
}

/// The vector of EmbeddingGemma, `[1, width]`, which nothing else here computes.
fn gemma(spec: &Bert, tokens: &[u32]) -> candle_core::Result<Tensor> {
    let (weights, width, inner) = (weights(spec), spec.width, spec.feed_forward);
    let (dim, count) = (width / spec.heads, tokens.len());
    let norm = |x: &Tensor, name: &str| -> candle_core::Result<Tensor> {
        let weight = weights.get(x.dim(D::Minus1)?, &format!("{name}.weight"))?;
        let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
        x.broadcast_div(&(mean + 1e-6)?.sqrt()?)?.broadcast_mul(&weight)
    };
    let linear = |x: &Tensor, name: &str, from: usize, to: usize| {
        x.matmul(&weights.get((to, from), &format!("{name}.weight"))?.t()?)
    };
    let ids = Tensor::new(tokens, &Device::Cpu)?;
    let table = weights.get((spec.vocabulary().len(), width), "token_embd.weight")?;
    let mut x = (table.index_select(&ids, 0)? * (width as f64).sqrt())?;
    let positions = Tensor::arange(0_f32, count as f32, &Device::Cpu)?.unsqueeze(1)?;
    for layer in 0..spec.layers {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let near = layer % GEMMA_PERIOD < GEMMA_PERIOD - 1;
        let base = if near { 10_000.0 } else { spec.family.rope_base() };
        let frequencies: Vec<f32> =
            (0..dim / 2).map(|pair| libm::powf(base, -2.0 * pair as f32 / dim as f32)).collect();
        let angles = positions.matmul(&Tensor::new(frequencies, &Device::Cpu)?.unsqueeze(0)?)?;
        let h = norm(&x, &name("attn_norm"))?;
        let heads = |part: &str, heads: usize| -> candle_core::Result<Tensor> {
            let rows = linear(&h, &name(part), width, heads * dim)?;
            rows.reshape((count, heads, dim))?.transpose(0, 1)?.contiguous()
        };
        let rotated = |x: Tensor| -> candle_core::Result<Tensor> {
            candle_nn::rotary_emb::rope(&x.unsqueeze(0)?, &angles.cos()?, &angles.sin()?)?.squeeze(0)
        };
        let each = spec.heads / GEMMA_KV_HEADS;
        let repeated = |x: Tensor| -> candle_core::Result<Tensor> {
            let shape = (GEMMA_KV_HEADS, each, count, dim);
            x.unsqueeze(1)?.broadcast_as(shape)?.contiguous()?.reshape((spec.heads, count, dim))
        };
        let query = rotated(norm(&heads("attn_q", spec.heads)?, &name("attn_q_norm"))?)?;
        let key = rotated(norm(&heads("attn_k", GEMMA_KV_HEADS)?, &name("attn_k_norm"))?)?;
        let (key, value) = (repeated(key)?, repeated(heads("attn_v", GEMMA_KV_HEADS)?)?);
        let hidden: Vec<f32> = (0..count)
            .flat_map(|row| (0..count).map(move |other| row.abs_diff(other)))
            .map(|apart| if near && apart > NEIGHBOURHOOD / 2 { f32::NEG_INFINITY } else { 0.0 })
            .collect();
        let hidden = Tensor::from_vec(hidden, (count, count), &Device::Cpu)?;
        let scores = (query.matmul(&key.t()?)? / (dim as f64).sqrt())?.broadcast_add(&hidden)?;
        let mixed = candle_nn::ops::softmax(&scores, D::Minus1)?.matmul(&value)?;
        let mixed = mixed.transpose(0, 1)?.contiguous()?.reshape((count, width))?;
        let mixed = linear(&mixed, &name("attn_output"), width, width)?;
        x = (x + norm(&mixed, &name("post_attention_norm"))?)?;
        let h = norm(&x, &name("ffn_norm"))?;
        let gate = linear(&h, &name("ffn_gate"), width, inner)?.gelu()?;
        let up = linear(&h, &name("ffn_up"), width, inner)?;
        let fed = linear(&(gate * up)?, &name("ffn_down"), inner, width)?;
        x = (x + norm(&fed, &name("post_ffw_norm"))?)?;
    }
    let mean = norm(&x, "output_norm")?.mean_keepdim(0)?;
    let inner = linear(&mean, "dense_2", width, GEMMA_PROJECTION)?;
    linear(&inner, "dense_3", GEMMA_PROJECTION, width)
}

/// Reference results of jina-embeddings-v3 and nomic-embed-text 2, computed one expert and one row after the
/// other; with a task, from weights to which its adapter was added.
pub(super) fn by_hand(spec: &Bert, tokens: &[u32], task: Option<usize>) -> candle_core::Result<Tensor> {
    let (weights, width, inner) = (weights(spec), spec.width, spec.feed_forward);
    let dim = width / spec.heads;
    let norm = |name: &str| candle_nn::layer_norm(width, 1e-12, weights.pp(name));
    let of_task = task.map(|task| loras(spec, task)).unwrap_or_default();
    let adapted = |gguf: &str, weight: Tensor| -> candle_core::Result<Tensor> {
        let Some(lora) = of_task.iter().find(|lora| lora.name == gguf) else { return Ok(weight) };
        let b = Tensor::from_slice(&lora.b, (lora.outputs, RANK), &Device::Cpu)?;
        let a = Tensor::from_slice(&lora.a, (RANK, lora.inputs), &Device::Cpu)?;
        weight + (b.matmul(&a)? * f64::from(ALPHA / RANK as f32))?
    };
    let words = weights.get((spec.vocabulary().len(), width), "embeddings.word_embeddings.weight")?;
    let words = adapted("token_embd.weight", words)?;
    let types = weights.get((1, width), "embeddings.token_type_embeddings.weight")?;
    let types = adapted("token_types.weight", types)?;
    let ids = Tensor::new(tokens, &Device::Cpu)?;
    let mut x = norm("emb_ln")?.forward(&words.index_select(&ids, 0)?.broadcast_add(&types)?)?;
    let frequencies: Vec<f32> = (0..dim / 2)
        .map(|pair| libm::powf(spec.family.rope_base(), -2.0 * pair as f32 / dim as f32))
        .collect();
    let positions = Tensor::arange(0_f32, tokens.len() as f32, &Device::Cpu)?.unsqueeze(1)?;
    let angles = positions.matmul(&Tensor::new(frequencies, &Device::Cpu)?.unsqueeze(0)?)?;
    let heads = |x: &Tensor| -> candle_core::Result<Tensor> {
        x.reshape((tokens.len(), spec.heads, dim))?.transpose(0, 1)?.contiguous()
    };
    let rotated = |x: &Tensor| -> candle_core::Result<Tensor> {
        candle_nn::rotary_emb::rope(&heads(x)?.unsqueeze(0)?, &angles.cos()?, &angles.sin()?)?.squeeze(0)
    };
    for layer in 0..spec.layers {
        let name = |part: &str| format!("encoder.layers.{layer}.{part}");
        let linear = |part: &str, gguf: &str, from: usize, to: usize| -> candle_core::Result<_> {
            let weight = weights.get((to, from), &name(&format!("{part}.weight")))?;
            let weight = adapted(&format!("blk.{layer}.{gguf}.weight"), weight)?;
            let bias = weights.get(to, &name(&format!("{part}.bias")))?;
            Ok(candle_nn::Linear::new(weight, Some(bias)))
        };
        let all = linear("attn.Wqkv", "attn_qkv", width, 3 * width)?.forward(&x)?;
        let part = |index: usize| all.narrow(1, index * width, width)?.contiguous();
        let scores = (rotated(&part(0)?)?.matmul(&rotated(&part(1)?)?.t()?)? / (dim as f64).sqrt())?;
        let mixed = candle_nn::ops::softmax(&scores, D::Minus1)?.matmul(&heads(&part(2)?)?)?;
        let mixed = mixed.transpose(0, 1)?.contiguous()?.reshape((tokens.len(), width))?;
        x = norm(&name("norm1"))?
            .forward(&(&x + linear("attn.out_proj", "attn_output", width, width)?.forward(&mixed)?)?)?;
        let fed = if spec.family.has_experts(layer) {
            let router = weights.get((4, width), &name("router.weight"))?;
            let up = weights.get((4, inner, width), &name("ffn_up_exps"))?;
            let down = weights.get((4, width, inner), &name("ffn_down_exps"))?;
            let mut rows = Vec::new();
            for row in 0..tokens.len() {
                let row = x.narrow(0, row, 1)?;
                let shares = candle_nn::ops::softmax(&row.matmul(&router.t()?)?, D::Minus1)?;
                let shares: Vec<f32> = shares.flatten_all()?.to_vec1()?;
                let mut order: Vec<usize> = (0..4).collect();
                order.sort_by(|a, b| shares[*b].total_cmp(&shares[*a]));
                let mut sum = row.zeros_like()?;
                for expert in &order[..2] {
                    let inner = row.matmul(&up.get(*expert)?.t()?)?.gelu_erf()?;
                    sum = (sum + (inner.matmul(&down.get(*expert)?.t()?)? * f64::from(shares[*expert]))?)?;
                }
                rows.push(sum);
            }
            Tensor::cat(&rows, 0)?
        } else {
            linear("mlp.fc2", "ffn_down", inner, width)?
                .forward(&linear("mlp.fc11", "ffn_up", width, inner)?.forward(&x)?.gelu_erf()?)?
        };
        x = norm(&name("norm2"))?.forward(&(x + fed)?)?;
    }
    Ok(x)
}

#[test]
fn every_family_agrees_with_its_reference() {
    for family in EncoderFamily::OTHERS {
        let spec = spec(family);
        let (_directory, encoder) = of(&spec);
        for length in [1, 2, 17, 64, 65, 200, 256] {
            let tokens = tokens(length, 3);
            let expected: Vec<f32> = hidden(&spec, &tokens).mean(0).unwrap().to_vec1().unwrap();
            let got = vectors(&encoder, &[one(&tokens)], 2).remove(0);
            let cosine = cosine(&got, &expected);
            assert!(cosine > 0.999_999, "{family:?} of {length}: {cosine}");
        }
    }
}

/// Numbers of heads that are no power of two have slopes of two sequences, as in jina-embeddings-v2-base.
#[test]
fn jina_v2_agrees_with_candle_whatever_the_number_of_heads() {
    for heads in [1, 2, 3, 6, 8, 12] {
        let spec = Bert { width: 96, heads, ..spec(EncoderFamily::JinaBertV2) };
        let (_directory, encoder) = of(&spec);
        for length in [2, 65, 200] {
            let tokens = tokens(length, 3);
            let hidden = hidden(&spec, &tokens);
            let got = vectors(&encoder, &[one(&tokens)], 2).remove(0);
            let cosine = cosine(&got, &hidden.mean(0).unwrap().to_vec1::<f32>().unwrap());
            assert!(cosine > 0.999_999, "{heads} heads, {length} tokens: {cosine}");
        }
    }
}

#[test]
fn the_gate_of_jina_v2_may_have_a_matrix_of_its_own() {
    let spec = spec(EncoderFamily::JinaBertV2);
    let (_directory, fused) = of(&spec);
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("apart.gguf");
    let mut file = spec.file().unwrap();
    for layer in 0..spec.layers {
        let both = file.tensor_mut(&format!("blk.{layer}.ffn_up.weight")).unwrap();
        both.shape[1] /= 2;
        let mut gate = both.clone();
        both.data.drain(..both.data.len() / 2);
        gate.name = format!("blk.{layer}.ffn_gate.weight");
        gate.data.truncate(gate.data.len() / 2);
        file.tensors.push(gate);
    }
    file.write(&mut std::fs::File::create(&path).unwrap()).unwrap();
    let tokens = tokens(70, 2);
    assert!(vectors(&load(&path), &[one(&tokens)], 2) == vectors(&fused, &[one(&tokens)], 2));
}

/// Texts are longer than a window, and one block sees all. The remaining difference is that llama.cpp looks
/// GELU up in a table of f16.
#[test]
fn vectors_of_gemma_embedding_are_those_of_llama_cpp() {
    let spec = Bert { layers: 4, ..spec(EncoderFamily::GemmaEmbedding) };
    let (_directory, encoder) = of(&spec);
    let mut compared = 0;
    for line in include_str!("gemma_embedding.tsv").lines().filter(|line| !line.starts_with('#')) {
        let (length, vector) = line.split_once('\t').unwrap();
        let expected: Vec<f32> = vector.split(' ').map(|value| value.parse().unwrap()).collect();
        let tokens = tokens(length.parse().unwrap(), 3);
        let got = vectors(&encoder, &[one(&tokens)], 2).remove(0);
        let cosine = cosine(&got, &expected);
        assert!(cosine > 0.999_999, "{length} tokens: {cosine}");
        compared += 1;
    }
    assert_eq!(compared, 3);
}

#[test]
fn the_head_of_modern_bert_gives_the_scores_of_candle() {
    let spec = Bert { labels: 2, ..spec(EncoderFamily::ModernBert) };
    let (_directory, encoder) = of(&spec);
    for length in [1, 40, 130] {
        let tokens = tokens(length, 5);
        let weights = weights(&spec);
        let state = hidden(&spec, &tokens).mean_keepdim(0).unwrap();
        let dense = candle_nn::linear_no_bias(spec.width, spec.width, weights.pp("head.dense")).unwrap();
        let norm = candle_nn::layer_norm_no_bias(spec.width, 1e-12, weights.pp("head.norm")).unwrap();
        let classifier = candle_nn::linear(spec.width, 2, weights.pp("classifier")).unwrap();
        let state = norm.forward(&dense.forward(&state).unwrap().gelu_erf().unwrap()).unwrap();
        let expected: Vec<f32> =
            classifier.forward(&state).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let got = scores(&encoder, &[EncoderText { tokens: &tokens, second: 1, adapter: None }]);
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.iter().zip(&expected) {
            assert!((got - expected).abs() < 2e-3, "{got} for {expected}, {length} tokens");
        }
    }
}

#[test]
fn company_threads_and_instructions_change_no_byte_of_any_family() {
    for family in EncoderFamily::OTHERS {
        let (_directory, encoder) = of(&spec(family));
        let mixed = mixed();
        let texts: Vec<EncoderText<'_>> = mixed.iter().map(|tokens| one(tokens)).collect();
        let alone: Vec<Vec<f32>> =
            texts.iter().map(|text| vectors(&encoder, &[*text], 1).remove(0)).collect();
        assert!(vectors(&encoder, &texts, 3) == alone, "{family:?} beside others");
        for set in [Instructions::Portable, Instructions::Avx2] {
            let other = vectors_on(&encoder, &texts, &Pool::new(2, set, &start()).unwrap());
            assert!(other == alone, "{family:?} with {set:?}");
        }
        drop(pool(1));
    }
}

fn start() -> std::sync::Arc<dyn Fn() + Send + Sync> {
    std::sync::Arc::new(|| {})
}

#[test]
fn a_file_that_contradicts_itself_is_refused() {
    let refused = |family: EncoderFamily, spoil: &dyn Fn(&mut steadytext_test_models::gguf::File)| {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("model.gguf");
        let mut file = spec(family).file().unwrap();
        spoil(&mut file);
        file.write(&mut std::fs::File::create(&path).unwrap()).unwrap();
        let gguf = crate::gguf::Gguf::open(&path).unwrap();
        EncoderNetwork::check(&gguf).unwrap_err().to_string()
    };
    use steadytext_test_models::gguf::Value;
    let set = |family: EncoderFamily, key: &'static str, value: Value| {
        refused(family, &move |file| file.set(key, value.clone()))
    };
    let moe = EncoderFamily::NomicBertMoe;
    assert!(
        set(moe, "nomic-bert-moe.moe_every_n_layers", Value::U32(1)).contains("blk.2.ffn_gate_inp.weight")
    );
    assert!(set(moe, "nomic-bert-moe.expert_used_count", Value::U32(9)).contains("9 of 4"));
    let modern = EncoderFamily::ModernBert;
    assert!(set(modern, "modern-bert.hidden_activation", Value::String("relu".into())).contains("\"relu\""));
    assert!(set(modern, "modern-bert.classifier.pooling_type", Value::U32(7)).contains("is 7"));
    let gemma = EncoderFamily::GemmaEmbedding;
    for key in ["dense_2_feat_in", "dense_2_feat_out", "dense_3_feat_in", "dense_3_feat_out"] {
        let key: &'static str = Box::leak(format!("gemma-embedding.{key}").into_boxed_str());
        assert!(set(gemma, key, Value::U32(65)).contains("no two layers"), "{key}");
    }
    assert!(set(gemma, "gemma-embedding.attention.causal", Value::Bool(true)).contains("attention.causal"));
    assert!(set(gemma, "gemma-embedding.attn_logit_softcapping", Value::F32(50.0)).contains("softcapping"));
    assert!(set(gemma, "gemma-embedding.attention.head_count_kv", Value::U32(3)).contains("heads"));
    // The file of an adapter, as llama.cpp's converter writes one for each task of jina-embeddings-v3.
    let v3 = EncoderFamily::JinaBertV3;
    assert!(set(v3, "general.type", Value::String("adapter".into())).contains("it is an adapter (LoRA)"));
    assert!(
        refused(v3, &|file| {
            let mut adapter = file.tensor_mut("blk.0.attn_qkv.weight").unwrap().clone();
            adapter.name.push_str(".lora_a");
            file.tensors.push(adapter);
        })
        .contains("attn_qkv.weight.lora_a")
    );
    let jina = EncoderFamily::JinaBertV2;
    for bias in [-8.0, f32::NAN, f32::INFINITY] {
        let said = set(jina, "jina-bert-v2.attention.max_alibi_bias", Value::F32(bias));
        assert!(said.contains("max_alibi_bias"), "{bias}: {said}");
    }
    assert!(set(jina, "jina-bert-v2.attention.clamp_kqv", Value::F32(1.0)).contains("clamp_kqv"));
    assert!(set(jina, "jina-bert-v2.attention.causal", Value::Bool(true)).contains("causal"));
    assert!(set(jina, "jina-bert-v2.rope.freq_base", Value::F32(1e4)).contains("rope.freq_base"));
    assert!(set(jina, "jina-bert-v2.expert_count", Value::U32(4)).contains("expert"));
    assert!(
        set(EncoderFamily::NomicBert, "nomic-bert.attention.max_alibi_bias", Value::F32(8.0))
            .contains("not 0")
    );
    let rename = |family, from: &'static str, to: &'static str| {
        refused(family, &move |file| file.tensor_mut(from).unwrap().name = to.to_owned())
    };
    // Tensors of the model for code.
    assert!(rename(jina, "blk.0.attn_q.bias", "blk.0.attn_q_norm.bias").contains("attn_q_norm.bias"));
    assert!(rename(jina, "blk.1.attn_output_norm.bias", "blk.1.attn_norm_2.bias").contains("attn_"));
    assert!(rename(modern, "output_norm.weight", "output_norm.bias").contains("output_norm"));
    assert!(rename(gemma, "dense_3.weight", "dense_4.weight").contains("dense_"));
    assert!(rename(gemma, "output_norm.weight", "output.weight").contains("output"));
    assert!(
        rename(EncoderFamily::NomicBert, "blk.0.ffn_gate.weight", "blk.0.ffn_gate_inp.weight")
            .contains("ffn_gate")
    );
}
