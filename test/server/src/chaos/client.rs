//! A client in the storm: it enqueues in every way there is, waits, cancels, rolls back, and notes the
//! answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use postgres::Error;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use uuid::Uuid;

use super::kept;
use super::ledger::{Ledger, Outcome};
use crate::cluster::Cluster;
use crate::session::{Address, Session};
use crate::wait::eventually;

/// Ways to enqueue one request: its SQL, which yields the id. Most of them are computed each time; what is
/// left to the cache is answered at once when it was asked before.
const SINGLES: [&str; 11] = [
    "select steadytext_generate_async('What does VACUUM do?', 4, use_cache => false)",
    "select steadytext_generate_async('What is the syntax of CREATE INDEX?', 12, use_cache => false)",
    "select steadytext_generate_async('Write a haiku about PostgreSQL', 30, priority => 8)",
    "select steadytext_generate_async('What does VACUUM do?', 16, use_cache => false, temperature => 0.7, seed => 3)",
    "select steadytext_generate_async('A long story', 50, use_cache => false, model => 'slow')",
    "select steadytext_generate_async('Another long story', 25, use_cache => false, model => 'slow', priority => 2)",
    "select steadytext_embed_async('a text', use_cache => false)",
    "select steadytext_embed_async('another text, somewhat longer than the first one')",
    "select st_embed_async('a third', priority => 9)",
    "insert into steadytext_queue (request_type, prompt, params, priority) \
     values ('generate', 'Plainly inserted.', '{\"max_tokens\": 6, \"use_cache\": false}', 4) returning request_id",
    "insert into steadytext_queue (request_type, prompt) values ('embed', 'inserted text') returning request_id",
];

/// A batch of [`BATCH_LENGTH`] requests.
const BATCH: &str = "select unnest(steadytext_generate_batch_async(array['one', 'two', 'three', 'four'], 5, use_cache => false))";
const BATCH_LENGTH: usize = 4;

/// Requests that a client leaves open before it waits for the oldest.
const MOST_OPEN: usize = 12;

/// Answers every kind of request once, in peace: the answers that must come in the storm, too.
pub(super) fn note_reference_answers(cluster: &Cluster) {
    let mut session = cluster.session("postgres");
    let mut ids: Vec<Uuid> = SINGLES.iter().map(|sql| session.one(sql)).collect();
    ids.extend(session.list::<Uuid>(BATCH));
    for id in ids {
        session.answer(id);
    }
    session.run(
        "create table audit.reference as
         select request_type, prompt, params, coalesce(result, embedding::text) as answer from steadytext_queue",
    );
}

pub(super) struct Client {
    number: u32,
    random: StdRng,
    address: Address,
    ledger: Arc<Ledger>,
    calm: Arc<AtomicBool>,
    open: Vec<Uuid>,
    actions: u32,
}

impl Client {
    pub(super) fn new(
        number: u32,
        seed: u64,
        address: Address,
        ledger: &Arc<Ledger>,
        calm: &Arc<AtomicBool>,
    ) -> Self {
        let random = StdRng::seed_from_u64(seed ^ (u64::from(number) + 1) << 32);
        let (ledger, calm) = (Arc::clone(ledger), Arc::clone(calm));
        Client { number, random, address, ledger, calm, open: Vec::new(), actions: 0 }
    }

    /// Works until it is calm.
    pub(super) fn run(mut self) {
        while !self.is_calm() {
            let session = eventually(Duration::from_secs(120), || {
                if self.is_calm() {
                    return Some(None);
                }
                self.address.session("postgres", "postgres").ok().map(Some)
            });
            let Some(Some(mut session)) = session else { break };
            // Without an end, a statement that waits for a lock would outlive the storm.
            if session.batch_execute("set statement_timeout = '20s'").is_ok() {
                while !self.is_calm() && !session.is_closed() {
                    self.act(&mut session);
                }
            }
        }
    }

    fn is_calm(&self) -> bool {
        self.calm.load(Ordering::Relaxed)
    }

    fn act(&mut self, session: &mut Session) {
        self.actions += 1;
        let tag = format!("client {} action {}", self.number, self.actions);
        if session.query("select set_config('audit.tag', $1, false)", &[&tag]).is_err() {
            return;
        }
        match self.random.random_range(0..100) {
            0..50 => self.enqueue(session, tag, &[], &[], SINGLES.len()),
            50..60 => self.batch(session, tag),
            60..75 => self.enqueue(session, tag, &["begin"], &["commit"], 3),
            75..80 => self.enqueue(session, tag, &["begin"], &["rollback"], 2),
            80..86 => self.savepoint(session, tag),
            86..88 => self.savepoint_storm(session, tag),
            88..92 => self.prepared(session, tag),
            92..96 => kept::change(session, &mut self.random),
            _ => self.cancel_some(session),
        }
        while self.open.len() > MOST_OPEN || (!self.open.is_empty() && self.random.random_bool(0.3)) {
            let id = self.open.remove(0);
            self.wait(session, id);
            if session.is_closed() || self.is_calm() {
                break;
            }
        }
    }

