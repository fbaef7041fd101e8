//! A connection, with the few words that every test needs.

use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use postgres::Client;
use postgres::error::DbError;
use postgres::types::FromSqlOwned;

use crate::wait::promptly;

/// The address of a cluster.
#[derive(Debug, Clone)]
pub struct Address {
    socket_directory: PathBuf,
}

impl Address {
    pub(crate) fn new(socket_directory: &Path) -> Self {
        Address { socket_directory: socket_directory.to_owned() }
    }

    /// Tries once to connect.
    pub fn session(&self, database: &str, user: &str) -> Result<Session, postgres::Error> {
        Session::connect(
            postgres::Config::new()
                .host_path(&self.socket_directory)
                .port(5432)
                .user(user)
                .dbname(database)
                .application_name("steadytext test"),
        )
    }
}

/// A connection to a throwaway cluster.
pub struct Session {
    client: Client,
    notices: Arc<Mutex<Vec<DbError>>>,
}

impl Session {
    /// Connects with `config`, and keeps the notices and warnings that come.
    fn connect(config: &mut postgres::Config) -> Result<Self, postgres::Error> {
        let notices = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&notices);
        config.notice_callback(move |notice| kept.lock().expect("no panic while noting").push(notice));
        Ok(Session { client: config.connect(postgres::NoTls)?, notices })
    }

    /// The notices and warnings since the last call.
    pub fn notices(&mut self) -> Vec<DbError> {
        std::mem::take(&mut self.notices.lock().expect("no panic while noting"))
    }

    /// Runs statements; panics at an error.
    #[track_caller]
    pub fn run(&mut self, sql: &str) {
        if let Err(error) = self.client.batch_execute(sql) {
            panic!("{sql}\n{}", describe(&error));
        }
    }

    /// Runs statements that must not have to wait for the worker.
    #[track_caller]
    pub fn run_promptly(&mut self, sql: &str) {
        promptly(sql, || self.run(sql));
    }

    /// The single value of a query.
    #[track_caller]
    pub fn one<T: FromSqlOwned>(&mut self, sql: &str) -> T {
        match self.client.query_one(sql, &[]) {
            Ok(row) => row.get(0),
            Err(error) => panic!("{sql}\n{}", describe(&error)),
        }
    }

    /// The first column of a query.
    #[track_caller]
    pub fn list<T: FromSqlOwned>(&mut self, sql: &str) -> Vec<T> {
        match self.client.query(sql, &[]) {
            Ok(rows) => rows.iter().map(|row| row.get(0)).collect(),
            Err(error) => panic!("{sql}\n{}", describe(&error)),
        }
    }

    /// The error that the server gives for some statements; panics when there is none.
    #[track_caller]
    pub fn error(&mut self, sql: &str) -> DbError {
        match self.client.batch_execute(sql) {
            Ok(()) => panic!("{sql}\nsucceeded, an error was expected"),
            Err(error) => error.as_db_error().unwrap_or_else(|| panic!("{sql}\n{error}")).clone(),
        }
    }

    /// The number of the server process behind this connection.
    #[track_caller]
    pub fn backend_pid(&mut self) -> i32 {
        self.one("select pg_backend_pid()")
    }

    /// CREATE EXTENSION, with vector where it is missing.
    #[track_caller]
    pub fn create_extension(&mut self) {
        self.run("create extension if not exists vector; create extension pg_steadytext");
    }
}

impl Deref for Session {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for Session {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

/// SQLSTATE of an error; empty when it did not come from the server.
pub fn sqlstate_of(error: &postgres::Error) -> &str {
    error.code().map_or("", |code| code.code())
}

/// The server's message, or the client's.
pub fn message_of(error: &postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |error| error.message().to_owned())
}

fn describe(error: &postgres::Error) -> String {
    match error.as_db_error() {
        None => error.to_string(),
        Some(error) => format!(
            "{} {}{}{}",
            error.code().code(),
            error.message(),
            error.detail().map(|detail| format!("\nDETAIL: {detail}")).unwrap_or_default(),
            error.hint().map(|hint| format!("\nHINT: {hint}")).unwrap_or_default(),
        ),
    }
}
