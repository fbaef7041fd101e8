//! The encoder against candle-transformers' BERT, and against itself with other texts in the pass.

mod adapters;
mod families;

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config};
use steadytext_test_models::{Bert, Kind, Pooling};
use tempfile::TempDir;

use super::{EncoderNetwork, EncoderText, EncoderWorkspace};
use crate::ModelSource;
use crate::computing::Loading;
use crate::gguf::Gguf;
use crate::kernels::Pool;
use crate::kernels::instructions::Instructions;

fn pool(threads: usize) -> Pool {
    let start: Arc<dyn Fn() + Send + Sync> = Arc::new(|| {});
    Pool::new(threads, Instructions::best(), &start).unwrap()
}

fn load(path: &Path) -> EncoderNetwork {
    let gguf = ModelSource::File(path.to_owned()).open().unwrap();
    EncoderNetwork::load(&gguf, &Loading { pool: &pool(2), stop: &|| false }).unwrap()
}

/// Both forms of a model in a directory.
fn written(spec: &Bert) -> (TempDir, EncoderNetwork, EncoderNetwork) {
    let directory = TempDir::new().unwrap();
    let (file, folder) = (directory.path().join("model.gguf"), directory.path().join("folder"));
    spec.write(&file).unwrap();
    spec.write_folder(&folder).unwrap();
    let (of_file, of_folder) = (load(&file), load(&folder));
    (directory, of_file, of_folder)
}

fn tokens(count: usize, seed: u32) -> Vec<u32> {
    (0..count as u32).map(|i| 5 + (i * 7919 + i * i * 31 + seed * 101) % 500).collect()
}

