//! The disturbances of the storm.

use std::collections::HashSet;
use std::sync::Arc;

use postgres::Error;
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use uuid::Uuid;

use super::engine;
use super::kept;
use super::ledger::Ledger;
use crate::cluster::Cluster;
use crate::life::Shutdown;
use crate::models::slow_model;
use crate::process::{Signal, signal};
use crate::requests::AUDIT;
use crate::session::{Session, message_of};
use crate::wait::{PATIENCE, eventually};

/// Creates the extension in database `postgres` as the storm needs it.
pub(super) fn prepare(cluster: &Cluster) {
    let mut session = cluster.session("postgres");
    session.run(
        "create schema audit;
         create table audit.dropped (request_id uuid, request_type text, prompt text, params jsonb, status text, answer text);
         create extension vector; create extension pg_steadytext",
    );
    session.run(AUDIT);
    slow_model(cluster, &mut session);
    session.run(PATIENT);
    kept::prepare(&mut session);
}

/// A request may be in flight at many kills without being to blame for any.
const PATIENT: &str = "select steadytext_config_set('max_retries', '50')";

/// Notes which requests go with the table, and drops it.
const DROP: &str = "
lock table steadytext_queue in access exclusive mode;
insert into audit.dropped select request_id, request_type, prompt, params, status, coalesce(result, embedding::text)
from steadytext_queue;
drop extension pg_steadytext cascade;
";

fn create() -> String {
    format!(
        "create extension pg_steadytext; {AUDIT}
         insert into steadytext_models (name, task, file) values ('slow', 'generate', 'slow.gguf'); {PATIENT};"
    )
}

/// Answers stored up to now. Waits until the server can say.
pub(super) fn answers(cluster: &Cluster) -> i64 {
    const SQL: &str = "select count(*) from audit.changed where new_answer";
    let answers =
        eventually(PATIENCE, || cluster.session("postgres").query_one(SQL, &[]).ok().map(|row| row.get(0)));
    answers.expect("the server answers a query")
}

/// The things that can happen.
#[derive(Debug, Clone, Copy)]
enum Strike {
    Worker(Signal),
    Launcher(Signal),
    /// The engine, where it is a program of its own; otherwise the workers.
    Engine(Signal),
    Backend(Signal),
    Everything,
    KillPostmaster,
    Stop(Shutdown),
    TerminateClients,
    CancelStatements,
    CancelRequests,
    DropAndCreate,
    DropThenCreate,
    DropRolledBack,
    Pause,
    /// A trigger raises for some rows, each time they are changed from this status.
    Raise(&'static str),
    /// A constraint trigger raises at the end, for some rows that are completed, as a conflict does.
    RaiseDeferred,
    /// A transaction holds whatever it can lock; in subtransactions, or not.
    Hold(bool),
    /// Many sessions call the engine once and stay idle until the next crowd comes.
    Crowd,
    /// For a while the engine may not have the memory that a model needs.
    NoMemory,
}

/// One round of disturbances, drawn in random order: what matters most is there more than once.
const STRIKES: [Strike; 34] = [
    Strike::Worker(Signal::KILL),
    Strike::Worker(Signal::KILL),
    Strike::Worker(Signal::SEGV),
    Strike::Worker(Signal::SEGV),
    Strike::Worker(Signal::TERM),
    Strike::Worker(Signal::TERM),
    Strike::Worker(Signal::ABORT),
    Strike::Engine(Signal::KILL),
    Strike::Engine(Signal::KILL),
    Strike::Engine(Signal::SEGV),
    Strike::Engine(Signal::ABORT),
    Strike::Launcher(Signal::TERM),
    Strike::Launcher(Signal::KILL),
    Strike::Backend(Signal::KILL),
    Strike::Everything,
    Strike::KillPostmaster,
    Strike::KillPostmaster,
    Strike::Stop(Shutdown::Immediate),
    Strike::Stop(Shutdown::Immediate),
    Strike::Stop(Shutdown::Fast),
    Strike::TerminateClients,
    Strike::CancelStatements,
    Strike::CancelRequests,
    Strike::DropAndCreate,
    Strike::DropThenCreate,
    Strike::DropRolledBack,
    Strike::Pause,
    Strike::Raise("pending"),
    Strike::Raise("processing"),
    Strike::RaiseDeferred,
    Strike::Hold(false),
    Strike::Hold(true),
    Strike::Crowd,
    Strike::NoMemory,
];

/// Draws disturbances and carries them out.
pub(super) struct Storm {
    random: StdRng,
    ledger: Arc<Ledger>,
    /// The strikes of the current round through [`STRIKES`] that are still to come: each comes once before
    /// any comes twice.
    ahead: Vec<Strike>,
    /// Idle sessions.
    crowd: Vec<Session>,
    /// Processes of the server that were killed.
    killed: HashSet<i32>,
}

impl Storm {
    pub(super) fn new(random: StdRng, ledger: Arc<Ledger>) -> Self {
        Storm { random, ledger, ahead: Vec::new(), crowd: Vec::new(), killed: HashSet::new() }
    }

