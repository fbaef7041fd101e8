//! Arguments of the command line.

use std::ffi::OsString;
use std::io::Read;
use std::path::PathBuf;
use std::str::FromStr;

use steadytext_engine::gguf::Gguf;
use steadytext_engine::template::ChatTemplate;
use steadytext_engine::{BackendChoice, Config, Constraint, KvCacheType, ModelSource, Sampling};

use super::{Error, help};

/// The action that a command line asks for.
#[derive(Debug)]
pub(super) enum CliAction {
    Run(Box<Arguments>),
    /// The help, on a command where one is named.
    Help(Option<String>),
    Version,
}

/// Arguments of any subcommand; each uses what it needs.
#[derive(Debug, Default)]
#[cfg_attr(not(feature = "hub"), allow(dead_code, reason = "some are those of pull"))]
pub(super) struct Arguments {
    pub(super) command: String,
    model: OsString,
    text: Option<String>,
    pub(super) max_tokens: Option<usize>,
    pub(super) sampling: Sampling,
    pub(super) stop: Vec<String>,
    pub(super) constraint: Option<Constraint>,
    pub(super) system: Option<String>,
    pub(super) thinking: bool,
    template: Option<String>,
    pub(super) out: Option<PathBuf>,
    pub(super) all: bool,
    pub(super) marked: bool,
    pub(super) chat: bool,
    pub(super) jsonl: bool,
    pub(super) verify: bool,
    pub(super) json: bool,
    pub(super) requests: Option<usize>,
    pub(super) context: usize,
    pub(super) kv_cache_type: KvCacheType,
    pub(super) threads: usize,
    pub(super) model_dir: Option<PathBuf>,
    pub(super) endpoint: Option<String>,
    pub(super) token_file: Option<PathBuf>,
    pub(super) backend: BackendChoice,
    pub(super) text_file: Option<PathBuf>,
    pub(super) positions: Option<usize>,
    pub(super) serving: ServeArguments,
}

/// The engine that a server asks for.
#[derive(Debug)]
pub(super) struct ServeArguments {
    /// The build of the server's library.
    pub(super) build: Option<String>,
    pub(super) nice: i32,
    pub(super) max_running: usize,
    pub(super) kv_cache_mb: u64,
    /// 0: no limit.
    pub(super) memory_limit_mb: u64,
    /// 0: models stay.
    pub(super) idle_timeout_s: f64,
    /// PLACE:FILE, for tests: where the engine panics as long as the file is there.
    pub(super) fault: Option<String>,
}

impl Default for ServeArguments {
    fn default() -> ServeArguments {
        let Config { nice, max_running, kv_cache_mb, memory_limit_mb, model_idle_timeout, .. } =
            Config::default();
        let idle_timeout_s = model_idle_timeout.map_or(0.0, |timeout| timeout.as_secs_f64());
        ServeArguments {
            build: None,
            nice,
            max_running,
            kv_cache_mb,
            memory_limit_mb,
            idle_timeout_s,
            fault: None,
        }
    }
}