/// Vectors of texts that are computed together.
fn vectors(encoder: &EncoderNetwork, texts: &[EncoderText<'_>], threads: usize) -> Vec<Vec<f32>> {
    vectors_on(encoder, texts, &pool(threads))
}

fn vectors_on(encoder: &EncoderNetwork, texts: &[EncoderText<'_>], pool: &Pool) -> Vec<Vec<f32>> {
    let mut workspace = encoder.workspace(pool.threads()).unwrap();
    encoder.begin(texts, &mut workspace, pool).unwrap();
    while !encoder.advance(&mut workspace, pool) {}
    (0..texts.len())
        .map(|text| {
            assert_eq!(encoder.fault(&workspace, text), None);
            encoder.vector(&mut workspace, text, pool)
        })
        .collect()
}

fn scores(encoder: &EncoderNetwork, texts: &[EncoderText<'_>]) -> Vec<f32> {
    let (pool, mut workspace) = (pool(2), encoder.workspace(2).unwrap());
    encoder.begin(texts, &mut workspace, &pool).unwrap();
    while !encoder.advance(&mut workspace, &pool) {}
    encoder.scores(&mut workspace, &(0..texts.len()).collect::<Vec<_>>(), &pool)
}

/// A single text.
fn one(tokens: &[u32]) -> EncoderText<'_> {
    EncoderText { tokens, second: tokens.len(), adapter: None }
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// Candle's last hidden states, a row for each token.
struct Oracle {
    model: BertModel,
    weights: VarBuilder<'static>,
}

impl Oracle {
    fn new(spec: &Bert) -> Oracle {
        let directory = TempDir::new().unwrap();
        spec.write_folder(directory.path()).unwrap();
        let mut config: serde_json::Value =
            serde_json::from_slice(&std::fs::read(directory.path().join("config.json")).unwrap()).unwrap();
        // Keys that candle requires, although nothing uses them.
        for (key, value) in [("hidden_dropout_prob", 0.0), ("initializer_range", 0.0)] {
            config[key] = value.into();
        }
        config["pad_token_id"] = 0.into();
        let config: Config = serde_json::from_value(config).unwrap();
        let bytes = std::fs::read(directory.path().join("model.safetensors")).unwrap();
        let weights = VarBuilder::from_buffered_safetensors(bytes, DType::F32, &Device::Cpu).unwrap();
        let inside = if spec.labels > 0 { weights.pp("bert") } else { weights.clone() };
        Oracle { model: BertModel::load(inside, &config).unwrap(), weights }
    }

    fn hidden(&self, text: EncoderText<'_>) -> Tensor {
        let ids = Tensor::new(text.tokens, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let types: Vec<u32> = (0..text.tokens.len()).map(|at| u32::from(at >= text.second)).collect();
        let types = Tensor::new(types, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        self.model.forward(&ids, &types, None).unwrap().squeeze(0).unwrap()
    }

    fn vector(&self, text: EncoderText<'_>, pooling: Pooling) -> Vec<f32> {
        let hidden = self.hidden(text);
        match pooling {
            Pooling::Cls => hidden.get(0).unwrap(),
            Pooling::Last => hidden.get(text.tokens.len() - 1).unwrap(),
            _ => hidden.mean(0).unwrap(),
        }
        .to_vec1()
        .unwrap()
    }

    /// Pooler and classifier, by hand.
    fn scores(&self, text: EncoderText<'_>, spec: &Bert) -> Vec<f32> {
        let linear = |name: &str, outputs: usize, x: &Tensor| {
            let weights = self.weights.pp(name);
            let weight = weights.get((outputs, spec.width), "weight").unwrap();
            let bias = weights.get(outputs, "bias").unwrap();
            x.matmul(&weight.t().unwrap()).unwrap().broadcast_add(&bias).unwrap()
        };
        let first = self.hidden(text).get(0).unwrap().unsqueeze(0).unwrap();
        let pooled = linear("bert.pooler.dense", spec.width, &first).tanh().unwrap();
        linear("classifier", spec.labels, &pooled).flatten_all().unwrap().to_vec1().unwrap()
    }
}

#[test]
fn it_agrees_with_candle_in_every_pooling() {
    for pooling in [Pooling::Mean, Pooling::Cls] {
        let spec = Bert { pooling, layers: 3, ..Bert::default() };
        let (_directory, of_file, of_folder) = written(&spec);
        let oracle = Oracle::new(&spec);
        for length in [1, 2, 17, 64, 65, 200, 256] {
            let tokens = tokens(length, 3);
            let expected = oracle.vector(one(&tokens), pooling);
            for encoder in [&of_file, &of_folder] {
                let got = vectors(encoder, &[one(&tokens)], 2).remove(0);
                let cosine = cosine(&got, &expected);
                assert!(cosine > 0.999_999, "{pooling:?} of {length}: {cosine}");
                assert!((got.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5);
            }
        }
    }
}

#[test]
fn a_pair_of_texts_gets_the_scores_that_candle_gives_it() {
    let spec = Bert { labels: 3, ..Bert::default() };
    let (_directory, of_file, of_folder) = written(&spec);
    let oracle = Oracle::new(&spec);
    let (a, b) = (tokens(40, 1), tokens(70, 2));
    let pair = |tokens, second| EncoderText { tokens, second, adapter: None };
    let pairs = [pair(&a[..], 9), pair(&b[..], 50), pair(&a[..], 10)];
    let expected: Vec<f32> = pairs.iter().flat_map(|pair| oracle.scores(*pair, &spec)).collect();
    for encoder in [&of_file, &of_folder] {
        assert_eq!(encoder.scores_per_text(), 3);
        let got = scores(encoder, &pairs);
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.iter().zip(&expected) {
            assert!((got - expected).abs() < 2e-3, "{got} for {expected}");
        }
    }
    assert_ne!(expected[..3], expected[6..], "where the second text begins makes a difference");
}

#[test]
fn a_folder_and_a_file_of_the_same_weights_give_the_same_bytes() {
    for kind in [Kind::F32, Kind::F16, Kind::BF16] {
        let (_directory, of_file, of_folder) = written(&Bert { kind, ..Bert::default() });
        let tokens = tokens(50, 1);
        assert!(vectors(&of_file, &[one(&tokens)], 2) == vectors(&of_folder, &[one(&tokens)], 2), "{kind:?}");
    }
}

#[test]
fn one_matrix_for_queries_keys_and_values_gives_the_bytes_of_three() {
    let (_directory, apart, _) = written(&Bert::default());
    let (_directory, fused, _) = written(&Bert { fused: true, ..Bert::default() });
    let tokens = tokens(100, 1);
    assert!(vectors(&apart, &[one(&tokens)], 2) == vectors(&fused, &[one(&tokens)], 2));
}

#[test]
fn quantized_weights_come_close_to_whole_ones() {
    let whole = Bert { width: 256, feed_forward: 512, ..Bert::default() };
    let (_directory, exact, _) = written(&whole);
    let tokens = tokens(60, 1);
    let expected = vectors(&exact, &[one(&tokens)], 2).remove(0);
    for (kind, least) in [(Kind::F16, 0.99999), (Kind::Q8_0, 0.999), (Kind::Q6K, 0.998), (Kind::Q4K, 0.97)] {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("model.gguf");
        Bert { kind, ..whole.clone() }.write(&path).unwrap();
        let cosine = cosine(&vectors(&load(&path), &[one(&tokens)], 2)[0], &expected);
        assert!(cosine > least, "{kind:?}: {cosine}");
    }
}

/// Texts of many lengths, some on both sides of a tile of attention.
fn mixed() -> Vec<Vec<u32>> {
    [1, 2, 3, 20, 63, 64, 65, 10, 130, 5, 33]
        .iter()
        .zip(0..)
        .map(|(length, seed)| tokens(*length, seed))
        .collect()
}

#[test]
fn company_threads_and_instructions_change_no_byte() {
    for kind in [Kind::F32, Kind::F16, Kind::Q8_0, Kind::Q4K] {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("model.gguf");
        Bert { kind, width: 256, feed_forward: 512, heads: 8, ..Bert::default() }.write(&path).unwrap();
        let encoder = load(&path);
        let mixed = mixed();
        let texts: Vec<EncoderText<'_>> = mixed.iter().map(|tokens| one(tokens)).collect();
        let alone: Vec<Vec<f32>> =
            texts.iter().map(|text| vectors(&encoder, &[*text], 1).remove(0)).collect();
        for threads in [1, 2, 3] {
            assert!(vectors(&encoder, &texts, threads) == alone, "{kind:?} on {threads} threads");
        }
        let backwards: Vec<EncoderText<'_>> = texts.iter().rev().copied().collect();
        let mut got = vectors(&encoder, &backwards, 2);
        got.reverse();
        assert!(got == alone, "{kind:?} backwards");
        for set in [Instructions::Portable, Instructions::Avx2] {
            let start: Arc<dyn Fn() + Send + Sync> = Arc::new(|| {});
            let other = vectors_on(&encoder, &texts, &Pool::new(2, set, &start).unwrap());
            assert!(other == alone, "{kind:?} with {set:?}");
        }
    }
}

#[test]
fn a_row_that_is_not_finite_spoils_its_own_text_only() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("model.gguf");
    let mut file = Bert::default().file().unwrap();
    // The embedding of token 400.
    let table = file.tensor_mut("token_embd.weight").unwrap();
    table.data[400 * 64 * 4..][..4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    file.write(&mut std::fs::File::create(&path).unwrap()).unwrap();
    let encoder = load(&path);
    let (sound, spoilt) = ([10, 11, 12], [10, 400, 12]);
    let (pool, mut workspace) = (pool(2), encoder.workspace(2).unwrap());
    encoder.begin(&[one(&sound), one(&spoilt), one(&sound)], &mut workspace, &pool).unwrap();
    while !encoder.advance(&mut workspace, &pool) {}
    assert_eq!(encoder.fault(&workspace, 1), Some(0), "all rows of the text see it");
    assert_eq!((encoder.fault(&workspace, 0), encoder.fault(&workspace, 2)), (None, None));
    let alone = vectors(&encoder, &[one(&sound)], 1).remove(0);
    let mut vector = |text| encoder.vector(&mut workspace, text, &pool);
    assert!(vector(0) == alone && vector(2) == alone);
}

#[test]
fn a_long_text_gets_the_memory_that_it_needs_and_gives_it_back() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("model.gguf");
    Bert { context: 4096, ..Bert::default() }.write(&path).unwrap();
    let encoder = load(&path);
    let (pool, usual) = (pool(2), encoder.rows());
    assert_eq!((usual, encoder.more_bytes(usual, 2)), (1024, 0));
    let mut workspace = encoder.workspace(2).unwrap();
    let (short, long) = (tokens(20, 1), tokens(4096, 2));
    let vector = |texts: &[EncoderText<'_>], workspace: &mut EncoderWorkspace| {
        encoder.begin(texts, workspace, &pool).unwrap();
        while !encoder.advance(workspace, &pool) {}
        encoder.vector(workspace, 0, &pool)
    };
    let first = vector(&[one(&short)], &mut workspace);
    assert_eq!(workspace.rows(), usual);
    // Two texts that fill the context, to be compared.
    let both = vector(&[one(&long), one(&long)], &mut workspace);
    assert_eq!(workspace.rows(), 8192);
    assert!(encoder.more_bytes(8192, 2) > 4 * EncoderNetwork::workspace_bytes(encoder.spec(), 2));
    assert!(vector(&[one(&long)], &mut workspace) == both);
    assert_eq!(workspace.rows(), 4096);
    encoder.rest(&mut workspace, 2);
    assert_eq!(workspace.rows(), usual);
    assert!(vector(&[one(&short)], &mut workspace) == first);
}

#[test]
fn tensors_without_a_place_and_shapes_that_do_not_fit_are_refused() {
    let refused = |spoil: &dyn Fn(&mut steadytext_test_models::gguf::File)| {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("model.gguf");
        let mut file = Bert::default().file().unwrap();
        spoil(&mut file);
        file.write(&mut std::fs::File::create(&path).unwrap()).unwrap();
        let gguf = Gguf::open(&path).unwrap();
        let error = EncoderNetwork::load(&gguf, &Loading { pool: &pool(1), stop: &|| false }).err().unwrap();
        assert!(
            !path.with_file_name("model.gguf.panels").exists(),
            "nothing is stored for a file that is refused"
        );
        error.to_string()
    };
    let rename = |from: &'static str, to: &'static str| {
        refused(&move |file| file.tensor_mut(from).unwrap().name = to.to_owned())
    };
    assert!(
        rename("blk.0.attn_q.bias", "blk.0.attn_q_norm.weight")
            .contains("\"blk.0.attn_q_norm.weight\" has no place")
    );
    assert!(rename("blk.1.ffn_up.weight", "blk.0.ffn_up.weights").contains("has no place in the encoder"));
    assert!(rename("token_embd_norm.bias", "cls.bias").contains("\"token_embd_norm.bias\" is missing"));
    let set = |key: &'static str, value: u32| {
        refused(&move |file| file.set(key, steadytext_test_models::gguf::Value::U32(value)))
    };
    assert!(set("bert.context_length", 257).contains("has 256 rows for a context of 257"));
    assert!(set("bert.attention.head_count", 5).contains("a width of 64 cannot be split into 5 heads"));
    assert!(set("bert.feed_forward_length", 64).contains("has shape [64, 128] instead of [64, 64]"));
    assert!(set("bert.pooling_type", 9).contains("key \"bert.pooling_type\" is 9"));
}