    /// Answers to wait for before the next disturbance: sometimes few, so that it meets a server that is
    /// still recovering.
    pub(super) fn pace(&mut self) -> i64 {
        *[1, 5, 30, 100].choose(&mut self.random).expect("there are some")
    }

    /// One disturbance; says which.
    pub(super) fn strike(&mut self, cluster: &mut Cluster) -> String {
        if self.ahead.is_empty() {
            self.ahead = STRIKES.to_vec();
        }
        let strike = self.ahead.swap_remove(self.random.random_range(0..self.ahead.len()));
        let result = match strike {
            Strike::Worker(how) => self.kill(cluster, how, "backend_type = 'pg_steadytext worker'"),
            Strike::Engine(how) => match engine::kill(cluster, how, &self.killed) {
                Some(restarted) => {
                    self.ledger.note_engine(restarted);
                    Ok(())
                }
                None => self.kill(cluster, how, "backend_type = 'pg_steadytext worker'"),
            },
            Strike::Launcher(how) => self.kill(cluster, how, "backend_type = 'pg_steadytext launcher'"),
            Strike::Backend(how) => self.kill(cluster, how, CLIENTS),
            Strike::Everything => self.kill(cluster, Signal::TERM, "backend_type like 'pg_steadytext%'"),
            Strike::KillPostmaster => {
                self.ledger.note_kill();
                cluster.kill_postmaster();
                cluster.start();
                Ok(())
            }
            Strike::Stop(how) => {
                cluster.stop(how);
                cluster.start();
                Ok(())
            }
            Strike::TerminateClients => some(
                cluster,
                "select pg_terminate_backend(pid) from pg_stat_activity where random() < 0.6 and ",
            ),
            Strike::CancelStatements => {
                some(cluster, "select pg_cancel_backend(pid) from pg_stat_activity where ")
            }
            Strike::CancelRequests => self.cancel_requests(cluster),
            Strike::DropAndCreate => insist(cluster, &format!("begin; {DROP} {} commit", create()), NEVER),
            Strike::DropThenCreate => insist(cluster, &format!("begin; {DROP} commit"), GONE)
                .and_then(|()| insist(cluster, &create(), THERE)),
            Strike::DropRolledBack => {
                insist(cluster, "begin; drop extension pg_steadytext cascade; rollback", NEVER)
            }
            Strike::Raise(status) => attach(
                cluster,
                &format!(
                    "create trigger guilty before update of status on steadytext_queue for each row
                     when (old.status = '{status}' and {SOME}) execute function audit.raise('22000')"
                ),
            ),
            Strike::RaiseDeferred => attach(
                cluster,
                &format!(
                    "create constraint trigger guilty after update on steadytext_queue deferrable initially deferred
                     for each row when (new.status = 'completed' and {SOME}) execute function audit.raise('40001')"
                ),
            ),
            Strike::Hold(nested) => hold(cluster, nested),
            Strike::Crowd => {
                self.gather(cluster);
                Ok(())
            }
            Strike::NoMemory => {
                cluster.configure("pg_steadytext.memory_limit_mb", 1);
                cluster.reload();
                meanwhile(cluster);
                cluster.configure("pg_steadytext.memory_limit_mb", 0);
                cluster.reload();
                Ok(())
            }
            Strike::Pause => insist(cluster, "select steadytext_daemon_stop()", NEVER)
                .and_then(|()| insist(cluster, "select steadytext_daemon_start()", NEVER)),
        };
        match result {
            Ok(()) => format!("{strike:?}"),
            Err(error) => format!("{strike:?}: {}", message_of(&error)),
        }
    }

    /// Kills the processes that `whom` selects, once there are any: the server may still be recovering.
    fn kill(&mut self, cluster: &Cluster, how: Signal, whom: &str) -> Result<(), Error> {
        let sql = format!("select pid from pg_stat_activity where pid <> pg_backend_pid() and {whom}");
        let victims: Vec<i32> = eventually(PATIENCE, || {
            let rows = cluster.session("postgres").query(&sql, &[]).ok()?;
            (!rows.is_empty()).then(|| rows.iter().map(|row| row.get(0)).collect())
        })
        .unwrap_or_default();
        let most = if whom == CLIENTS { 1 } else { victims.len() };
        for victim in victims.iter().take(most) {
            if signal(*victim, how) {
                self.killed.insert(*victim);
                self.ledger.note_kill();
            }
        }
        Ok(())
    }

