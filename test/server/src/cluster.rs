//! A throwaway cluster: its directory, its settings, its log, its client programs.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::program::{as_server_user, give_to_server_user, run, server_program, succeed};
use crate::run_directory;
use crate::session::{Address, Session};
use crate::wait::{PATIENCE, eventually};

/// Settings that every cluster starts with; later lines win.
const SETTINGS: &str = "\
listen_addresses = ''
port = 5432
max_connections = 60
max_worker_processes = 16
max_prepared_transactions = 8
max_wal_senders = 4
wal_level = replica
shared_buffers = 64MB
track_commit_timestamp = on
log_line_prefix = '%m [%p] %b %d: '
log_statement = 'none'
timezone = 'UTC'
";

/// Options of a cluster.
#[derive(Debug, Clone)]
pub struct Options {
    preload: bool,
    fsync: bool,
    library: Option<PathBuf>,
    open_files: Option<u64>,
    environment: Vec<(String, String)>,
    settings: Vec<(String, String)>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            preload: true,
            fsync: false,
            library: library_directory(),
            open_files: None,
            environment: Vec::new(),
            settings: Vec::new(),
        }
    }
}

impl Options {
    /// pg_steadytext preloaded, fsync off.
    pub fn new() -> Self {
        Options::default()
    }

    /// A server whose shared_preload_libraries is empty.
    pub fn without_preload(mut self) -> Self {
        self.preload = false;
        self
    }

    /// Switches fsync on, for measurements.
    pub fn with_fsync(mut self) -> Self {
        self.fsync = true;
        self
    }

    /// A directory in which the library is looked for first; `STEADYTEXT_LIBRARY_DIR` by itself.
    pub fn with_library(mut self, directory: impl Into<PathBuf>) -> Self {
        self.library = Some(directory.into());
        self
    }

    /// The limit of open files of each of the server's processes, as `ulimit -n` sets it.
    pub fn open_files(mut self, most: u64) -> Self {
        self.open_files = Some(most);
        self
    }

    /// A variable of the server's environment.
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// One line of postgresql.conf.
    pub fn set(mut self, name: &str, value: impl ToString) -> Self {
        self.settings.push((name.to_owned(), value.to_string()));
        self
    }

    /// The settings that choose a model are `auto`, as in a server where nobody has set them.
    pub fn automatic_models(self) -> Self {
        self.set("pg_steadytext.generation_model", "auto")
            .set("pg_steadytext.embedding_model", "auto")
            .set("pg_steadytext.reranker_model", "auto")
    }

    /// Makes the cluster and starts its server.
    pub fn start(self) -> Cluster {
        let mut cluster = self.create();
        cluster.start();
        cluster
    }

    /// Makes the cluster without starting its server.
    pub fn create(self) -> Cluster {
        let mut cluster = Cluster::empty();
        cluster.open_files = self.open_files;
        cluster.environment = self.environment.clone();
        succeed(as_server_user("cp").args(["-a", "--reflink=auto"]).arg(&*TEMPLATE).arg(cluster.data()));
        let mut text = String::from(SETTINGS);
        text.push_str(&format!("unix_socket_directories = '{}'\n", cluster.directory.display()));
        text.push_str(&format!("fsync = {}\n", if self.fsync { "on" } else { "off" }));
        if let Some(library) = &self.library {
            text.push_str(&format!("dynamic_library_path = '{}:$libdir'\n", library.display()));
        }
        if self.preload {
            text.push_str("shared_preload_libraries = 'pg_steadytext'\n");
            text.push_str(&format!("pg_steadytext.model_dir = '{}'\n", cluster.model_directory().display()));
            // A test that registers a model names it; "auto" would take it for the other requests, too.
            text.push_str(
                "pg_steadytext.generation_model = 'builtin'\npg_steadytext.embedding_model = 'builtin'\n\
                 pg_steadytext.reranker_model = 'builtin'\n",
            );
        }
        cluster.append_settings(&text);
        for (name, value) in &self.settings {
            cluster.configure(name, value);
        }
        cluster
    }
}

/// A build of the library other than the installed one, from the environment.
fn library_directory() -> Option<PathBuf> {
    std::env::var_os("STEADYTEXT_LIBRARY_DIR").map(PathBuf::from)
}

/// Made once per process: initdb takes longer than a copy.
static TEMPLATE: LazyLock<PathBuf> = LazyLock::new(|| {
    let template = run_directory().join("template");
    succeed(
        server_program("initdb")
            .args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"])
            .arg("--pgdata")
            .arg(&template),
    );
    template
});

static CLUSTERS: AtomicUsize = AtomicUsize::new(1);

/// A PostgreSQL server of this process' own. Dropping it stops the server and removes every trace.
#[derive(Debug)]
pub struct Cluster {
    directory: PathBuf,
    pub(crate) postmaster: Option<Child>,
    /// The limit of open files for its processes.
    pub(crate) open_files: Option<u64>,
    /// Variables that are added to its environment.
    pub(crate) environment: Vec<(String, String)>,
}

