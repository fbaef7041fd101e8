//! Connections as libpq makes them from a URL, the environment and the file of passwords.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use postgres::config::{Host, SslMode};
use postgres::{Client, Config, NoTls};

use crate::Error;
use crate::dsn;
use crate::tls::{self, Tls};

/// The directory of servers' sockets, where nothing else is said.
const SOCKET_DIRECTORY: &str = "/var/run/postgresql";
const PORT: u16 = 5432;
/// Longest wait for a server to answer, where nothing else is set.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Silence after which a connection is probed, and longest time for which data may go unacknowledged.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// A database, and how it is reached.
#[derive(Debug)]
pub(crate) struct DatabaseTarget {
    pub(crate) config: Config,
    tls: Tls,
}

impl DatabaseTarget {
    /// The connection parameters of a URL, completed from PGHOST and libpq's other environment variables, and
    /// from the password file.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] for a URL that cannot be read. It says nothing of what stands in it.
    pub(crate) fn read(url: &str) -> Result<DatabaseTarget, Error> {
        let (rest, said) = dsn::split(url)?;
        let mut config = complete(&rest)?;
        let is_local = !config.get_hosts().is_empty()
            && config.get_hosts().iter().all(|host| matches!(host, Host::Unix(_)));
        // TLS is not used on Unix-domain sockets, as in libpq.
        let tls = if is_local { Tls::Without } else { tls::of(&said)? };
        config.ssl_mode(match &tls {
            Tls::Without => SslMode::Disable,
            Tls::With(mode, _) => *mode,
        });
        Ok(DatabaseTarget { config, tls })
    }

    /// Opens a connection.
    ///
    /// # Errors
    ///
    /// The server's, or the network's.
    pub(crate) fn connect(&self) -> Result<Client, postgres::Error> {
        match &self.tls {
            Tls::Without => self.config.connect(NoTls),
            Tls::With(_, connector) => self.config.connect(connector.clone()),
        }
    }
}

fn complete(text: &str) -> Result<Config, Error> {
    let mut config: Config =
        text.parse().map_err(|_| Error::Usage("a database URL cannot be read".to_owned()))?;
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        match variable("PGHOST") {
            Some(hosts) => hosts.split(',').for_each(|host| {
                config.host(host);
            }),
            None => {
                config.host_path(SOCKET_DIRECTORY);
            }
        }
    }
    if config.get_ports().is_empty()
        && let Some(port) = variable("PGPORT").and_then(|port| port.parse().ok())
    {
        config.port(port);
    }
    if config.get_user().is_none() {
        let user = variable("PGUSER").or_else(|| variable("USER")).or_else(|| variable("LOGNAME"));
        config.user(user.as_deref().unwrap_or("postgres"));
    }
    let user = config.get_user().unwrap_or_default().to_owned();
    if config.get_dbname().is_none() {
        config.dbname(variable("PGDATABASE").as_deref().unwrap_or(&user));
    }
    if config.get_password().is_none()
        && let Some(password) = variable("PGPASSWORD").or_else(|| kept_password(&config))
    {
        config.password(password);
    }
    if config.get_application_name().is_none() {
        config.application_name("steadytext-worker");
    }
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(CONNECT_TIMEOUT);
    }
    // A peer that has gone without a word is noticed.
    config.keepalives_idle(KEEPALIVE).tcp_user_timeout(KEEPALIVE);
    Ok(config)
}

/// A database in words: no password is in them.
pub(crate) fn describe(config: &Config) -> String {
    let host = match config.get_hosts().first() {
        Some(Host::Tcp(host)) => host.clone(),
        Some(Host::Unix(path)) => path.display().to_string(),
        None => config.get_hostaddrs().first().map(ToString::to_string).unwrap_or_default(),
    };
    let port = config.get_ports().first().copied().unwrap_or(PORT);
    format!("{}@{host}:{port}", config.get_dbname().unwrap_or_default())
}

/// The password that PGPASSFILE or ~/.pgpass has for the database.
fn kept_password(config: &Config) -> Option<String> {
    let path = std::env::var_os("PGPASSFILE").map(PathBuf::from).or_else(|| {
        let home = std::env::var_os("HOME")?;
        Some(Path::new(&home).join(".pgpass"))
    })?;
    // A file that others can read holds no secret, and is passed over as libpq does it.
    if fs::metadata(&path).ok()?.permissions().mode() & 0o077 != 0 {
        return None;
    }
    let host = match config.get_hosts().first()? {
        Host::Tcp(host) => host.clone(),
        Host::Unix(path) if path == Path::new(SOCKET_DIRECTORY) => "localhost".to_owned(),
        Host::Unix(path) => path.display().to_string(),
    };
    let port = config.get_ports().first().copied().unwrap_or(PORT).to_string();
    let wanted = [host.as_str(), port.as_str(), config.get_dbname()?, config.get_user()?];
    fs::read_to_string(path).ok()?.lines().find_map(|line| password_of(line, &wanted))
}

/// The last field of a line whose other fields fit.
fn password_of(line: &str, wanted: &[&str; 4]) -> Option<String> {
    if line.starts_with('#') {
        return None;
    }
    let mut fields: Vec<String> = Vec::new();
    let mut field = String::new();
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            ':' if fields.len() < 4 => fields.push(std::mem::take(&mut field)),
            '\\' => field.extend(characters.next()),
            character => field.push(character),
        }
    }
    fields.push(field);
    let password = fields.get(4)?.clone();
    let fits = fields.iter().zip(wanted).all(|(field, wanted)| field == "*" || field == wanted);
    fits.then_some(password)
}
