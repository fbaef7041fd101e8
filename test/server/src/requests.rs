//! Requests in tests: enqueue, watch, wait, audit.

use std::fmt::Display;
use std::thread::{self, JoinHandle};

use postgres::types::ToSql;
use uuid::Uuid;

use crate::cluster::Cluster;
use crate::session::Session;
use crate::wait::{PATIENCE, eventually, wait_until};

/// A trail of everything that happens to `steadytext_queue`, outside the extension, so that it outlives a
/// DROP EXTENSION. `audit.inserted.tag` is what the inserting session had in `audit.tag`.
pub const AUDIT: &str = "
create schema if not exists audit;
create table if not exists audit.inserted (request_id uuid, tag text);
create table if not exists audit.changed (
    at timestamptz default clock_timestamp(), request_id uuid, attempt integer,
    was text, becomes text, new_answer boolean);
create or replace function audit.note() returns trigger language plpgsql security definer
set search_path = pg_catalog, pg_temp as $$
begin
    if tg_op = 'INSERT' then
        insert into audit.inserted values (new.request_id, current_setting('audit.tag', true));
    elsif tg_op = 'UPDATE' then
        insert into audit.changed (request_id, attempt, was, becomes, new_answer)
        values (new.request_id, new.attempt, old.status, new.status,
                new.result is not null and old.result is distinct from new.result
                or new.embedding is not null and old.embedding is null);
    end if;
    return null;
end $$;
create trigger audit after insert or update on steadytext_queue for each row execute function audit.note();
";

/// A row of steadytext_queue as tests look at it.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// `pending`, `processing`, `completed`, `failed`, `cancelled`.
    pub status: String,
    /// The text, or the vector's text form.
    pub answer: Option<String>,
    /// Message of a failed request.
    pub error: Option<String>,
    /// Its SQLSTATE.
    pub error_code: Option<String>,
    /// Failures that were counted.
    pub retry_count: i32,
    /// Claims ever made.
    pub attempt: i32,
}

/// The trail of [`AUDIT`], and two users, alice and bob, who may ask for as much as they like.
pub fn audited_users(cluster: &Cluster) -> Session {
    let mut session = cluster.session("postgres");
    session.audit();
    session.run(
        "create role alice login in role steadytext_user; create role bob login in role steadytext_user;
         select steadytext_config_set('max_queue_size_per_role', '1000000');
         select steadytext_config_set('max_queue_size', '1000000')",
    );
    session
}

/// Stops the worker, and leaves so many entries of requests of alice's in the indexes of what is pending that
/// are dead and cannot be taken away: they were cancelled after the session that is returned had begun its
/// transaction. `priority` is an expression over i, the number of a request.
pub fn litter(cluster: &Cluster, session: &mut Session, dead: i64, priority: &str) -> Session {
    let mut alice = cluster.session_as("postgres", "alice");
    let id = alice.generate("whose it is", "max_tokens => 2, use_cache => false");
    alice.answer(id);
    let mut holder = cluster.session("postgres");
    // A table that nobody takes an exclusive lock on.
    holder.run("begin isolation level repeatable read; select count(*) from pg_class");
    session.pause();
    alice.run(&format!(
        "insert into steadytext_queue (request_type, prompt, params, priority)
         select 'generate', 'alice ' || i, '{{\"max_tokens\": 2}}', {priority} from generate_series(1, {dead}) as i"
    ));
    session.run("update steadytext_queue set status = 'cancelled' where status = 'pending'");
    holder
}

/// Makes a call that waits for requests in a session of its own, which has begun to wait when this returns.
#[track_caller]
pub fn begins_to_wait(cluster: &Cluster, session: &mut Session, call: String) -> JoinHandle<bool> {
    let mut waiter = cluster.session("postgres");
    let pid = waiter.backend_pid();
    let waiting = thread::spawn(move || waiter.one::<bool>(&format!("select {call}")));
    let is_waiting =
        format!("select state = 'active' and wait_event is not null from pg_stat_activity where pid = {pid}");
    wait_until("the caller waits", || session.one::<bool>(&is_waiting));
    waiting
}