    /// A new crowd in the place of the last one. A call that is refused or cut off is part of the game.
    fn gather(&mut self, cluster: &Cluster) {
        self.crowd.clear();
        for _ in 0..CROWD {
            let mut session = cluster.session("postgres");
            session.batch_execute("select steadytext_embed('one of many', use_cache => false)").ok();
            self.crowd.push(session);
        }
    }

    /// Cancels a part of what is to do, as the superuser.
    fn cancel_requests(&mut self, cluster: &Cluster) -> Result<(), Error> {
        let mut session = cluster.session("postgres");
        let open = session.query("select request_id from steadytext_queue where status in ('pending', 'processing') and random() < 0.3", &[])?;
        for id in open.iter().map(|row| row.get::<_, Uuid>(0)) {
            let result = session.query_one("select steadytext_cancel_async($1)", &[&id]);
            self.ledger.note_cancel(id, result.is_ok_and(|row| row.get(0)));
        }
        Ok(())
    }
}

/// Sessions of a crowd: more than a process may open files.
const CROWD: usize = 300;
/// Rows that a trigger of the storm's is about.
const SOME: &str = "hashtext(new.request_id::text) % 4 = 0";
/// Answers that must come while rows are held or cannot be written.
const MEANWHILE: i64 = 20;

/// Has a trigger on the queue for a while. Nothing may end as failed by it: rows that can be neither claimed
/// nor completed nor failed wait until it has gone, and so do those that seem to conflict.
fn attach(cluster: &Cluster, trigger: &str) -> Result<(), Error> {
    let create = format!(
        "create or replace function audit.raise() returns trigger language plpgsql as $$
         begin raise exception 'a trigger of the storm' using errcode = tg_argv[0]; end $$;
         drop trigger if exists guilty on steadytext_queue; {trigger}"
    );
    insist(cluster, &create, NEVER)?;
    meanwhile(cluster);
    insist(cluster, "drop trigger if exists guilty on steadytext_queue", NEVER)
}

/// Locks what can be locked, and lets it go after a while.
fn hold(cluster: &Cluster, nested: bool) -> Result<(), Error> {
    const LOCK: &str =
        "select from steadytext_queue where status in ('pending', 'processing') for update skip locked";
    let mut session = cluster.session("postgres");
    session.batch_execute(&format!("begin; {LOCK}"))?;
    for _ in 0..if nested { 100 } else { 0 } {
        session.batch_execute(&format!("savepoint here; {LOCK}; release here"))?;
    }
    meanwhile(cluster);
    session.batch_execute("rollback")
}

/// Waits until others are answered, but not for long: clients may have run into the rows in question.
fn meanwhile(cluster: &Cluster) {
    let before = answers(cluster);
    let _ = eventually(PATIENCE / 6, || (answers(cluster) >= before + MEANWHILE).then_some(()));
}

const NEVER: &str = "select false";
const THERE: &str = "select exists (select from pg_extension where extname = 'pg_steadytext')";
const GONE: &str = "select not exists (select from pg_extension where extname = 'pg_steadytext')";
const CLIENTS: &str = "pid <> pg_backend_pid() and backend_type = 'client backend'";

fn some(cluster: &Cluster, sql: &str) -> Result<(), Error> {
    cluster.session("postgres").batch_execute(&format!("{sql} {CLIENTS}"))
}

/// Tries until it works: deadlocks with clients, and connections that break, are part of the game.
fn insist(cluster: &Cluster, sql: &str, is_done: &str) -> Result<(), Error> {
    let mut last = Ok(());
    let done = eventually(PATIENCE, || {
        last = (|| {
            end_prepared(cluster)?;
            let mut session = cluster.session("postgres");
            // The connection may have been lost after the commit.
            if session.query_one(is_done, &[])?.get(0) {
                return Ok(());
            }
            // Longer than any client waits for an answer, which it does with the table locked.
            session.batch_execute("set lock_timeout = '8s'")?;
            session.batch_execute(sql)
        })();
        last.is_ok().then_some(())
    });
    if done.is_some() { Ok(()) } else { last }
}

/// Ends transactions that a client has prepared and perhaps can no longer end; they would keep the table
/// locked. A client that was about to commit one calls the outcome unknown.
pub(super) fn end_prepared(cluster: &Cluster) -> Result<(), Error> {
    let mut session = cluster.session("postgres");
    for row in session.query("select format('rollback prepared %L', gid) from pg_prepared_xacts", &[])? {
        session.batch_execute(row.get(0)).ok();
    }
    Ok(())
}
