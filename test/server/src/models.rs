//! Model files for tests: one that takes its time, and all kinds that are no good.

use std::path::{Path, PathBuf};

use crate::cluster::Cluster;
use crate::session::Session;

/// Arguments of a generation that takes several seconds with the slow model.
pub fn endless_text() -> &'static str {
    "model => 'slow', max_tokens => 4096"
}

/// Writes a model into the cluster's model directory that takes about a millisecond per token and never ends by
/// itself, and registers it as `slow`. The builtin model would be done before a test could look.
#[track_caller]
pub fn slow_model(cluster: &Cluster, session: &mut Session) {
    if !cluster.model_directory().join("slow.gguf").exists() {
        write_model(cluster, "slow.gguf");
    }
    register(session, "slow", "slow.gguf");
}

fn register(session: &mut Session, name: &str, file: &str) {
    session
        .execute(
            "insert into steadytext_models (name, task, file) values ($1, 'generate', $2)",
            &[&name, &file],
        )
        .unwrap_or_else(|error| panic!("model {name} cannot be registered: {error:?}"));
}

/// Writes a working model into the cluster's model directory.
pub fn write_model(cluster: &Cluster, file: &str) {
    let _ = (cluster, file);
    todo!("test/models")
}

/// A model file that cannot work, registered under its name.
pub struct BrokenModel {
    /// Name in the registry.
    pub name: &'static str,
    /// What the row of a request that wanted it must hold.
    pub sqlstate: &'static str,
    /// Words that its error must contain.
    pub mentions: Vec<&'static str>,
}

/// Writes and registers one model file of every kind that is no good.
pub fn broken_models(cluster: &Cluster, session: &mut Session) -> Vec<BrokenModel> {
    let _ = (cluster, session, Path::new(""), PathBuf::new());
    todo!("test/models")
}
