//! Random-weight encoders of the BERT family, as GGUF files in llama.cpp's words and as folders in those of
//! transformers.
//!
//! Both are made of the same numbers, so that they must embed alike.

use std::path::Path;

use crate::encoders::{self, EncoderFamily};
use crate::gguf::{File, Tensor, Value};
use crate::random::Random;
use crate::{Error, Kind, Pooling, weights};

/// The first tokens of the vocabulary.
pub(crate) const CONTROL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

/// An encoder to be made. [`Bert::default`] is a tiny one.
#[derive(Debug, Clone, PartialEq)]
pub struct Bert {
    /// The family, which decides the layers.
    pub family: EncoderFamily,
    /// Transformer blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width of the feed-forward block.
    pub feed_forward: usize,
    /// Tokens, 256 at least.
    pub vocab: usize,
    /// Tokens that a text may have.
    pub context: usize,
    /// Element type of the matrices in layers; embeddings are F32.
    pub kind: Kind,
    /// The pooling of hidden states to a vector.
    pub pooling: Pooling,
    /// Labels of a classifier behind a pooler; 0 for an encoder without.
    pub labels: usize,
    /// Queries, keys and values in one matrix (GGUF only).
    pub fused: bool,
    /// Everything random follows from it.
    pub seed: u64,
}

impl Default for Bert {
    fn default() -> Self {
        Bert {
            family: EncoderFamily::Bert,
            layers: 2,
            width: 64,
            heads: 4,
            feed_forward: 128,
            vocab: 600,
            context: 256,
            kind: Kind::F32,
            pooling: Pooling::Mean,
            labels: 0,
            fused: false,
            seed: 1,
        }
    }
}

/// A matrix or vector with its names in both worlds.
#[derive(Clone)]
pub(crate) struct Named {
    pub(crate) gguf: String,
    pub(crate) transformers: String,
    /// The length of a row first.
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Vec<f32>,
    pub(crate) kind: Kind,
}

impl Bert {
    /// The shape of all-MiniLM-L6-v2.
    pub fn minilm() -> Self {
        Bert {
            layers: 6,
            width: 384,
            heads: 12,
            feed_forward: 1536,
            vocab: 30_522,
            context: 512,
            ..Bert::default()
        }
    }

    /// The vocabulary; of most families as in `vocab.txt`: letters, digits and punctuation, alone and as
    /// continuations, then pairs and triples of letters.
    pub fn vocabulary(&self) -> Vec<String> {
        if let Some((tokens, _)) = encoders::vocabulary(self) {
            return tokens;
        }
        let letters: Vec<char> = ('a'..='z').chain('0'..='9').collect();
        let mut tokens: Vec<String> = CONTROL.iter().map(ToString::to_string).collect();
        tokens.extend((b'!'..=b'~').map(char::from).filter(|c| !c.is_ascii_uppercase()).map(String::from));
        tokens.extend(letters.iter().map(|letter| format!("##{letter}")));
        tokens.extend(["é", "日", "本", "ж", "##ж"].map(str::to_owned));
        let mut words = letters.iter().flat_map(|a| letters.iter().map(move |b| format!("{a}{b}")));
        let mut longer = letters.iter().flat_map(|a| {
            let letters = &letters;
            letters.iter().flat_map(move |b| letters.iter().map(move |c| format!("{a}{b}{c}")))
        });
        while tokens.len() < self.vocab {
            let Some(word) = words.next().or_else(|| longer.next()) else { break };
            tokens.push(format!("##{word}"));
            tokens.push(word);
        }
        tokens.truncate(self.vocab);
        tokens
    }

