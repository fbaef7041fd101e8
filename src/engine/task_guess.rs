//! A guess at a model's task and the length of its vectors where nothing is written down about them, from the
//! first bytes of its file.
//!
//! Invariant: a constant number of bytes is read, whatever the file claims. A file that is not there has no
//! task; one that cannot be read may have any, and it is an error to ask for it.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::card::Task;
use crate::mapping::FileId;
use crate::{Error, model, safetensors};

/// Bytes of a file that are looked at. The keys that tell a model's family, and how its vectors are pooled,
/// stand before its vocabulary.
const HEAD_BYTES: u64 = 64 << 10;
/// Keys that are looked at.
const MAX_KEYS: u64 = 512;

/// The tasks of the model of a GGUF file, or of the folder of an encoder, as far as a quick look tells.
///
/// # Errors
/// The system's, for a file that is there and cannot be read.
pub fn tasks(path: &Path) -> io::Result<Vec<Task>> {
    let task = if path.is_dir() {
        head(&path.join("config.json"))?.map(|config| of_config(&config))
    } else {
        head(path)?.and_then(|head| of_head(&head))
    };
    Ok(task.into_iter().collect())
}

/// Properties of the vectors that a model makes, as far as a quick look at its files tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vectors {
    /// Their whole length, where the file says it.
    pub dimensions: Option<u32>,
    /// Lengths that they may be cut to because the model was trained for them, as a folder's configuration
    /// says, in ascending order.
    pub lengths: Vec<u32>,
    /// Whether a text that says what a query looks for may stand before it: encoders without adapters read no
    /// such thing.
    pub takes_tasks: bool,
}

/// The vectors of a GGUF file's model, or of that of a folder; `None` where it cannot be seen whose file it
/// is.
///
/// # Errors
/// The system's, for a file that is there and cannot be read.
pub fn vectors(path: &Path) -> io::Result<Option<Vectors>> {
    if path.is_dir() {
        return match safetensors::lengths(path) {
            Ok(found) => {
                Ok(Some(Vectors { dimensions: found.whole, lengths: found.shorter, takes_tasks: false }))
            }
            Err(Error::ModelFile { source, .. }) => {
                unless_missing(Err(io::Error::new(source.kind(), source)))
            }
            Err(_) => Ok(None),
        };
    }
    Ok(head(path)?.and_then(|head| {
        let found = HeadValues::read(&head)?;
        let takes_tasks = !model::is_encoder_family(found.family?);
        Some(Vectors { dimensions: found.dimensions, lengths: Vec::new(), takes_tasks })
    }))
}

/// The state of the files that [`vectors`] looks at, which changes with them.
pub fn state_of_vectors(path: &Path) -> Option<FileId> {
    if !path.is_dir() {
        return FileId::of_path(path).ok();
    }
    let [config, beside] = safetensors::LENGTHS_IN.map(|name| FileId::of_path(&path.join(name)).ok());
    let config = config?;
    Some(beside.map_or(config, |beside| config.and(&beside)))
}

/// The first bytes of a file; `None` where it is not there.
fn head(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let Some(file) = unless_missing(File::open(path).map(Some))? else { return Ok(None) };
    let mut head = Vec::new();
    file.take(HEAD_BYTES).read_to_end(&mut head)?;
    Ok(Some(head))
}

/// What was read, `None` where the file is not there.
fn unless_missing<T>(read: io::Result<Option<T>>) -> io::Result<Option<T>> {
    match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other,
    }
}

fn of_config(config: &[u8]) -> Task {
    let config = String::from_utf8_lossy(config);
    // Heads of one output score pairs of texts.
    if config.contains("ForSequenceClassification") { Task::Rerank } else { Task::Embed }
}

/// The values found in the head of a GGUF file.
struct HeadValues<'a> {
    family: Option<&'a str>,
    pooling: Option<u64>,
    dimensions: Option<u32>,
}

