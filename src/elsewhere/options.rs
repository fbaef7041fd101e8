//! The command line, and the variables of the environment that say the same.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::Error;
use crate::log::LogFormat;

/// The types of requests that there are.
const TYPES: [&str; 22] = [
    "generate",
    "generate_json",
    "generate_regex",
    "generate_choice",
    "embed",
    "batch_embed",
    "rerank",
    "batch_rerank",
    "if",
    "if_score",
    "classify",
    "classify_scores",
    "classify_multi",
    "score",
    "similarity",
    "analyze_sentiment",
    "extract",
    "translate",
    "mask",
    "extract_facts",
    "deduplicate_facts",
    "summarize",
];

/// The output of `--help`.
pub(crate) const HELP: &str = "\
steadytext-worker serves the queues of databases with pg_steadytext from this machine.

usage: steadytext-worker [OPTION]…

  --database-url URL     a database: a URI or key=value pairs as libpq takes them; may be repeated.
                         Without it DATABASE_URL, or else PGHOST, PGDATABASE and so on
  --model-dir DIR        where the files of models are (models)
  --models A,B           serves these models only; otherwise all whose files are there, and those of --endpoints
  --endpoints FILE       models that other engines answer over HTTP, as docs/endpoints.md describes them
  --types A,B            serves these types of requests only, for example embed,batch_embed
  --concurrency N        most requests that are held at a time, of all databases together (16)
  --threads N            threads that compute; 0: one per core (0)
  --memory-limit-mb N    memory for models, keys and values; 0: no limit (0)
  --kv-cache-mb N        memory for keys and values (1024)
  --poll-interval S      seconds between two looks at a queue that nobody announces (2)
  --lease S              seconds until requests of a dead worker are given to another (60)
  --grace S              seconds that begun requests have to end after SIGTERM (30)
  --once                 ends when what the first claim has brought is done, which may be nothing
  --drain                ends when there is nothing left to claim
  --no-listen            does not use LISTEN, for poolers in transaction mode
  --listen ADDR          serves /health/live, /health/ready and /metrics there, for example 127.0.0.1:9187
  --healthcheck          asks the worker at --listen whether it is ready, and ends
  --log-format FORMAT    text or json (text)
  --help, --version

Each option has a variable of the environment: STEADYTEXT_WORKER_MODEL_DIR, STEADYTEXT_WORKER_ONCE=1 and so on;
STEADYTEXT_WORKER_DATABASE_URL has several URLs with blanks between them. Passwords are best kept in ~/.pgpass.

The exit status is 0 when the program has ended as it was told to, 1 when a database could not be served or, with --once and
--drain, no model is on this machine that could be, and 2 for a command line or a file that it cannot use.

examples:
  steadytext-worker --database-url postgresql://worker@db.example/app --model-dir /srv/models
  steadytext-worker --database-url 'host=db.example dbname=app user=worker' --model-dir /srv/models --types embed,batch_embed
  steadytext-worker --database-url postgresql://worker@db.example/app --models builtin --drain
";

/// The action that the command line asks for.
pub(crate) enum WorkerAction {
    /// The help.
    Help,
    /// The version.
    Version,
    /// Whether the worker at an address is ready.
    Healthcheck(String),
    /// The program works for its databases.
    Serve(Box<WorkerOptions>),
}

/// Options of the work.
#[derive(Debug, Clone)]
pub(crate) struct WorkerOptions {
    /// Databases as they were given.
    pub(crate) database_urls: Vec<String>,
    /// The directory of the models.
    pub(crate) model_dir: PathBuf,
    /// `None`: all that are there.
    pub(crate) models: Option<Vec<String>>,
    /// The file of models that other engines answer.
    pub(crate) endpoints: Option<PathBuf>,
    /// `None`: all types.
    pub(crate) types: Option<Vec<String>>,
    pub(crate) concurrency: usize,
    pub(crate) threads: usize,
    pub(crate) memory_limit_mb: u64,
    pub(crate) kv_cache_mb: u64,
    pub(crate) poll_interval: Duration,
    pub(crate) lease_s: i32,
    pub(crate) grace: Duration,
    pub(crate) once: bool,
    pub(crate) drain: bool,
    pub(crate) use_listen: bool,
    pub(crate) listen: Option<String>,
    pub(crate) log_format: LogFormat,
}

impl Default for WorkerOptions {
    fn default() -> WorkerOptions {
        WorkerOptions {
            database_urls: Vec::new(),
            model_dir: PathBuf::from("models"),
            models: None,
            endpoints: None,
            types: None,
            concurrency: 16,
            threads: 0,
            memory_limit_mb: 0,
            kv_cache_mb: 1024,
            poll_interval: Duration::from_secs(2),
            lease_s: 60,
            grace: Duration::from_secs(30),
            once: false,
            drain: false,
            use_listen: true,
            listen: None,
            log_format: LogFormat::Text,
        }
    }
}

/// Options that take a value, and those that take none.
const WITH_VALUE: [&str; 14] = [
    "database-url",
    "model-dir",
    "models",
    "endpoints",
    "types",
    "concurrency",
    "threads",
    "memory-limit-mb",
    "kv-cache-mb",
    "poll-interval",
    "lease",
    "grace",
    "listen",
    "log-format",
];
const SWITCHES: [&str; 4] = ["once", "drain", "no-listen", "healthcheck"];