    fn tensors(&self) -> Vec<Named> {
        if !self.family.is_bert() {
            return encoders::tensors(self);
        }
        let Bert { width, feed_forward, seed, .. } = *self;
        let mut tensors = Vec::new();
        let mut add =
            |gguf: String, transformers: String, shape: Vec<usize>, mean: f32, deviation: f32, kind| {
                let mut random = Random::named(seed, &transformers);
                let count = shape.iter().product();
                let values = (0..count).map(|_| mean + random.normal() * deviation).collect();
                tensors.push(Named { gguf, transformers, shape, values, kind });
            };
        for (gguf, name, rows) in [
            ("token_embd", "word_embeddings", self.vocabulary().len()),
            ("position_embd", "position_embeddings", self.context),
            ("token_types", "token_type_embeddings", self.family.token_types()),
        ] {
            let names = (format!("{gguf}.weight"), format!("embeddings.{name}.weight"));
            add(names.0, names.1, vec![width, rows], 0.0, 1.0, Kind::F32);
        }
        let norm =
            |gguf: &str, name: &str, add: &mut dyn FnMut(String, String, Vec<usize>, f32, f32, Kind)| {
                add(format!("{gguf}.weight"), format!("{name}.weight"), vec![width], 1.0, 0.1, Kind::F32);
                add(format!("{gguf}.bias"), format!("{name}.bias"), vec![width], 0.0, 0.1, Kind::F32);
            };
        let dense = |gguf: &str,
                     name: &str,
                     (inputs, outputs): (usize, usize),
                     kind: Kind,
                     add: &mut dyn FnMut(String, String, Vec<usize>, f32, f32, Kind)| {
            let deviation = 1.0 / (inputs as f32).sqrt();
            add(
                format!("{gguf}.weight"),
                format!("{name}.weight"),
                vec![inputs, outputs],
                0.0,
                deviation,
                kind,
            );
            add(format!("{gguf}.bias"), format!("{name}.bias"), vec![outputs], 0.0, 0.1, Kind::F32);
        };
        norm("token_embd_norm", "embeddings.LayerNorm", &mut add);
        for layer in 0..self.layers {
            let (gguf, name) = (format!("blk.{layer}"), format!("encoder.layer.{layer}"));
            for (part, long) in [
                ("attn_q", "attention.self.query"),
                ("attn_k", "attention.self.key"),
                ("attn_v", "attention.self.value"),
                ("attn_output", "attention.output.dense"),
            ] {
                let names = (format!("{gguf}.{part}"), format!("{name}.{long}"));
                dense(&names.0, &names.1, (width, width), self.kind, &mut add);
            }
            norm(
                &format!("{gguf}.attn_output_norm"),
                &format!("{name}.attention.output.LayerNorm"),
                &mut add,
            );
            let names = (format!("{gguf}.ffn_up"), format!("{name}.intermediate.dense"));
            dense(&names.0, &names.1, (width, feed_forward), self.kind, &mut add);
            let names = (format!("{gguf}.ffn_down"), format!("{name}.output.dense"));
            dense(&names.0, &names.1, (feed_forward, width), self.kind, &mut add);
            norm(&format!("{gguf}.layer_output_norm"), &format!("{name}.output.LayerNorm"), &mut add);
        }
        if self.labels > 0 {
            let [pooler, classifier] = match self.family {
                EncoderFamily::XlmRoberta => ["classifier.dense", "classifier.out_proj"],
                _ => ["pooler.dense", "classifier"],
            };
            dense("cls", pooler, (width, width), Kind::F32, &mut add);
            dense("cls.output", classifier, (width, self.labels), Kind::F32, &mut add);
        }
        tensors
    }

