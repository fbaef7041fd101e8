//! Adapters (LoRA) of jina-embeddings-v3 with random weights: as files beside a GGUF file, as llama.cpp's
//! converter writes them, and in a folder as transformers write it.

use std::path::{Path, PathBuf};

use crate::bert::{Bert, Named};
use crate::encoders::{self, EncoderFamily};
use crate::gguf::{File, Value};
use crate::random::Random;
use crate::{Error, Kind, weights};

/// The tasks, each with what stands before its texts.
pub const TASKS: [(&str, &str); 3] =
    [("retrieval.query", "find this "), ("retrieval.passage", "keep this "), ("classification", "")];
/// The rank of all adapters, and the numerator of their scale.
pub const RANK: usize = 3;
/// See [`RANK`].
pub const ALPHA: f32 = 6.0;

/// The matrices of an adapter for the tensor `[outputs, inputs]` of this name; of a table of embeddings a row
/// is an output. `ALPHA / RANK · B A` is added to it.
#[derive(Debug, Clone)]
pub struct Lora {
    /// The name of the tensor in GGUF.
    pub name: String,
    transformers: String,
    /// Values of a row of the tensor.
    pub inputs: usize,
    /// Rows of the tensor.
    pub outputs: usize,
    /// `[RANK, inputs]`.
    pub a: Vec<f32>,
    /// `[outputs, RANK]`.
    pub b: Vec<f32>,
}

impl Lora {
    fn is_words(&self) -> bool {
        self.name == "token_embd.weight"
    }

    fn is_table(&self) -> bool {
        self.is_words() || self.name == "token_types.weight"
    }
}

/// All that the adapter of task number `task` has for a model.
pub fn loras(spec: &Bert, task: usize) -> Vec<Lora> {
    let adapted = |tensor: &Named| tensor.shape.len() == 2 && tensor.gguf.ends_with(".weight");
    let tensors = encoders::tensors(spec).into_iter().filter(adapted);
    let loras = tensors.map(|Named { gguf: name, transformers, shape, .. }| {
        let (inputs, outputs) = (shape[0], shape[1]);
        let values = |half: &str, count: usize, deviation: f32| {
            let mut random = Random::named(spec.seed, &format!("{name}.{half}.{task}"));
            (0..count).map(|_| random.normal() * deviation).collect()
        };
        let a = values("a", RANK * inputs, 1.0 / (inputs as f32).sqrt());
        let b = values("b", outputs * RANK, 0.5);
        Lora { a, b, name, transformers, inputs, outputs }
    });
    loras.collect()
}

/// The columns of `[rows, columns]` one after the other.
fn turned(values: &[f32], columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| values.iter().skip(column).step_by(columns).copied()).collect()
}

/// The file of the adapter of task number `task`.
///
/// # Errors
/// An error if a tensor cannot be converted.
pub fn adapter(spec: &Bert, task: usize) -> Result<File, Error> {
    let (name, prompt) = TASKS[task];
    adapter_called(spec, task, name, prompt)
}

/// The file of the adapter of task number `task`, with `name` as its task and `prompt` before its texts.
///
/// # Errors
/// As [`adapter`].
pub fn adapter_called(spec: &Bert, task: usize, name: &str, prompt: &str) -> Result<File, Error> {
    let text = |text: &str| Value::String(text.to_owned());
    let keys = [
        ("general.architecture", text(spec.family.name())),
        ("general.type", text("adapter")),
        ("adapter.type", text("lora")),
        ("adapter.lora.alpha", Value::F32(ALPHA)),
        ("adapter.lora.task_name", text(name)),
        ("adapter.lora.prompt_prefix", text(prompt)),
    ];
    let mut tensors = Vec::new();
    for lora in loras(spec, task) {
        let Lora { name, inputs, outputs, a, b, .. } = &lora;
        let halves = if lora.is_words() {
            [("lora_a", [RANK, *outputs], b.clone()), ("lora_b", [RANK, *inputs], turned(a, *inputs))]
        } else {
            [("lora_a", [*inputs, RANK], a.clone()), ("lora_b", [RANK, *outputs], b.clone())]
        };
        for (half, shape, values) in halves {
            tensors.push(weights::quantize(format!("{name}.{half}"), shape.to_vec(), values, Kind::F32)?);
        }
    }
    let keys = keys.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    Ok(File { version: 3, keys, tensors })
}

/// The path of an adapter's file, by the path of the model's file.
pub fn adapter_path(model: &Path, task: &str) -> PathBuf {
    let mut folder = model.as_os_str().to_owned();
    folder.push(".adapters");
    Path::new(&folder).join(format!("{task}.gguf"))
}