impl Session {
    /// `steadytext_generate_async(prompt)`; `more` are further arguments, like `max_tokens => 5`.
    #[track_caller]
    pub fn generate(&mut self, prompt: &str, more: impl Display) -> Uuid {
        self.enqueue("steadytext_generate_async", &prompt, &more.to_string())
    }

    /// `steadytext_embed_async(text)`; `more` are further arguments.
    #[track_caller]
    pub fn embed(&mut self, text: &str, more: impl Display) -> Uuid {
        self.enqueue("steadytext_embed_async", &text, &more.to_string())
    }

    #[track_caller]
    fn enqueue(&mut self, function: &str, argument: &(dyn ToSql + Sync), more: &str) -> Uuid {
        let comma = if more.is_empty() { "" } else { ", " };
        match self.query_one(&format!("select {function}($1{comma}{more})"), &[argument]) {
            Ok(row) => row.get(0),
            Err(error) => panic!("{function}(…{comma}{more}): {error:?}"),
        }
    }

    /// `steadytext_cancel_async`.
    #[track_caller]
    pub fn cancel(&mut self, id: Uuid) -> bool {
        self.one(&format!("select steadytext_cancel_async('{id}')"))
    }

    /// The row of a request; `None` where there is none (to see).
    #[track_caller]
    pub fn find(&mut self, id: Uuid) -> Option<Request> {
        let sql = "select status, coalesce(result, embedding::text), error, error_code, retry_count, attempt \
                   from steadytext_queue where request_id = $1";
        let row = self.query_opt(sql, &[&id]).unwrap_or_else(|error| panic!("{sql}: {error:?}"))?;
        Some(Request {
            status: row.get(0),
            answer: row.get(1),
            error: row.get(2),
            error_code: row.get(3),
            retry_count: row.get(4),
            attempt: row.get(5),
        })
    }

    /// The row of a request that exists.
    #[track_caller]
    pub fn request(&mut self, id: Uuid) -> Request {
        self.find(id).unwrap_or_else(|| panic!("request {id} is gone"))
    }

    /// Waits until a request has the status.
    #[track_caller]
    pub fn wait_for(&mut self, id: Uuid, status: &str) -> Request {
        let found = eventually(PATIENCE, || self.find(id).filter(|request| request.status == status));
        found.unwrap_or_else(|| {
            let worker = self.worker_state();
            panic!("request {id} never became {status}; it is {:?}; worker: {worker}", self.find(id))
        })
    }

    /// Waits until a request has ended, in whatever way.
    #[track_caller]
    pub fn wait_for_end(&mut self, id: Uuid) -> Request {
        let done =
            |request: &Request| matches!(request.status.as_str(), "completed" | "failed" | "cancelled");
        let ended = eventually(PATIENCE, || self.find(id).filter(done));
        ended.unwrap_or_else(|| {
            let worker = self.worker_state();
            panic!("request {id} never ends; it is {:?}; worker: {worker}", self.find(id))
        })
    }

    /// Waits until a request is completed and returns its answer.
    #[track_caller]
    pub fn answer(&mut self, id: Uuid) -> String {
        let request = self.wait_for_end(id);
        assert_eq!(request.status, "completed", "{request:?}");
        request.answer.unwrap_or_else(|| panic!("request {id} is completed without an answer"))
    }

    /// Waits until the engine works on a request: a token of it has been generated.
    #[track_caller]
    pub fn wait_for_tokens(&mut self, id: Uuid) {
        let sql =
            "select exists (select from steadytext_activity where request_id = $1 and generated_tokens > 0)";
        let found = eventually(PATIENCE, || {
            let row = self.query_one(sql, &[&id]).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
            row.get::<_, bool>(0).then_some(())
        });
        if found.is_none() {
            panic!("request {id} never generates: {:?}; worker: {}", self.find(id), self.worker_state());
        }
    }

    /// Enqueues a request of the highest priority, and waits for its answer.
    #[track_caller]
    pub fn assert_served(&mut self) {
        let id = self.generate("and it works", "max_tokens => 3, priority => 10");
        self.answer(id);
    }

