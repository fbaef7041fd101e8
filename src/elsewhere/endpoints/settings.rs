//! The file that says which models of the queue are behind which endpoints.
//!
//! Invariant: a key is read from a file that nobody else can read, and nothing shows it: no message, no line
//! of the log.

use std::fmt;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};
use ureq::http::Uri;

use crate::Error;

/// Bytes of the file, and of one with a key or certificates.
const MAX_FILE: u64 = 1 << 20;
const MAX_KEY: u64 = 4096;
/// Models that the file may have.
const MAX_MODELS: usize = 64;
/// Characters of the name of a model, and of an address, which the rows that it answers keep.
const MAX_NAME: usize = 200;
const MAX_ADDRESS: usize = 200;

/// The API of an endpoint that answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Api {
    /// `/chat/completions`.
    Chat,
    /// `/completions`: the prompt as it is, without a template.
    Completions,
    /// `/embeddings`.
    Embeddings,
    /// `/rerank`.
    Rerank,
}

/// The fields that tell the endpoint what an answer has to match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Guided {
    /// The endpoint follows no constraint: requests with a schema, a pattern or choices are left to others.
    #[default]
    None,
    /// `response_format` with `json_schema`.
    ResponseFormat,
    /// `response_format` with `json_object` and a schema beside it, as llama-cpp-python has it.
    JsonObject,
    /// `json_schema` and `grammar`, as llama-server has them.
    Grammar,
    /// `structured_outputs`, as vLLM has it.
    StructuredOutputs,
    /// `guided_json`, `guided_regex` and `guided_choice`, as older versions of vLLM have them.
    #[serde(rename = "guided")]
    Fields,
}

/// The sampling fields of an endpoint besides those of OpenAI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SamplingFields {
    /// The endpoint has the fields of OpenAI and no others.
    #[default]
    Openai,
    /// `top_k`, `min_p` and `repetition_penalty`.
    Vllm,
    /// `top_k`, `min_p` and `repeat_penalty`.
    Llama,
}

/// The treatment of requests for the likelihoods of given answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Judgements {
    /// Such requests are left to others.
    #[default]
    None,
    /// The model chooses one of the answers, which is then the likely one.
    Choice,
}

/// The form of `/rerank`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RerankForm {
    /// Jina's and Cohere's, which vLLM and llama-server have as well.
    #[default]
    Jina,
    /// Text Embeddings Inference's.
    Tei,
}

/// The range of the scores of `/rerank`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Scores {
    /// From 0 to 1.
    #[default]
    Probability,
    /// Any number, of which the sigmoid is taken.
    Logit,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EndpointsFile {
    #[serde(default)]
    model: Vec<ModelEntry>,
}

/// The entry of a model in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelEntry {
    name: String,
    api: Api,
    base_url: String,
    model: Option<String>,
    key_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
    #[serde(default)]
    guided: Guided,
    #[serde(default = "yes")]
    strict: bool,
    #[serde(default)]
    sampling: SamplingFields,
    #[serde(default)]
    judgements: Judgements,
    #[serde(default)]
    rerank: RerankForm,
    #[serde(default)]
    scores: Scores,
    max_tokens_field: Option<String>,
    #[serde(default)]
    omit: Vec<String>,
    #[serde(default)]
    extra: Map<String, Value>,
    #[serde(default = "concurrency")]
    concurrency: usize,
    #[serde(default = "batch")]
    batch: usize,
    #[serde(default = "timeout_s")]
    timeout_s: f64,
    #[serde(default = "retries")]
    retries: u32,
    #[serde(default = "max_answer_mb")]
    max_answer_mb: u64,
    #[serde(default)]
    plain_http: bool,
    #[serde(default)]
    use_proxy: bool,
}

fn yes() -> bool {
    true
}

fn concurrency() -> usize {
    4
}

fn batch() -> usize {
    32
}

fn timeout_s() -> f64 {
    120.0
}

fn retries() -> u32 {
    4
}

fn max_answer_mb() -> u64 {
    16
}