/// Reads the environment, then the command line, which wins.
///
/// # Errors
///
/// [`Error::Usage`].
pub(crate) fn parse(arguments: Vec<OsString>) -> Result<WorkerAction, Error> {
    let mut options = WorkerOptions::default();
    let mut healthcheck = false;
    let mut has_model_dir = false;
    for name in WITH_VALUE {
        let Some(value) = variable(name)? else { continue };
        if name == "database-url" {
            options.database_urls.extend(value.split_whitespace().map(str::to_owned));
        } else {
            has_model_dir |= name == "model-dir";
            options.set(name, &value)?;
        }
    }
    for name in SWITCHES {
        if variable(name)?.is_some_and(|value| !matches!(value.as_str(), "0" | "false" | "off")) {
            options.switch(name, &mut healthcheck);
        }
    }
    let mut given_urls = Vec::new();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let argument =
            argument.into_string().map_err(|_| Error::Usage("an argument is no UTF-8".to_owned()))?;
        let (name, inline) = match argument.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (name.to_owned(), Some(value.to_owned())),
            _ => (argument, None),
        };
        match name.strip_prefix("--").unwrap_or(&name) {
            "help" | "-h" => return Ok(WorkerAction::Help),
            "version" | "-V" => return Ok(WorkerAction::Version),
            switch if SWITCHES.contains(&switch) && inline.is_none() => {
                options.switch(switch, &mut healthcheck);
            }
            option if WITH_VALUE.contains(&option) => {
                let value = match inline {
                    Some(value) => value,
                    None => {
                        let value = arguments.next().and_then(|value| value.into_string().ok());
                        value.ok_or_else(|| Error::Usage(format!("option --{option} needs a value")))?
                    }
                };
                if option == "database-url" {
                    given_urls.push(value);
                } else {
                    has_model_dir |= option == "model-dir";
                    options.set(option, &value)?;
                }
            }
            _ => {
                return Err(Error::Usage(format!(
                    "unknown argument {name}; steadytext-worker --help says what can be asked for"
                )));
            }
        }
    }
    if !given_urls.is_empty() {
        options.database_urls = given_urls;
    }
    if healthcheck {
        let address = options.listen;
        return address
            .map(WorkerAction::Healthcheck)
            .ok_or_else(|| Error::Usage("--healthcheck needs --listen".to_owned()));
    }
    // The default one need not be there: the builtin model and those of endpoints need no files.
    if has_model_dir && let Err(error) = std::fs::read_dir(&options.model_dir) {
        return Err(Error::Usage(format!(
            "--model-dir \"{}\" cannot be read: {error}",
            options.model_dir.display()
        )));
    }
    if options.database_urls.is_empty() {
        // An empty one is all that PGHOST, PGDATABASE and the others say.
        options.database_urls.push(std::env::var("DATABASE_URL").unwrap_or_default());
    }
    Ok(WorkerAction::Serve(Box::new(options)))
}

/// `STEADYTEXT_WORKER_…` of an option.
fn variable(option: &str) -> Result<Option<String>, Error> {
    let name = format!("STEADYTEXT_WORKER_{}", option.replace('-', "_").to_uppercase());
    match std::env::var(&name) {
        Ok(value) if value.is_empty() => Ok(None),
        Ok(value) => Ok(Some(value)),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => Err(Error::Usage(format!("{name} is no UTF-8"))),
    }
}

impl WorkerOptions {
    fn switch(&mut self, name: &str, healthcheck: &mut bool) {
        match name {
            "once" => self.once = true,
            "drain" => self.drain = true,
            "no-listen" => self.use_listen = false,
            _ => *healthcheck = true,
        }
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), Error> {
        match name {
            "model-dir" => self.model_dir = PathBuf::from(value),
            "models" => self.models = Some(list(value)),
            "endpoints" => self.endpoints = Some(PathBuf::from(value)),
            "types" => self.types = Some(types(value)?),
            "concurrency" => self.concurrency = number(name, value, 1, 1000)?,
            "threads" => self.threads = number(name, value, 0, 1024)?,
            "memory-limit-mb" => self.memory_limit_mb = number(name, value, 0, u64::MAX)?,
            "kv-cache-mb" => self.kv_cache_mb = number(name, value, 1, u64::MAX)?,
            "poll-interval" => self.poll_interval = seconds(name, value)?,
            "lease" => self.lease_s = number(name, value, 1, 3600)?,
            "grace" => self.grace = seconds(name, value)?,
            "listen" => self.listen = Some(value.to_owned()),
            _ => {
                self.log_format = match value {
                    "text" => LogFormat::Text,
                    "json" => LogFormat::Json,
                    _ => return Err(Error::Usage("--log-format must be text or json".to_owned())),
                }
            }
        }
        Ok(())
    }
}

fn list(value: &str) -> Vec<String> {
    value.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// Names of types, each of which there is.
fn types(value: &str) -> Result<Vec<String>, Error> {
    let names = list(value);
    if let Some(unknown) = names.iter().find(|name| !TYPES.contains(&name.as_str())) {
        return Err(Error::Usage(format!(
            "--types has \"{unknown}\", which is none of {}",
            TYPES.join(", ")
        )));
    }
    if names.is_empty() {
        return Err(Error::Usage(format!("--types names none of {}", TYPES.join(", "))));
    }
    Ok(names)
}

fn number<T: FromStr + PartialOrd + std::fmt::Display>(
    name: &str,
    value: &str,
    least: T,
    most: T,
) -> Result<T, Error> {
    match value.parse() {
        Ok(number) if number >= least && number <= most => Ok(number),
        _ => Err(Error::Usage(format!("--{name} must be a number from {least} to {most}"))),
    }
}

fn seconds(name: &str, value: &str) -> Result<Duration, Error> {
    match value.parse::<f64>() {
        Ok(seconds) if (0.05..=3600.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(Error::Usage(format!("--{name} must be a number of seconds from 0.05 to 3600"))),
    }
}