    /// One request by itself, or some between `before` and `after`.
    fn enqueue(&mut self, session: &mut Session, tag: String, before: &[&str], after: &[&str], most: usize) {
        let requests = if before.is_empty() { 1 } else { self.random.random_range(1..=most) };
        let rolls_back = after.contains(&"rollback");
        let mut ids = Vec::new();
        let result = (|| {
            before.iter().try_for_each(|sql| session.batch_execute(sql))?;
            for _ in 0..requests {
                ids.push(session.query_one(self.any_single(), &[])?.get(0));
            }
            after.iter().try_for_each(|sql| session.batch_execute(sql))
        })();
        self.end(session, tag, requests, ids, result, rolls_back);
    }

    fn batch(&mut self, session: &mut Session, tag: String) {
        let mut ids = Vec::new();
        let result =
            session.query(BATCH, &[]).map(|rows| ids.extend(rows.iter().map(|row| row.get::<_, Uuid>(0))));
        self.end(session, tag, BATCH_LENGTH, ids, result, false);
    }

    /// One request stays, one goes with its savepoint.
    fn savepoint(&mut self, session: &mut Session, tag: String) {
        let mut ids = Vec::new();
        let result = (|| {
            session.batch_execute("begin")?;
            ids.push(session.query_one(self.any_single(), &[])?.get(0));
            session.batch_execute("savepoint here")?;
            session.query_one(self.any_single(), &[])?;
            session.batch_execute("rollback to here; commit")
        })();
        self.end(session, tag, 1, ids, result, false);
    }

    /// More subtransactions than PostgreSQL keeps at hand; a part of them goes with its requests.
    fn savepoint_storm(&mut self, session: &mut Session, tag: String) {
        const SAVEPOINTS: u32 = 150;
        const REQUESTS: u32 = 10;
        let mut ids = Vec::new();
        let mut kept = 0;
        let result = (|| {
            session.batch_execute("begin")?;
            for number in 0..SAVEPOINTS {
                session.batch_execute("savepoint here")?;
                let mut id: Option<Uuid> = None;
                if number % (SAVEPOINTS / REQUESTS) == 0 {
                    id = Some(session.query_one(self.any_single(), &[])?.get(0));
                }
                // Released ones are nested in each other's parent, those that are rolled back leave a gap.
                if self.random.random_bool(0.5) {
                    session.batch_execute("release here")?;
                    kept += usize::from(id.is_some());
                    ids.extend(id);
                } else {
                    session.batch_execute("rollback to here")?;
                }
            }
            session.batch_execute("commit")
        })();
        self.end(session, tag, kept, ids, result, false);
    }

    /// Two phases; what is left prepared after a crash is rolled back by the storm's last words.
    fn prepared(&mut self, session: &mut Session, tag: String) {
        let mut ids = Vec::new();
        let result = (|| {
            session.batch_execute("begin")?;
            ids.push(session.query_one(self.any_single(), &[])?.get(0));
            session.batch_execute(&format!("prepare transaction '{tag}'"))
        })();
        match result {
            Ok(()) => {
                let result = session.batch_execute(&format!("commit prepared '{tag}'"));
                // An error leaves it prepared, to be ended by somebody else.
                let outcome = if result.is_ok() { Outcome::Committed } else { Outcome::Unknown };
                self.note(tag, 1, ids, outcome);
            }
            Err(error) => self.end(session, tag, 1, ids, Err(error), false),
        }
    }

    fn any_single(&mut self) -> &'static str {
        SINGLES.choose(&mut self.random).expect("there are some")
    }

    fn end(
        &mut self,
        session: &mut Session,
        tag: String,
        requests: usize,
        ids: Vec<Uuid>,
        result: Result<(), Error>,
        rolls_back: bool,
    ) {
        let outcome = match result {
            _ if rolls_back => Outcome::RolledBack,
            Ok(()) => Outcome::Committed,
            Err(error) if is_refusal(&error) => {
                session.batch_execute("rollback").ok();
                Outcome::RolledBack
            }
            Err(_) => Outcome::Unknown,
        };
        self.note(tag, requests, ids, outcome);
    }

    fn note(&mut self, tag: String, requests: usize, ids: Vec<Uuid>, outcome: Outcome) {
        if outcome == Outcome::Committed {
            self.open.extend(&ids);
        }
        self.ledger.note(tag, requests, ids, outcome);
    }

    fn cancel_some(&mut self, session: &mut Session) {
        let Some(id) = self.open.choose(&mut self.random).copied() else { return };
        let result = session.query_one("select steadytext_cancel_async($1)", &[&id]);
        self.ledger.note_cancel(id, result.is_ok_and(|row| row.get(0)));
    }

    /// Waits for an answer; that it does not come in time is for the end to judge, that it is another one is
    /// not.
    fn wait(&mut self, session: &mut Session, id: Uuid) {
        let sql = "select steadytext_get_async_result($1, 5)";
        let Ok(row) = session.query_one(sql, &[&id]) else { return };
        let answer: Option<String> = row.get(0);
        let sql = "select r.answer from steadytext_queue q join audit.reference r using (request_type, prompt, params) \
                   where q.request_id = $1";
        if let Ok(Some(row)) = session.query_opt(sql, &[&id])
            && row.get::<_, Option<String>>(0) != answer
        {
            self.ledger.note_wrong_answer(format!("{id}: {answer:?}"));
        }
    }
}

/// Whether the server has refused the statement and lives: then the transaction is surely rolled back.
fn is_refusal(error: &Error) -> bool {
    error.as_db_error().is_some_and(|error| error.severity() == "ERROR")
}