/// A model behind an endpoint.
#[derive(Debug, Clone)]
pub(crate) struct EndpointSettings {
    /// The model's name in requests.
    pub(crate) name: String,
    pub(crate) api: Api,
    /// The address before the paths, without a slash at its end.
    pub(crate) base_url: String,
    /// The model's name at the endpoint.
    pub(crate) model: String,
    pub(crate) key_file: Option<PathBuf>,
    /// Certificates of the authorities that vouch for the endpoint; `None`: the system's.
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) guided: Guided,
    pub(crate) strict: bool,
    pub(crate) sampling: SamplingFields,
    pub(crate) judgements: Judgements,
    pub(crate) rerank: RerankForm,
    pub(crate) scores: Scores,
    pub(crate) max_tokens_field: String,
    /// Fields that are never sent.
    pub(crate) omit: Vec<String>,
    /// Fields that are always sent.
    pub(crate) extra: Map<String, Value>,
    /// Calls at a time.
    pub(crate) concurrency: usize,
    /// Texts of a call.
    pub(crate) batch: usize,
    /// Time limit of a call.
    pub(crate) timeout: Duration,
    /// Number of times that a call is tried again.
    pub(crate) retries: u32,
    /// Bytes of an answer.
    pub(crate) max_answer: u64,
    pub(crate) use_proxy: bool,
}

/// A key, which no message shows.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct ApiKey(String);

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

impl ApiKey {
    /// The secret itself, which only the endpoint may see.
    pub(super) fn secret(&self) -> &str {
        &self.0
    }

    /// The key in a file.
    ///
    /// # Errors
    ///
    /// A message about the file that reveals nothing of its contents.
    pub(super) fn read(path: &Path) -> Result<ApiKey, String> {
        let wrong = |why: &str| format!("key file {}: {why}", path.display());
        let file = fs::File::open(path).map_err(|error| wrong(&error.to_string()))?;
        let metadata = file.metadata().map_err(|error| wrong(&error.to_string()))?;
        if !metadata.is_file() {
            return Err(wrong("it is no file"));
        }
        // A file that others can read holds no secret, which is also the rule for files of passwords.
        if metadata.permissions().mode() & 0o077 != 0 {
            return Err(wrong("others can read or write it; chmod 600 it"));
        }
        let text = limited(file, MAX_KEY).map_err(|why| wrong(&why))?;
        let text = text.trim();
        if text.is_empty() {
            return Err(wrong("it is empty"));
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(wrong("it has characters that no key has"));
        }
        Ok(ApiKey(text.to_owned()))
    }
}