impl HeadValues<'_> {
    /// `None` for what is no GGUF file, or an adapter, which is to be added to another model and is for
    /// nothing by itself.
    fn read(head: &[u8]) -> Option<HeadValues<'_>> {
        let mut reader = HeadReader(head);
        if reader.take(4)? != b"GGUF" || !(2..=3).contains(&reader.u32()?) {
            return None;
        }
        let _tensors = reader.u64()?;
        let keys = reader.u64()?.min(MAX_KEYS);
        let mut family = None;
        let mut numbers = Vec::new();
        for _ in 0..keys {
            let Some((key, value)) = reader.pair() else { break };
            match (key, value) {
                (b"general.architecture", HeadValue::Text(name)) => family = std::str::from_utf8(name).ok(),
                (b"general.type", HeadValue::Text(b"adapter")) => return None,
                (key, HeadValue::Number(number)) => numbers.push((key, number)),
                _ => {}
            }
        }
        // Other parts of a model, such as one for images, have keys that end in the same words.
        let own = |name: &str| {
            let key = format!("{}.{name}", family?);
            numbers.iter().find(|(known, _)| *known == key.as_bytes()).map(|(_, number)| *number)
        };
        let dimensions = own("embedding_length").and_then(|length| u32::try_from(length).ok());
        Some(HeadValues { family, pooling: own("pooling_type"), dimensions })
    }
}

fn of_head(head: &[u8]) -> Option<Task> {
    let HeadValues { family, pooling, .. } = HeadValues::read(head)?;
    let family = family?;
    // The numbers are llama.cpp's: 0 says that vectors of tokens are wanted, 4 that there is a head for
    // scores.
    match pooling {
        Some(4) => Some(Task::Rerank),
        Some(1..) => Some(Task::Embed),
        _ if model::is_encoder_family(family) => Some(Task::Embed),
        _ if model::families().any(|known| known == family) => Some(Task::Generate),
        _ => None,
    }
}

enum HeadValue<'a> {
    Text(&'a [u8]),
    Number(u64),
    Other,
}

/// The rest of the head.
struct HeadReader<'a>(&'a [u8]);

impl<'a> HeadReader<'a> {
    fn take(&mut self, bytes: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(bytes).ok()?)?;
        self.0 = rest;
        Some(taken)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn text(&mut self) -> Option<&'a [u8]> {
        let length = self.u64()?;
        self.take(length)
    }

    fn pair(&mut self) -> Option<(&'a [u8], HeadValue<'a>)> {
        let key = self.text()?;
        let value = match self.u32()? {
            4 | 5 => HeadValue::Number(u64::from(self.u32()?)),
            8 => HeadValue::Text(self.text()?),
            // Vocabularies, and what else is longer than the head, end the look.
            9 => {
                let size = size_of(self.u32()?)?;
                let length = self.u64()?.checked_mul(size)?;
                self.take(length)?;
                HeadValue::Other
            }
            kind => {
                self.take(size_of(kind)?)?;
                HeadValue::Other
            }
        };
        Some((key, value))
    }
}

