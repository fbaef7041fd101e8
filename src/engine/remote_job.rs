//! Work that travels to an engine on another machine, and the report that comes back, as bytes.
//!
//! The sender has turned the request into work for an engine already: the other side needs to know only
//! models, and no parameters. The encoding belongs to this version of the crate, which stands before the
//! bytes; another version refuses them.
//!
//! Invariant: arriving bytes are not trusted. Those that cannot be decoded are an error, and decoding takes
//! no more memory than their own length allows.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::memory::watched;
use crate::{Error, Output, Work};

/// The version that the form of the bytes depends on.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The use of the memory, as errors say it.
const WHAT: &str = "a request on its way";

/// The model that is wanted, in words that hold on any machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedModel {
    /// Its name in requests.
    pub name: String,
    /// Its file below the directory of the models; `None` for the builtin model.
    pub file: Option<String>,
    /// The SHA-256 that its own file must have, where that is known.
    pub sha256: Option<[u8; 32]>,
    /// The SHA-256 of its file together with its adapters, as the server has them.
    pub with_adapters: Option<[u8; 32]>,
    /// The length that its file must have, where only that is known.
    pub bytes: Option<u64>,
}

/// A request, or one of its stages.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RemoteJob {
    /// The model that does all of it.
    pub model: WantedModel,
    /// Number of its subtasks.
    pub count: usize,
    /// The subtasks that come with it, at least one; the others come when they are asked for.
    pub works: Vec<Work>,
}

/// The reason why something is not even tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRefusal {
    /// The error. Never contains a prompt.
    pub message: String,
    /// The five characters of the SQLSTATE.
    pub code: String,
    /// Whether it may be different later.
    pub retry: bool,
}

/// The outcome of preparing a row of the queue.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum PreparedRow {
    /// Work.
    Job(RemoteJob),
    /// The reason why nothing can be done.
    Refused(JobRefusal),
}

/// The reason why a job has no answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum JobFailure {
    /// A subtask failed.
    Failed {
        /// Its number.
        subtask: usize,
        /// The engine's error.
        error: Error,
    },
    /// The model cannot be had there.
    Model(JobRefusal),
}

/// The outcome of a job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// The outputs of all subtasks, in their order.
    pub outputs: Result<Vec<Output>, JobFailure>,
    /// Length of the prompts, where that is known.
    pub prompt_tokens: Option<u64>,
    /// Tokens of the prompt that did not have to be computed.
    pub cached_tokens: Option<u64>,
    /// Milliseconds to the first token of a text.
    pub first_token_ms: Option<u64>,
    /// The address of another engine, where one has answered. Its answers are not repeatable.
    pub endpoint: Option<String>,
}

/// The number of bytes that [`encode`] makes of a value.
///
/// # Errors
/// As [`encode`].
pub fn encoded_bytes<T: Serialize>(value: &T) -> Result<usize, Error> {
    postcard::experimental::serialized_size(value)
        .map_err(|_| Error::InvalidRequest("it has no form".to_owned()))
}

/// Encodes a value.
///
/// # Errors
/// [`Error::InvalidRequest`] for a value that cannot be encoded, of which there are none here.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, Error> {
    postcard::to_allocvec(&(VERSION, value)).map_err(|_| Error::InvalidRequest("it has no form".to_owned()))
}

/// Decodes bytes from the other side.
///
/// # Errors
/// [`Error::InvalidRequest`] for bytes of another version and for what cannot be read;
/// [`Error::OutOfMemory`].
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    let invalid = |message: String| Error::InvalidRequest(message);
    let (version, rest): (&str, &[u8]) = postcard::take_from_bytes(bytes)
        .map_err(|_| invalid("what came from the other machine cannot be read".to_owned()))?;
    if version != VERSION {
        let shown: String = version.chars().take(16).collect();
        return Err(invalid(format!("the other machine has version {shown}, not {VERSION}")));
    }
    match watched(WHAT, 2 * rest.len(), || postcard::take_from_bytes(rest))? {
        Ok((value, [])) => Ok(value),
        Ok(_) | Err(_) => Err(invalid("what came from the other machine cannot be read".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::{PreparedRow, RemoteJob, Report, VERSION, WantedModel, decode, encode};
    use crate::{Embed, Generate, Output, Work};

    fn job() -> PreparedRow {
        let generate = Generate { prompt: "What?".into(), max_tokens: 3, ..Generate::default() };
        let works = vec![Work::Generate(generate), Work::Embed(Embed::passage("text"))];
        let model = WantedModel {
            name: "m".into(),
            file: Some("m.gguf".into()),
            sha256: Some([7; 32]),
            with_adapters: None,
            bytes: None,
        };
        PreparedRow::Job(RemoteJob { model, count: 5, works })
    }

    #[test]
    fn what_travels_arrives() {
        let bytes = encode(&job()).unwrap();
        let PreparedRow::Job(arrived) = decode(&bytes).unwrap() else { panic!() };
        assert_eq!(arrived.model.file.as_deref(), Some("m.gguf"));
        assert!(matches!(&arrived.works[..], [Work::Generate(how), Work::Embed(_)] if how.max_tokens == 3));
        let vector = vec![0.1_f32, f32::MIN_POSITIVE, -1.5e-42];
        let report = Report {
            outputs: Ok(vec![Output::Embedding(vector.clone())]),
            prompt_tokens: Some(4),
            cached_tokens: None,
            first_token_ms: None,
            endpoint: Some("https://engine.example/v1".into()),
        };
        let arrived: Report = decode(&encode(&report).unwrap()).unwrap();
        let Ok([Output::Embedding(arrived)]) = arrived.outputs.as_deref() else { panic!() };
        let bits = |vector: &[f32]| vector.iter().map(|number| number.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(arrived), bits(&vector));
    }

    #[test]
    fn bytes_of_another_version_and_spoiled_ones_are_refused() {
        let bytes = encode(&job()).unwrap();
        let other = postcard::to_allocvec(&("1.2.3", job())).unwrap();
        assert!(decode::<PreparedRow>(&other).unwrap_err().to_string().contains("1.2.3"));
        for length in 0..bytes.len() {
            assert!(decode::<PreparedRow>(&bytes[..length]).is_err(), "{length}");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(decode::<PreparedRow>(&longer).is_err());
        // A count of elements that no bytes follow.
        let mut head = postcard::to_allocvec(VERSION).unwrap();
        head.extend([0xff; 9]);
        assert!(decode::<Report>(&head).is_err());
    }
}