fn limited(file: fs::File, most: u64) -> Result<String, String> {
    let mut text = String::new();
    file.take(most + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
    if text.len() as u64 > most { Err(format!("it has more than {most} bytes")) } else { Ok(text) }
}

/// The models of a file. Files of keys are looked at, so that what is wrong with them is said at once.
///
/// # Errors
///
/// [`Error::Usage`].
pub(crate) fn read(path: &Path) -> Result<Vec<EndpointSettings>, Error> {
    let wrong = |why: String| Error::Usage(format!("endpoints {}: {why}", path.display()));
    let file = fs::File::open(path).map_err(|error| wrong(error.to_string()))?;
    let text = limited(file, MAX_FILE).map_err(wrong)?;
    let file: EndpointsFile = toml::from_str(&text).map_err(|error| {
        let line = error.span().map(|span| text[..span.start.min(text.len())].lines().count().max(1));
        let place = line.map(|line| format!("line {line}: ")).unwrap_or_default();
        wrong(format!("{place}{}", error.message()))
    })?;
    if file.model.len() > MAX_MODELS {
        return Err(wrong(format!("it has more than {MAX_MODELS} models")));
    }
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut models: Vec<EndpointSettings> = Vec::with_capacity(file.model.len());
    for entry in file.model {
        let name: String = entry.name.chars().take(MAX_NAME).collect();
        let settings = entry.checked(folder).map_err(|why| wrong(format!("model \"{name}\": {why}")))?;
        if models.iter().any(|known| known.name.eq_ignore_ascii_case(&name)) {
            return Err(wrong(format!("model \"{name}\" is there twice")));
        }
        models.push(settings);
    }
    Ok(models)
}

impl ModelEntry {
    fn checked(self, folder: &Path) -> Result<EndpointSettings, String> {
        if self.name.trim().is_empty() || self.name.chars().count() > MAX_NAME || self.name == "builtin" {
            return Err(format!(
                "its name must have 1 to {MAX_NAME} characters, and not be that of the builtin model"
            ));
        }
        let base_url = self.base_url.trim_end_matches('/').to_owned();
        check_address(&base_url, self.plain_http)?;
        let key_file = self.key_file.map(|file| folder.join(file));
        if let Some(file) = &key_file {
            ApiKey::read(file)?;
        }
        in_range("concurrency", self.concurrency, 1, 64)?;
        in_range("batch", self.batch, 1, 1024)?;
        in_range("retries", self.retries, 0, 20)?;
        in_range("max_answer_mb", self.max_answer_mb, 1, 1024)?;
        if !(0.1..=3600.0).contains(&self.timeout_s) {
            return Err("timeout_s must be a number from 0.1 to 3600".to_owned());
        }
        let is_text = matches!(self.api, Api::Chat | Api::Completions);
        if !is_text && (self.guided != Guided::None || self.judgements != Judgements::None) {
            return Err("guided and judgements are for texts: api must be chat or completions".to_owned());
        }
        if self.judgements == Judgements::Choice && (self.guided == Guided::None || self.api != Api::Chat) {
            return Err(
                "judgements = \"choice\" needs api = \"chat\" and a kind of guided decoding".to_owned()
            );
        }
        // `extra` must not replace the fields that decide the question and the form of its answer.
        if let Some(field) = self.extra.keys().find(|field| {
            ["model", "messages", "prompt", "input", "query", "documents", "texts", "stream", "n"]
                .contains(&field.as_str())
        }) {
            return Err(format!("extra must not have {field}"));
        }
        Ok(EndpointSettings {
            model: self.model.unwrap_or_else(|| self.name.clone()),
            name: self.name,
            api: self.api,
            base_url,
            key_file,
            ca_file: self.ca_file.map(|file| folder.join(file)),
            guided: self.guided,
            strict: self.strict,
            sampling: self.sampling,
            judgements: self.judgements,
            rerank: self.rerank,
            scores: self.scores,
            max_tokens_field: self.max_tokens_field.unwrap_or_else(|| "max_tokens".to_owned()),
            omit: self.omit,
            extra: self.extra,
            concurrency: self.concurrency,
            batch: self.batch,
            timeout: Duration::from_secs_f64(self.timeout_s),
            retries: self.retries,
            max_answer: self.max_answer_mb << 20,
            use_proxy: self.use_proxy,
        })
    }
}

fn in_range<T: PartialOrd + fmt::Display>(what: &str, value: T, least: T, most: T) -> Result<(), String> {
    if value >= least && value <= most {
        Ok(())
    } else {
        Err(format!("{what} must be a number from {least} to {most}"))
    }
}

/// An address with a host and perhaps a path. Traffic to another machine is encrypted, unless the file allows
/// `http://`.
fn check_address(address: &str, plain_http: bool) -> Result<(), String> {
    let uri: Uri = address.parse().map_err(|_| "base_url is no address".to_owned())?;
    let authority = uri.authority().map(|authority| authority.as_str()).unwrap_or_default();
    if authority.is_empty() || authority.contains('@') || uri.query().is_some() || address.len() > MAX_ADDRESS
    {
        return Err(format!(
            "base_url must be a host and perhaps a path, of at most {MAX_ADDRESS} bytes, without user, password or query"
        ));
    }
    match uri.scheme_str() {
        Some("https") => Ok(()),
        Some("http") if plain_http || is_loopback(uri.host().unwrap_or_default()) => Ok(()),
        Some("http") => Err("base_url must begin with https://: over http:// everybody on the way reads prompts, answers and the key; plain_http = true allows it".to_owned()),
        _ => Err("base_url must begin with https:// or http://".to_owned()),
    }
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}