/// Bytes of a number, by the type's number in GGUF.
fn size_of(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use steadytext_test_models::gguf::Value;
    use steadytext_test_models::{Architecture, Bert, Spec};

    use super::{Vectors, tasks, vectors};
    use crate::card::Task;

    #[test]
    fn a_look_at_the_head_tells_what_a_file_is_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        steadytext_test_models::write(&Spec::tiny(Architecture::Qwen3), &path("decoder.gguf")).unwrap();
        assert_eq!(tasks(&path("decoder.gguf")).unwrap(), [Task::Generate]);
        Bert::default().write(&path("encoder.gguf")).unwrap();
        assert_eq!(tasks(&path("encoder.gguf")).unwrap(), [Task::Embed]);
        let mut adapter = Bert::default().file().unwrap();
        adapter.keys.insert(1, ("general.type".to_owned(), Value::String("adapter".to_owned())));
        adapter.write(&mut std::fs::File::create(path("adapter.gguf")).unwrap()).unwrap();
        assert_eq!(tasks(&path("adapter.gguf")).unwrap(), []);
        std::fs::write(path("letter.gguf"), "Dear Sir or Madam").unwrap();
        assert_eq!(tasks(&path("letter.gguf")).unwrap(), []);
        assert_eq!(tasks(&path("missing.gguf")).unwrap(), []);
        std::fs::create_dir(path("folder")).unwrap();
        assert_eq!(tasks(&path("folder")).unwrap(), []);
        std::fs::write(path("folder/config.json"), "{}").unwrap();
        assert_eq!(tasks(&path("folder")).unwrap(), [Task::Embed]);
        let ranking = r#"{"architectures": ["BertForSequenceClassification"]}"#;
        std::fs::write(path("folder/config.json"), ranking).unwrap();
        assert_eq!(tasks(&path("folder")).unwrap(), [Task::Rerank]);
    }

    #[test]
    fn a_look_at_the_head_tells_how_long_vectors_are_and_whether_tasks_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let spec = Spec::tiny(Architecture::Qwen3);
        steadytext_test_models::write(&spec, &path("decoder.gguf")).unwrap();
        let found = vectors(&path("decoder.gguf")).unwrap().unwrap();
        assert!(found.dimensions.is_some() && found.takes_tasks, "{found:?}");
        let none = Vectors { dimensions: Some(64), lengths: Vec::new(), takes_tasks: false };
        Bert::default().write(&path("encoder.gguf")).unwrap();
        assert_eq!(vectors(&path("encoder.gguf")).unwrap(), Some(none.clone()));
        Bert::default().write_folder(&path("folder")).unwrap();
        assert_eq!(vectors(&path("folder")).unwrap(), Some(none));
        std::fs::write(path("letter.gguf"), "Dear Sir or Madam").unwrap();
        assert_eq!(vectors(&path("letter.gguf")).unwrap(), None);
        assert_eq!(vectors(&path("missing.gguf")).unwrap(), None);
    }

    #[test]
    fn heads_that_lie_about_their_lengths_are_for_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model.gguf");
        steadytext_test_models::write(&Spec::tiny(Architecture::Qwen3), &path).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for (at, value) in [(16, u64::MAX), (24, u64::MAX), (24, 1 << 40)] {
            let mut bytes = whole.clone();
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
            std::fs::write(&path, &bytes).unwrap();
            assert_eq!(tasks(&path).unwrap().len(), usize::from(at == 16));
        }
        for length in [0, 3, 4, 20, 30, 40] {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert_eq!(tasks(&path).unwrap(), []);
        }
    }

    #[test]
    fn keys_of_other_parts_of_a_model_are_not_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model.gguf");
        for at in [0, usize::MAX] {
            let mut file = Bert::default().file().unwrap();
            for (key, value) in [("embedding_length", 7), ("pooling_type", 4)] {
                let at = at.min(file.keys.len());
                file.keys.insert(at, (format!("vision.bert.{key}"), Value::U32(value)));
                file.keys.insert(at, (format!("bert.vision.{key}"), Value::U32(value)));
            }
            file.write(&mut std::fs::File::create(&path).unwrap()).unwrap();
            assert_eq!(tasks(&path).unwrap(), [Task::Embed]);
            assert_eq!(vectors(&path).unwrap().unwrap().dimensions, Some(64));
        }
    }

    #[test]
    fn what_is_there_and_cannot_be_read_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::create_dir(path("folder")).unwrap();
        // A folder is no file, whoever asks.
        std::fs::create_dir(path("folder/config.json")).unwrap();
        std::os::unix::fs::symlink("loop.gguf", path("loop.gguf")).unwrap();
        for name in ["folder", "loop.gguf"] {
            assert!(tasks(&path(name)).is_err(), "{name}");
            assert!(vectors(&path(name)).is_err(), "{name}");
        }
    }
}