/// Writes a model's file, and those of its adapters beside it.
///
/// # Errors
/// The system's; where a tensor cannot be converted.
pub fn write_adapted(spec: &Bert, model: &Path) -> Result<(), Error> {
    spec.write(model)?;
    for (task, (name, _)) in TASKS.into_iter().enumerate() {
        let path = adapter_path(model, name);
        std::fs::create_dir_all(path.parent().unwrap_or(model))?;
        adapter(spec, task)?.write(&mut std::io::BufWriter::new(std::fs::File::create(path)?))?;
    }
    Ok(())
}

/// Writes the folder of a model with its adapters, as its authors publish it.
///
/// # Errors
/// As [`write_adapted`].
pub fn write_adapted_folder(spec: &Bert, folder: &Path) -> Result<(), Error> {
    let Bert { width, layers, heads, feed_forward: inner, context, .. } = *spec;
    let words = Bert { family: EncoderFamily::XlmRoberta, ..spec.clone() };
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join("tokenizer.json"), encoders::tokenizer(&words).unwrap_or_default())?;
    let (names, prompts): (Vec<String>, Vec<String>) = TASKS
        .iter()
        .map(|(task, prompt)| (format!("\"{task}\""), format!("\"{task}\": \"{prompt}\"")))
        .unzip();
    let config = format!(
        r#"{{"architectures": ["XLMRobertaModel"], "model_type": "xlm-roberta", "hidden_act": "gelu", "hidden_size": {width},
"num_hidden_layers": {layers}, "num_attention_heads": {heads}, "intermediate_size": {inner}, "max_position_embeddings": {},
"layer_norm_eps": 1e-12, "pad_token_id": 1, "type_vocab_size": 1, "vocab_size": {}, "position_embedding_type": "rotary",
"rotary_emb_base": {:?}, "load_trained_adapters": true, "lora_adaptations": [{}], "lora_alpha": {ALPHA:?}, "lora_dropout_p": 0.0,
"lora_main_params_trainable": false, "lora_rank": {RANK}, "task_instructions": {{{}}}}}"#,
        context + 2,
        spec.vocabulary().len(),
        spec.family.rope_base(),
        names.join(", "),
        prompts.join(", "),
    );
    std::fs::write(folder.join("config.json"), config)?;
    std::fs::write(folder.join("model.safetensors"), spec.file_with(&folder_tensors(spec))?)?;
    Ok(())
}

fn folder_tensors(spec: &Bert) -> Vec<Named> {
    let published = |name: &str| {
        let name = name.replace(".attn.", ".mixer.").replace("mlp.fc11", "mlp.fc1");
        format!("roberta.{name}")
    };
    let of_tasks: Vec<Vec<Lora>> = (0..TASKS.len()).map(|task| loras(spec, task)).collect();
    let mut tensors: Vec<Named> = encoders::tensors(spec);
    // The pooler is not looked at.
    for (name, shape) in [
        ("pooler.dense.bias", vec![spec.width]),
        ("pooler.dense.parametrizations.weight.original", vec![spec.width, spec.width]),
        ("pooler.dense.parametrizations.weight.0.lora_A", vec![spec.width, RANK, TASKS.len()]),
        ("pooler.dense.parametrizations.weight.0.lora_B", vec![RANK, spec.width, TASKS.len()]),
    ] {
        let values = vec![0.5; shape.iter().product()];
        let (gguf, transformers) = (String::new(), name.to_owned());
        tensors.push(Named { gguf, transformers, shape, values, kind: Kind::F32 });
    }
    for tensor in &mut tensors {
        tensor.transformers = published(&tensor.transformers);
        if of_tasks[0].iter().any(|lora| lora.name == tensor.gguf) {
            tensor.transformers = tensor.transformers.replace(".weight", ".parametrizations.weight.original");
        }
    }
    for (at, first) in of_tasks[0].iter().enumerate() {
        let Lora { transformers, inputs, outputs, .. } = first;
        let name = published(transformers).replace(".weight", ".parametrizations.weight.0");
        let all =
            |half: &dyn Fn(&Lora) -> Vec<f32>| of_tasks.iter().flat_map(|loras| half(&loras[at])).collect();
        let (a, b): (Vec<f32>, Vec<f32>) = (all(&|lora| lora.a.clone()), all(&|lora| lora.b.clone()));
        let (of_a, of_b) = (vec![*inputs, RANK, TASKS.len()], vec![RANK, *outputs, TASKS.len()]);
        // Of a table the halves have each other's names.
        let ends = if first.is_table() { ["lora_B", "lora_A"] } else { ["lora_A", "lora_B"] };
        for (end, shape, values) in [(ends[0], of_a, a), (ends[1], of_b, b)] {
            let (gguf, transformers) = (String::new(), format!("{name}.{end}"));
            tensors.push(Named { gguf, transformers, shape, values, kind: Kind::F32 });
        }
    }
    tensors
}