impl Cluster {
    /// A cluster with pg_steadytext preloaded, and the extension installed in database `postgres`.
    pub fn with_extension() -> Cluster {
        let cluster = Options::new().start();
        cluster.session("postgres").create_extension();
        cluster
    }

    /// A directory without a data directory.
    pub(crate) fn empty() -> Cluster {
        let directory = run_directory().join(format!("c{}", CLUSTERS.fetch_add(1, Ordering::Relaxed)));
        let cluster = Cluster { directory, postmaster: None, open_files: None, environment: Vec::new() };
        for directory in [cluster.directory.clone(), cluster.model_directory()] {
            std::fs::create_dir(&directory)
                .unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
            give_to_server_user(&directory);
        }
        cluster
    }

    /// Its directory: socket, log, data and models lie in it.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// The directory that `pg_steadytext.model_dir` names.
    pub fn model_directory(&self) -> PathBuf {
        self.directory.join("models")
    }

    /// Writes a file into the data directory, which only the server may read, as keys must be.
    #[track_caller]
    pub fn write_data(&self, name: &str, content: &[u8]) {
        use std::os::unix::fs::PermissionsExt;
        let path = self.data().join(name);
        let written = std::fs::write(&path, content)
            .and_then(|()| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)));
        written.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        give_to_server_user(&path);
    }

    /// A new directory inside the cluster's, owned by the server's user: for tablespaces and dumps.
    pub fn make_directory(&self, name: &str) -> PathBuf {
        let path = self.directory.join(name);
        std::fs::create_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        give_to_server_user(&path);
        path
    }

    pub(crate) fn log_path(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// Appends `name = 'value'` to postgresql.conf. Takes effect at [`Cluster::reload`] or at the next start.
    pub fn configure(&self, name: &str, value: impl ToString) {
        let value = value.to_string().replace('\'', "''");
        self.append_settings(&format!("{name} = '{value}'\n"));
    }

    pub(crate) fn append_settings(&self, text: &str) {
        use std::io::Write;
        let path = self.data().join("postgresql.conf");
        std::fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// Connects as the superuser. Waits while the server is starting or recovering.
    #[track_caller]
    pub fn session(&self, database: &str) -> Session {
        self.session_as(database, "postgres")
    }

    /// Connects as `user`. Waits while the server is starting or recovering.
    #[track_caller]
    pub fn session_as(&self, database: &str, user: &str) -> Session {
        let mut last = None;
        let session = eventually(PATIENCE, || match self.try_session(database, user) {
            Ok(session) => Some(session),
            Err(error) => {
                last = Some(error);
                None
            }
        });
        session.unwrap_or_else(|| panic!("no connection to {database} as {user}: {last:?}"))
    }

    /// Tries once to connect.
    pub fn try_session(&self, database: &str, user: &str) -> Result<Session, postgres::Error> {
        self.address().session(database, user)
    }

    /// The server's address; can be handed to other threads.
    pub fn address(&self) -> Address {
        Address::new(&self.directory)
    }

    /// One of PostgreSQL's client programs, pointed at this cluster.
    pub fn client_program(&self, name: &str) -> Command {
        let mut command = server_program(name);
        command.env("PGHOST", &self.directory).env("PGPORT", "5432").env("PGUSER", "postgres");
        command
    }

    /// Runs SQL through psql, stops at the first error; panics unless it succeeds.
    #[track_caller]
    pub fn psql(&self, database: &str, sql: &str) -> String {
        succeed(&mut self.psql_command(database, sql))
    }

    /// Runs SQL through psql; what it wrote to standard error, where it failed.
    pub fn psql_error(&self, database: &str, sql: &str) -> Option<String> {
        let output = run(&mut self.psql_command(database, sql));
        (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn psql_command(&self, database: &str, sql: &str) -> Command {
        let mut command = self.client_program("psql");
        command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", sql]);
        command
    }

    /// The server log up to now.
    pub fn log(&self) -> String {
        std::fs::read(self.log_path())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Waits until the log holds `text` beyond `from` (a length of [`Cluster::log`]); returns that line.
    #[track_caller]
    pub fn wait_for_log(&self, from: usize, text: &str) -> String {
        let line = eventually(PATIENCE, || {
            let log = self.log();
            log.get(from..)?.lines().find(|line| line.contains(text)).map(str::to_owned)
        });
        line.unwrap_or_else(|| panic!("the log never said {text:?}; it ends with\n{}", self.log_tail()))
    }

    pub(crate) fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }
}

impl Drop for Cluster {
    #[allow(clippy::print_stderr, reason = "the log says why a test failed")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- server log of {}\n{}\n----", self.directory.display(), self.log_tail());
        }
        self.destroy();
    }
}
