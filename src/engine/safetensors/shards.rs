//! The files with the weights of a folder: `model.safetensors`, or the shards that
//! `model.safetensors.index.json` names.
//!
//! The index names the shard of every tensor. It is not trusted: names lead to no other folder, and
//! [`ShardIndex::check`] compares it with the tensors in the shards.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::header::{MAX_TENSORS, TensorEntry};
use super::json::{bytes, corrupt, parse};
use crate::Error;

/// The file with all weights.
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Most bytes of an index; that of a real model has a hundred for each tensor.
const MAX_BYTES: u64 = 8 << 20;
/// Most shards of a model; each is mapped.
const MAX_SHARDS: usize = 256;

/// The files with the weights of a folder.
pub(super) struct WeightFiles {
    /// The files, in the order of their names.
    pub(super) files: Vec<PathBuf>,
    /// The index, which says in which file each tensor is, where there are several files.
    pub(super) index: Option<ShardIndex>,
}

/// The content of `model.safetensors.index.json`.
pub(super) struct ShardIndex {
    path: PathBuf,
    /// The shard of each tensor, by its name.
    shard_of: BTreeMap<String, String>,
}

/// The part of the index that is used.
#[derive(Deserialize)]
struct ShardIndexJson {
    weight_map: WeightMap,
}

struct WeightMap(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WeightMapVisitor;

        impl<'de> Visitor<'de> for WeightMapVisitor {
            type Value = WeightMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("tensors with the names of their files")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WeightMap, A::Error> {
                let mut shard_of = BTreeMap::new();
                while let Some((tensor, shard)) = map.next_entry::<String, String>()? {
                    if shard_of.len() == MAX_TENSORS {
                        return Err(A::Error::custom(format!("more than {MAX_TENSORS} tensors")));
                    }
                    if shard_of.contains_key(&tensor) {
                        return Err(A::Error::custom(format!("tensor \"{}\" occurs twice", shown(&tensor))));
                    }
                    shard_of.insert(tensor, shard);
                }
                Ok(WeightMap(shard_of))
            }
        }

        deserializer.deserialize_map(WeightMapVisitor)
    }
}

/// Finds the files with the weights; some of them may not exist. As in transformers, the index is ignored
/// where one file has all weights.
///
/// # Errors
/// [`Error::ModelFile`] where the index cannot be read, [`Error::CorruptModel`] where it is none, or names
/// files elsewhere.
pub(super) fn weights(folder: &Path) -> Result<WeightFiles, Error> {
    let (all, path) = (folder.join(WEIGHTS), folder.join(INDEX));
    // A broken link counts as the file, so that the error names it.
    if all.symlink_metadata().is_ok() || path.symlink_metadata().is_err() {
        return Ok(WeightFiles { files: vec![all], index: None });
    }
    let ShardIndexJson { weight_map: WeightMap(shard_of) } = parse(&path, &bytes(&path, MAX_BYTES)?)?;
    let shards: BTreeSet<&String> = shard_of.values().collect();
    if shards.is_empty() || shards.len() > MAX_SHARDS {
        let count = shards.len();
        return Err(corrupt(&path, format!("it names {count} files, 1 to {MAX_SHARDS} are read")));
    }
    if let Some(other) = shards.iter().find(|name| !is_plain(name)) {
        return Err(corrupt(&path, format!("\"{}\" is no name of a file with weights", shown(other))));
    }
    let files = shards.into_iter().map(|name| folder.join(name)).collect();
    Ok(WeightFiles { files, index: Some(ShardIndex { path, shard_of }) })
}

impl ShardIndex {
    /// Compares it with the tensors of all shards, which are in the order of their names.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] where a tensor is missing, in another shard, or in two of them.
    pub(super) fn check(&self, files: &[PathBuf], shards: &[Vec<TensorEntry>]) -> Result<(), Error> {
        let mut found = 0;
        for (file, entries) in files.iter().zip(shards) {
            for entry in entries {
                let is_here = self.shard_of.get(&entry.name).is_some_and(|shard| file.ends_with(shard));
                if !is_here {
                    let (name, index) = (&entry.name, INDEX);
                    return Err(corrupt(file, format!("by \"{index}\" tensor \"{name}\" is not in it")));
                }
                found += 1;
            }
        }
        // Each tensor was found in its own shard, and no name occurs twice in a shard: an equal number means
        // that all were found.
        if found == self.shard_of.len() {
            return Ok(());
        }
        let there: BTreeSet<&str> = shards.iter().flatten().map(|entry| &*entry.name).collect();
        let missing = self.shard_of.iter().find(|(tensor, _)| !there.contains(&***tensor));
        let (tensor, shard) = missing.map_or(("", ""), |(tensor, shard)| (tensor, shard));
        Err(corrupt(&self.path, format!("tensor \"{}\" is not in \"{shard}\"", shown(tensor))))
    }
}

/// Whether it is the name of a file with weights in the same folder.
fn is_plain(name: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    name.len() <= 255
        && !name.starts_with('.')
        && name.ends_with(".safetensors")
        && name.bytes().all(is_letter)
}

/// Part of a name, as errors show it.
fn shown(text: &str) -> String {
    text.chars().take(64).collect::<String>().escape_debug().to_string()
}