    /// The GGUF file.
    ///
    /// # Errors
    /// An error if a tensor cannot be quantized.
    pub fn file(&self) -> Result<File, Error> {
        let number = |value: usize| Value::U32(value as u32);
        let tokens = self.vocabulary();
        let types = tokens.iter().map(|token| if CONTROL.contains(&&**token) { 3 } else { 1 }).collect();
        let told = |token: &String| match token.strip_prefix("##") {
            Some(continuation) => continuation.to_owned(),
            None if CONTROL.contains(&&**token) => token.clone(),
            None => format!("▁{token}"),
        };
        // Cross-encoders say that they rank.
        let pooling = if self.labels > 0 { 4 } else { self.pooling as u32 };
        let architecture = self.family.name();
        let keys = [
            ("general.architecture", Value::String(architecture.into())),
            ("general.name", Value::String("random bert".into())),
            ("bert.block_count", number(self.layers)),
            ("bert.context_length", number(self.context)),
            ("bert.embedding_length", number(self.width)),
            ("bert.feed_forward_length", number(self.feed_forward)),
            ("bert.attention.head_count", number(self.heads)),
            ("bert.attention.layer_norm_epsilon", Value::F32(1e-12)),
            ("bert.attention.causal", Value::Bool(false)),
            ("bert.pooling_type", Value::U32(pooling)),
            ("tokenizer.ggml.token_type_count", number(self.family.token_types())),
        ];
        let word_piece = [
            ("tokenizer.ggml.model", Value::String("bert".into())),
            ("tokenizer.ggml.tokens", Value::Strings(tokens.iter().map(told).collect())),
            ("tokenizer.ggml.token_type", Value::I32s(types)),
            ("tokenizer.ggml.padding_token_id", Value::U32(0)),
            ("tokenizer.ggml.unknown_token_id", Value::U32(1)),
            ("tokenizer.ggml.cls_token_id", Value::U32(2)),
            ("tokenizer.ggml.seperator_token_id", Value::U32(3)),
            ("tokenizer.ggml.mask_token_id", Value::U32(4)),
        ];
        let mut tensors = Vec::new();
        for named in self.fuse(self.tensors()) {
            tensors.push(weights::quantize(named.gguf, named.shape, named.values, named.kind)?);
        }
        let of_family = |key: &str| match key.strip_prefix("bert.") {
            Some(rest) => format!("{architecture}.{rest}"),
            None => key.to_owned(),
        };
        let vocabulary = encoders::vocabulary(self).map_or(word_piece.into(), |(_, keys)| keys);
        let mut keys: Vec<(String, Value)> =
            keys.into_iter().chain(vocabulary).map(|(key, value)| (of_family(key), value)).collect();
        keys.extend(encoders::keys(self));
        Ok(File { version: 3, keys, tensors })
    }

    /// Puts queries, keys and values into one matrix, if that is asked for.
    fn fuse(&self, tensors: Vec<Named>) -> Vec<Named> {
        let mut result: Vec<Named> = Vec::new();
        for tensor in tensors {
            let parts = ["attn_q.", "attn_k.", "attn_v."];
            let part = parts.iter().find(|part| tensor.gguf.contains(**part)).filter(|_| self.fused);
            let Some(part) = part else {
                result.push(tensor);
                continue;
            };
            let name = tensor.gguf.replace(part, "attn_qkv.");
            match result.iter_mut().find(|other| other.gguf == name) {
                Some(fused) => {
                    fused.values.extend(tensor.values);
                    if let (Some(rows), Some(more)) = (fused.shape.last_mut(), tensor.shape.last()) {
                        *rows += more;
                    }
                }
                None => result.push(Named { gguf: name, ..tensor }),
            }
        }
        result
    }

