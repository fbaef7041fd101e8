//! Model files for tests: one that takes its time, and all kinds that are no good.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use steadytext_test_models::gguf::{File, Value};
use steadytext_test_models::{Architecture, Bert, Kind, Quantization, Rerank, Spec, Text};

use crate::cluster::Cluster;
use crate::program::give_to_server_user;
use crate::run_directory;
use crate::session::Session;

/// Arguments of a generation that takes many seconds with the slow model.
pub fn endless_text() -> &'static str {
    "model => 'slow', max_tokens => 4096"
}

/// Made once per process and copied into each cluster that wants it. Larger than caches, so that it is slow
/// on fast machines, too.
static SLOW: LazyLock<PathBuf> = LazyLock::new(|| {
    let path = run_directory().join("slow.gguf");
    let spec = Spec {
        layers: 20,
        width: 384,
        heads: 12,
        kv_heads: 2,
        head_dim: 32,
        feed_forward: 1152,
        vocab: 1024,
        context: 8192,
        quantization: Quantization::uniform(Kind::Q8_0),
        endless: true,
        ..Spec::tiny(Architecture::Qwen3)
    };
    steadytext_test_models::write(&spec, &path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    path
});

/// Registers `slow`, a model that takes some milliseconds per token and never ends by itself. The builtin
/// model would be done before a test could look.
#[track_caller]
pub fn slow_model(cluster: &Cluster, session: &mut Session) {
    write_model(cluster, "slow.gguf");
    register(session, "slow", "generate", "slow.gguf");
}

/// Registers an encoder twice: `folder`, as sentence-transformers save it, and `file`, as GGUF. One with
/// labels is for ranking.
#[track_caller]
pub fn encoders(cluster: &Cluster, session: &mut Session, spec: &Bert) {
    let directory = cluster.model_directory();
    let written = spec.write_folder(&directory.join("encoder"));
    written.and_then(|()| spec.write(&directory.join("encoder.gguf"))).expect("our own directory");
    let task = if spec.labels > 0 { "rerank" } else { "embed" };
    register(session, "folder", task, "encoder");
    register(session, "file", task, "encoder.gguf");
}

/// Puts a working model into the cluster's model directory.
#[track_caller]
pub fn write_model(cluster: &Cluster, file: &str) {
    let path = cluster.model_directory().join(file);
    if !path.exists() {
        fs::copy(&*SLOW, &path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

/// Registers a copy of a file as a model that generates.
#[track_caller]
pub fn copied_model(cluster: &Cluster, session: &mut Session, name: &str, from: &Path) {
    let file = format!("{name}.gguf");
    let copied = fs::copy(from, cluster.model_directory().join(&file));
    copied.unwrap_or_else(|error| panic!("{}: {error}", from.display()));
    register(session, name, "generate", &file);
}

/// Puts a tiny decoder whose numbers depend on the seed into the cluster's model directory.
#[track_caller]
pub fn write_decoder(cluster: &Cluster, file: &str, seed: u64) {
    let path = cluster.model_directory().join(file);
    let written = steadytext_test_models::write(&Spec { seed, ..Spec::default() }, &path);
    written.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// Puts a tiny encoder whose numbers depend on the seed into the cluster's model directory.
#[track_caller]
pub fn write_encoder(cluster: &Cluster, file: &str, seed: u64) {
    let path = cluster.model_directory().join(file);
    let written = Bert { seed, ..Bert::default() }.write(&path);
    written.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// Puts a tiny model that ranks documents by the tokens yes and no into the cluster's model directory.
#[track_caller]
pub fn write_reranker(cluster: &Cluster, file: &str) {
    let spec = Spec { rerank: Some(Rerank::YesNo), ..Spec::default() };
    let path = cluster.model_directory().join(file);
    steadytext_test_models::write(&spec, &path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

#[track_caller]
fn register(session: &mut Session, name: &str, task: &str, file: &str) {
    session
        .execute(
            "insert into steadytext_models (name, task, file) values ($1, $2, $3)",
            &[&name, &task, &file],
        )
        .unwrap_or_else(|error| panic!("model {name} cannot be registered: {error:?}"));
}

/// A model that cannot work.
#[derive(Debug, Clone)]
pub struct BrokenModel {
    /// Its name in the registry.
    pub name: &'static str,
    /// The SQLSTATE that a request for it fails with.
    pub sqlstate: &'static str,
    /// The words that its error must have.
    pub mentions: &'static str,
}

/// Cannot be read.
const UNREADABLE: &str = "58030";
/// Is not what it says it is.
const CORRUPT: &str = "XX001";
/// Is something that the engine cannot do.
const UNSUPPORTED: &str = "0A000";
/// Says something that is no text.
const NO_TEXT: &str = "22021";

/// Name, SQLSTATE, what the error mentions, how the file is made.
type Recipe = (&'static str, &'static str, &'static str, fn(&Path));

const BROKEN: [Recipe; 14] = [
    ("missing", UNREADABLE, "missing.gguf", |_| {}),
    ("forbidden", UNREADABLE, "forbidden.gguf", |path| {
        spoiled(path, Spec::default(), |_| {});
        give_to_server_user(path);
        fs::set_permissions(path, Permissions::from_mode(0o000)).expect("our own file");
    }),
    ("directory", UNREADABLE, "directory.gguf", |path| fs::create_dir(path).expect("our own directory")),
    ("empty", CORRUPT, "empty.gguf", |path| fs::write(path, "").expect("our own file")),
    ("letter", CORRUPT, "letter.gguf", |path| {
        fs::write(path, "Dear Sir or Madam, ".repeat(500)).expect("our own file")
    }),
    ("truncated", CORRUPT, "truncated.gguf", |path| {
        spoiled(path, Spec::default(), |_| {});
        let bytes = fs::read(path).expect("it was just written");
        fs::write(path, &bytes[..bytes.len() * 3 / 4]).expect("our own file");
    }),
    ("beheaded", CORRUPT, "beheaded.gguf", |path| {
        spoiled(path, Spec::default(), |_| {});
        let bytes = fs::read(path).expect("it was just written");
        fs::write(path, &bytes[..1000]).expect("our own file");
    }),
    ("misshapen", CORRUPT, "blk.1.ffn_up.weight", |path| {
        spoiled(path, Spec::default(), |file| {
            let tensor = file.tensor_mut("blk.1.ffn_up.weight").expect("every decoder has it");
            tensor.shape.swap(0, 1);
        });
    }),
    ("incomplete", CORRUPT, "blk.0.attn_norm.weight", |path| {
        spoiled(path, Spec::default(), |file| {
            file.tensors.retain(|tensor| tensor.name != "blk.0.attn_norm.weight")
        });
    }),
    ("keyless", CORRUPT, "qwen3.block_count", |path| {
        spoiled(path, Spec::default(), |file| file.remove("qwen3.block_count"));
    }),
    ("foreign", UNSUPPORTED, "mamba", |path| {
        spoiled(path, Spec::default(), |file| {
            file.set("general.architecture", Value::String("mamba".to_owned()))
        });
    }),
    ("unruly", CORRUPT, "template", |path| {
        spoiled(path, Spec { chat_template: Some("{{ nonsense( }}".to_owned()), ..Spec::default() }, |_| {});
    }),
    ("infinite", CORRUPT, "finite", |path| {
        // Quantized activations would hide it: 32-bit matrices carry it to the logits.
        let spec = Spec { quantization: Quantization::uniform(Kind::F32), ..Spec::default() };
        spoiled(path, spec, |file| {
            let tensor = file.tensor_mut("output_norm.weight").expect("every decoder has it");
            tensor.data[..4].copy_from_slice(&f32::NAN.to_le_bytes());
        });
    }),
    ("babbling", NO_TEXT, "not valid text", |path| {
        spoiled(path, Spec { text: Text::InvalidUtf8, endless: true, ..Spec::default() }, |_| {});
    }),
];

/// Makes and registers one model of every kind that is no good.
pub fn broken_models(cluster: &Cluster, session: &mut Session) -> Vec<BrokenModel> {
    BROKEN
        .into_iter()
        .map(|(name, sqlstate, mentions, make)| {
            let file = format!("{name}.gguf");
            make(&cluster.model_directory().join(&file));
            register(session, name, "generate", &file);
            BrokenModel { name, sqlstate, mentions }
        })
        .collect()
}

fn spoiled(path: &Path, spec: Spec, spoil: impl FnOnce(&mut File)) {
    let mut file = steadytext_test_models::file(&spec).expect("the specification is sound");
    spoil(&mut file);
    let mut out = fs::File::create(path).expect("our own file");
    file.write(&mut out).expect("our own file");
}