    /// The number of requests that have not ended.
    #[track_caller]
    pub fn unfinished(&mut self) -> i64 {
        self.one("select count(*) from steadytext_queue where status in ('pending', 'processing')")
    }

    /// The caller's usage of a limit.
    #[track_caller]
    pub fn used(&mut self, limit: &str) -> i64 {
        self.one(&format!("select used from steadytext_my_limits() where limit_name = '{limit}'"))
    }

    /// Entries of the index of claims that were read up to now.
    #[track_caller]
    pub fn claim_entries_read(&mut self) -> i64 {
        self.one(
            "select idx_tup_read from pg_stat_user_indexes where indexrelname = 'steadytext_queue_claim_idx'",
        )
    }

    /// The result of `steadytext.worker_state()`, in one line.
    pub fn worker_state(&mut self) -> String {
        match self.query_one("select s::text from steadytext.worker_state() s", &[]) {
            Ok(row) => row.get(0),
            Err(error) => error.to_string(),
        }
    }

    /// Pauses this database's worker, and waits until it takes no more requests.
    #[track_caller]
    pub fn pause(&mut self) {
        self.run("select steadytext_daemon_stop()");
        self.wait_for_worker("paused");
    }

    /// Waits until this database's worker says that it is in `state`.
    #[track_caller]
    pub fn wait_for_worker(&mut self, state: &str) {
        let sql = "select state = $1 from steadytext.worker_state()";
        let found = eventually(PATIENCE, || {
            self.query_one(sql, &[&state]).expect(sql).get::<_, bool>(0).then_some(())
        });
        if found.is_none() {
            panic!("the worker is never {state}; it is {}", self.worker_state());
        }
    }

    /// Process id of this database's worker; waits until there is one that can work.
    #[track_caller]
    pub fn worker_pid(&mut self) -> i32 {
        let sql = "select pid from steadytext.worker_state() where state in ('idle', 'running', 'paused')";
        let found = eventually(PATIENCE, || self.query_opt(sql, &[]).expect(sql).map(|row| row.get(0)));
        found.unwrap_or_else(|| panic!("no worker: {}", self.worker_state()))
    }

    /// Process id of this database's worker, as pg_stat_activity knows it; `None` where there is none.
    pub fn worker_of(&mut self, database: &str) -> Option<i32> {
        let sql =
            "select pid from pg_stat_activity where datname = $1 and backend_type like 'pg_steadytext%'";
        self.query(sql, &[&database]).expect(sql).first().map(|row| row.get(0))
    }

    /// Waits until `database` has a worker process.
    #[track_caller]
    pub fn wait_for_worker_of(&mut self, database: &str) -> i32 {
        let found = eventually(PATIENCE, || self.worker_of(database));
        found.unwrap_or_else(|| {
            let all: Vec<String> = self.list(
                "select format('%s %s %s', pid, datname, backend_type) from pg_stat_activity \
                 where backend_type not like '% writer'",
            );
            panic!("database {database} has no worker; there are {all:?}")
        })
    }

    /// Lets an hour of `queue_retention_hours` last so many seconds, in this database.
    #[track_caller]
    pub fn shorten_retention(&mut self, seconds: u32) {
        const HOURS: &str = "make_interval(hours => v_hours)";
        let definition: String = self.one("select pg_get_functiondef('steadytext.expire_requests'::regproc)");
        assert!(definition.contains(HOURS), "{definition}");
        self.run(&definition.replace(HOURS, &format!("make_interval(secs => v_hours * {seconds})")));
    }

    /// Installs [`AUDIT`].
    #[track_caller]
    pub fn audit(&mut self) {
        self.run(AUDIT);
    }

    /// Requests whose answer was stored more than once, or that changed after they had ended.
    #[track_caller]
    pub fn doubled(&mut self) -> i64 {
        self.one(
            "select (select count(*) from (select from audit.changed where new_answer
                                           group by request_id having count(*) > 1) d)
                  + (select count(*) from audit.changed where was in ('completed', 'failed', 'cancelled'))",
        )
    }
}