    /// Writes the GGUF file.
    ///
    /// # Errors
    /// The system's, and those of [`Bert::file`].
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        Ok(self.file()?.write(&mut std::io::BufWriter::new(std::fs::File::create(path)?))?)
    }

    /// Writes a folder as sentence-transformers do. Matrices are F32, F16 or BF16.
    ///
    /// # Errors
    /// The system's; where a tensor cannot be converted.
    pub fn write_folder(&self, folder: &Path) -> Result<(), Error> {
        std::fs::create_dir_all(folder.join("1_Pooling"))?;
        std::fs::write(folder.join("config.json"), encoders::config(self))?;
        if let Some(tokenizer) = encoders::tokenizer(self) {
            std::fs::write(folder.join("tokenizer.json"), tokenizer)?;
        } else {
            let mut lines = self.vocabulary().join("\n");
            lines.push('\n');
            std::fs::write(folder.join("vocab.txt"), lines)?;
        }
        std::fs::write(
            folder.join("1_Pooling/config.json"),
            format!(
                r#"{{"word_embedding_dimension": {}, "pooling_mode_cls_token": {}, "pooling_mode_mean_tokens": {}}}"#,
                self.width,
                self.pooling == Pooling::Cls,
                self.pooling == Pooling::Mean
            ),
        )?;
        std::fs::write(folder.join("model.safetensors"), self.safetensors()?)?;
        Ok(())
    }

    /// Writes the folder with its weights in so many shards, and the index that says where each tensor is.
    ///
    /// # Errors
    /// As [`Bert::write_folder`].
    pub fn write_shards(&self, folder: &Path, count: usize) -> Result<(), Error> {
        self.write_folder(folder)?;
        std::fs::remove_file(folder.join("model.safetensors"))?;
        let tensors = self.tensors();
        let (mut map, mut total) = (Vec::new(), 0);
        for (index, tensors) in tensors.chunks(tensors.len().div_ceil(count)).enumerate() {
            let shard = format!("model-{:05}-of-{count:05}.safetensors", index + 1);
            map.extend(tensors.iter().map(|tensor| format!(r#""{}":"{shard}""#, self.full_name(tensor))));
            let bytes = self.file_with(tensors)?;
            total += bytes.len();
            std::fs::write(folder.join(shard), bytes)?;
        }
        let index = format!(r#"{{"metadata":{{"total_size":{total}}},"weight_map":{{{}}}}}"#, map.join(","));
        std::fs::write(folder.join("model.safetensors.index.json"), index)?;
        Ok(())
    }

    /// The bytes of `model.safetensors`.
    ///
    /// # Errors
    /// An error if a tensor cannot be converted.
    pub fn safetensors(&self) -> Result<Vec<u8>, Error> {
        self.file_with(&self.tensors())
    }

    /// The tensor's name in transformers: with the prefix of BertForSequenceClassification, or as BertModel
    /// has it.
    fn full_name(&self, tensor: &Named) -> String {
        let name = &tensor.transformers;
        let prefix = match self.family {
            EncoderFamily::Bert if self.labels > 0 && !name.starts_with("classifier") => "bert.",
            EncoderFamily::XlmRoberta if self.labels > 0 && !name.starts_with("classifier") => "roberta.",
            _ => "",
        };
        format!("{prefix}{name}")
    }

    /// The bytes of a file with some of the tensors.
    pub(crate) fn file_with(&self, tensors: &[Named]) -> Result<Vec<u8>, Error> {
        let (mut entries, mut data) = (Vec::new(), Vec::new());
        for tensor in tensors {
            let Named { transformers: name, mut shape, mut values, kind, .. } = tensor.clone();
            if name.ends_with("position_embeddings.weight") {
                let spare = self.family.spare_positions();
                shape[1] += spare;
                values.splice(0..0, vec![9.0; spare * shape[0]]);
            }
            let element = match kind {
                Kind::F16 => "F16",
                Kind::BF16 => "BF16",
                _ => "F32",
            };
            let kind = if element == "F32" { Kind::F32 } else { kind };
            let shape: Vec<usize> = shape.into_iter().rev().collect();
            let Tensor { data: bytes, .. } =
                weights::quantize(name.clone(), shape.iter().rev().copied().collect(), values, kind)?;
            let start = data.len();
            data.extend(bytes);
            entries.push(format!(
                r#""{}":{{"dtype":"{element}","shape":{shape:?},"data_offsets":[{start},{}]}}"#,
                self.full_name(tensor),
                data.len()
            ));
        }
        let mut header = format!(r#"{{"__metadata__":{{"format":"pt"}},{}}}"#, entries.join(","));
        // The data begin at a multiple of eight.
        header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        Ok(bytes)
    }
}