impl Arguments {
    /// Takes options wherever they are.
    pub(super) fn parse(arguments: Vec<OsString>) -> Result<CliAction, Error> {
        let mut parsed = Arguments::default();
        let mut positional = Vec::new();
        let mut choices = Vec::new();
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let option = argument.to_str().filter(|text| text.starts_with("--") || *text == "-h");
            let Some(option) = option else {
                positional.push(argument);
                continue;
            };
            let mut value =
                || arguments.next().ok_or_else(|| Error::Usage(format!("option {option} needs a value")));
            match option {
                "--max-tokens" => parsed.max_tokens = Some(number(option, value()?)?),
                "--temperature" => parsed.sampling.temperature = number(option, value()?)?,
                "--top-k" => parsed.sampling.top_k = number(option, value()?)?,
                "--top-p" => parsed.sampling.top_p = number(option, value()?)?,
                "--min-p" => parsed.sampling.min_p = number(option, value()?)?,
                "--seed" => parsed.sampling.seed = number(option, value()?)?,
                "--stop" => parsed.stop.push(utf8(value()?)?),
                "--schema" => parsed.constraint = Some(Constraint::Json(utf8(value()?)?)),
                "--regex" => parsed.constraint = Some(Constraint::Regex(utf8(value()?)?)),
                "--choice" => choices.push(utf8(value()?)?),
                "--system" => parsed.system = Some(utf8(value()?)?),
                "--thinking" => parsed.thinking = true,
                "--template" => parsed.template = Some(utf8(value()?)?),
                "--out" => parsed.out = Some(value()?.into()),
                "--all" => parsed.all = true,
                "--marked" => parsed.marked = true,
                "--chat" => parsed.chat = true,
                "--jsonl" => parsed.jsonl = true,
                "--verify" => parsed.verify = true,
                "--json" => parsed.json = true,
                "--requests" => parsed.requests = Some(number(option, value()?)?),
                "--context" => parsed.context = number(option, value()?)?,
                "--backend" => {
                    let name = utf8(value()?)?;
                    let backend = BackendChoice::named(&name);
                    parsed.backend = backend.ok_or_else(|| no_value(option, &name))?;
                }
                "--text" => parsed.text_file = Some(value()?.into()),
                "--positions" => parsed.positions = Some(number(option, value()?)?),
                "--kv-cache-type" => parsed.kv_cache_type = number(option, value()?)?,
                "--threads" => parsed.threads = number(option, value()?)?,
                "--model-dir" => parsed.model_dir = Some(value()?.into()),
                "--endpoint" => parsed.endpoint = Some(utf8(value()?)?),
                "--token-file" => parsed.token_file = Some(value()?.into()),
                "--build" => parsed.serving.build = Some(utf8(value()?)?),
                "--nice" => parsed.serving.nice = number(option, value()?)?,
                "--max-running" => parsed.serving.max_running = number(option, value()?)?,
                "--kv-cache-mb" => parsed.serving.kv_cache_mb = number(option, value()?)?,
                "--memory-limit-mb" => parsed.serving.memory_limit_mb = number(option, value()?)?,
                "--idle-timeout" => parsed.serving.idle_timeout_s = seconds(option, value()?)?,
                "--fault" => parsed.serving.fault = Some(utf8(value()?)?),
                "--help" | "-h" => {
                    let command = positional.into_iter().next().map(utf8).transpose()?;
                    return Ok(CliAction::Help(command));
                }
                "--version" => return Ok(CliAction::Version),
                _ => return Err(Error::Usage(help::unknown(option))),
            }
        }
        if !choices.is_empty() {
            parsed.constraint = Some(Constraint::Choice(choices));
        }
        let mut positional = positional.into_iter();
        let Some(command) = positional.next().map(utf8).transpose()? else {
            return Err(Error::Usage("a command and a model are needed".to_owned()));
        };
        let Some(model) = positional.next() else {
            let reason = match &*command {
                "serve" => "a path for the socket is needed".to_owned(),
                _ if help::knows(&command) => "a model is needed".to_owned(),
                _ => help::unknown(&command),
            };
            return Err(Error::Usage(reason));
        };
        parsed.command = command;
        parsed.model = model;
        parsed.text = positional.next().map(utf8).transpose()?;
        match positional.next() {
            Some(_) => Err(Error::Usage("there are too many arguments".to_owned())),
            None => Ok(CliAction::Run(Box::new(parsed))),
        }
    }

    /// The argument in the place of the model.
    pub(super) fn place(&self) -> &OsString {
        &self.model
    }

    /// The model to be used.
    pub(super) fn source(&self) -> ModelSource {
        if self.model == "builtin" {
            ModelSource::Builtin
        } else {
            ModelSource::File(self.model.clone().into())
        }
    }

    /// The argument in the place of the model, as text.
    #[cfg(feature = "hub")]
    pub(super) fn model_text(&self) -> Result<String, Error> {
        utf8(self.model.clone())
    }

    /// Threads that compute, one per core by itself.
    pub(super) fn compute_threads(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        }
    }

    /// The model's file, without loading it.
    pub(super) fn gguf(&self) -> Result<Gguf, Error> {
        Ok(self.source().open()?)
    }

    /// The chat template that was asked for.
    pub(super) fn chat_template(&self, gguf: &Gguf) -> Result<ChatTemplate, steadytext_engine::Error> {
        match &self.template {
            Some(name) => ChatTemplate::named(gguf, name),
            None => ChatTemplate::from_gguf(gguf),
        }
    }

    /// The text, from standard input if there is none on the command line.
    pub(super) fn text(&self) -> Result<String, Error> {
        if let Some(text) = &self.text {
            return Ok(text.clone());
        }
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        Ok(text)
    }
}

fn number<T: FromStr>(option: &str, value: OsString) -> Result<T, Error> {
    let value = utf8(value)?;
    value.parse().map_err(|_| no_value(option, &value))
}

/// A time that [`std::time::Duration`] can hold.
fn seconds(option: &str, value: OsString) -> Result<f64, Error> {
    let seconds = number(option, value)?;
    std::time::Duration::try_from_secs_f64(seconds).map_err(|_| no_value(option, &seconds.to_string()))?;
    Ok(seconds)
}

fn no_value(option: &str, value: &str) -> Error {
    Error::Usage(format!("\"{value}\" is no value for option {option}"))
}

fn utf8(value: OsString) -> Result<String, Error> {
    value.into_string().map_err(|_| Error::Usage("an argument is not valid UTF-8".to_owned()))
}
