//! The clients: of the queue, of synchronous calls, of a table with derived columns, and passers-by.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, sleep};
use std::time::Duration;

use postgres::Error;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use steadytext_test_server::{Address, Cluster, Session, message_of, sqlstate_of};
use uuid::Uuid;

/// The name of a session that is there all the time, and is looked at like the worker.
pub(crate) const KEPT: &str = "soak kept";

const QUEUE_CLIENTS: u64 = 3;
const CALL_CLIENTS: u64 = 3;
/// More are not kept.
const MOST_FAULTS: usize = 20;

/// Ways to enqueue; `$1` is a text.
const REQUESTS: [&str; 12] = [
    "select steadytext_generate_async($1::text, 24)",
    "select steadytext_generate_async($1::text, 48, use_cache => false, temperature => 0.8, priority => 8)",
    "select steadytext_embed_async($1::text)",
    "select steadytext_embed_async($1::text, use_cache => false, priority => 2)",
    "select steadytext_generate_json_async($1::text, '{\"type\": \"object\", \"properties\": {\"a\": {\"type\": \"integer\"}}, \"required\": [\"a\"]}', 60)",
    "select steadytext_generate_regex_async($1::text, '[a-z]{3,9}( [0-9]+)?', 30)",
    "select steadytext_generate_choice_async($1::text, array['yes', 'no', 'perhaps'])",
    "select steadytext_rerank_async($1::text, array['VACUUM removes dead rows', 'an index', 'a cursor fetches rows'])",
    "select steadytext_classify_async($1::text, array['storage', 'speed', 'other'])",
    "select steadytext_if_async($1::text)",
    "select unnest(steadytext_generate_batch_async(array[$1::text, $1 || '!', $1 || '?'], 8))",
    // Fails: there is no such file.
    "insert into steadytext_queue (request_type, prompt, params, max_retries) values ('generate', $1::text, '{\"model\": \"missing\"}', 0) returning request_id",
];

/// Calls; `$1` is a text.
const CALLS: [&str; 11] = [
    "select steadytext_generate($1::text, 24)",
    "select steadytext_generate($1::text, 40, false, temperature => 0.7)",
    "select steadytext_embed($1::text)::text",
    "select steadytext_generate_json($1::text, '{\"enum\": [\"a\", \"b\", {\"c\": 1}]}', 30)",
    "select steadytext_generate_choice($1::text, array['yes', 'no'])",
    "select document from steadytext_rerank($1::text, array['VACUUM removes dead rows', 'an index'])",
    "select steadytext_classify($1::text, array['storage', 'speed', 'other'])",
    "select steadytext_if(array[$1::text, $1 || ' again'])::text",
    "select steadytext_embed_batch(array[$1::text, $1 || ' again', $1 || ' and again'])::text",
    "select steadytext_summarize_text($1::text)",
    "select steadytext_summarize(t) from unnest(array[$1::text, $1 || ' again', 'and more']) as t",
];

const TABLE: &str = "
create table note (id integer primary key, body text, topic text);
select steadytext_create_vectorizer('note', array['body'], name => 'notes', index => 'none');
select steadytext_create_enrichment('note', 'topic', '$body', 'classify', '{\"categories\": [\"storage\", \"speed\", \"other\"]}');
insert into steadytext_models (name, task, file) values ('missing', 'generate', 'missing.gguf');
";

/// The clients that run.
pub(crate) struct Clients {
    ended: Arc<AtomicBool>,
    faults: Arc<Mutex<Vec<String>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    /// Stops them; what has happened to them that should not.
    pub(crate) fn end(self) -> Vec<String> {
        self.ended.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("a client does not panic");
        }
        let mut faults = self.faults.lock().expect("no client panics");
        std::mem::take(&mut faults)
    }
}

/// Makes the table and starts all of them.
pub(crate) fn start(cluster: &Cluster, session: &mut Session) -> Clients {
    session.run(TABLE);
    let ended = Arc::new(AtomicBool::new(false));
    let faults = Arc::new(Mutex::new(Vec::new()));
    let mut threads = Vec::new();
    let mut spawn = |seed: u64, work: fn(&mut Client)| {
        let mut client = Client {
            random: StdRng::seed_from_u64(seed),
            address: cluster.address(),
            ended: Arc::clone(&ended),
            faults: Arc::clone(&faults),
        };
        threads.push(std::thread::spawn(move || work(&mut client)));
    };
    (0..QUEUE_CLIENTS).for_each(|i| spawn(i, Client::enqueue));
    (0..CALL_CLIENTS).for_each(|i| spawn(100 + i, Client::call));
    spawn(200, Client::write);
    spawn(300, Client::pass_by);
    Clients { ended, faults, threads }
}

struct Client {
    random: StdRng,
    address: Address,
    ended: Arc<AtomicBool>,
    faults: Arc<Mutex<Vec<String>>>,
}

impl Client {
    fn goes_on(&self) -> bool {
        !self.ended.load(Ordering::Relaxed)
    }

    fn session(&self) -> Option<Session> {
        self.address.session("postgres", "postgres").map_err(|error| self.note("connecting", &error)).ok()
    }

    fn note(&self, what: &str, error: &Error) {
        let mut faults = self.faults.lock().expect("no client panics");
        if faults.len() < MOST_FAULTS {
            faults.push(format!("{what}: {} {}", sqlstate_of(error), message_of(error)));
        }
    }

    /// Notes an error that is none of these.
    fn expect<T>(&self, what: &str, result: Result<T, Error>, expected: &[&str]) -> Option<T> {
        result
            .map_err(|error| {
                if !expected.contains(&sqlstate_of(&error)) {
                    self.note(what, &error);
                }
            })
            .ok()
    }

    /// New mostly, and sometimes one of a few that the cache knows.
    fn text(&mut self) -> String {
        let words = ["VACUUM", "an index", "the planner", "a cursor", "WAL", "a trigger", "TOAST"];
        let word = words.choose(&mut self.random).expect("there are some");
        let number =
            if self.random.random_bool(0.2) { self.random.random_range(0..20) } else { self.random.random() };
        format!(
            "What about {word}, number {number}?{}",
            " It matters.".repeat(self.random.random_range(0..12))
        )
    }

    /// Requests of the queue.
    fn enqueue(&mut self) {
        let Some(mut session) = self.session() else { return };
        while self.goes_on() {
            let mut ids: Vec<Uuid> = Vec::new();
            let rolls_back = self.random.random_bool(0.05);
            if rolls_back {
                self.expect("begin", session.batch_execute("begin"), &[]);
            }
            for _ in 0..self.random.random_range(1..9) {
                let sql = *REQUESTS.choose(&mut self.random).expect("there are some");
                let rows = session.query(sql, &[&self.text()]);
                let rows = self.expect(sql, rows, &[]).unwrap_or_default();
                ids.extend(rows.iter().map(|row| row.get::<_, Uuid>(0)));
            }
            if rolls_back {
                self.expect("rollback", session.batch_execute("rollback"), &[]);
                continue;
            }
            if self.random.random_bool(0.1)
                && let Some(id) = ids.choose(&mut self.random)
            {
                self.expect("cancelling", session.query("select steadytext_cancel_async($1)", &[id]), &[]);
            }
            let waited = session.query_one("select steadytext_wait($1::uuid[], 'all', 120)", &[&ids]);
            if let Some(row) = self.expect("waiting", waited, &[])
                && !row.get::<_, bool>(0)
            {
                self.faults
                    .lock()
                    .expect("no client panics")
                    .push("requests have not ended in two minutes".to_owned());
            }
        }
    }

    /// Synchronous calls, streams, and calls that are cut off.
    fn call(&mut self) {
        let Some(mut session) = self.session() else { return };
        self.expect("naming", session.batch_execute(&format!("set application_name = '{KEPT}'")), &[]);
        while self.goes_on() {
            match self.random.random_range(0..20) {
                0 => {
                    let text = self.text();
                    let cut = session.batch_execute(&format!(
                        "begin; set local statement_timeout = '20ms'; select steadytext_generate('{text}', 2000, false)"
                    ));
                    self.expect("a call with a timeout", cut, &["57014"]);
                    self.expect("its end", session.batch_execute("rollback"), &[]);
                }
                1 => {
                    let text = self.text();
                    let stream = format!(
                        "begin; declare pieces cursor for select steadytext_generate_stream('{text}', 200, use_cache => false);
                         fetch 5 from pieces; {} commit",
                        if self.random.random_bool(0.5) { "close pieces;" } else { "" }
                    );
                    self.expect("a stream", session.batch_execute(&stream), &[]);
                }
                _ => {
                    let sql = *CALLS.choose(&mut self.random).expect("there are some");
                    let answer = session.query(sql, &[&self.text()]);
                    self.expect(sql, answer, &[]);
                }
            }
        }
    }

    /// A table whose vectors and topics follow it.
    fn write(&mut self) {
        let Some(mut session) = self.session() else { return };
        while self.goes_on() {
            let id = self.random.random_range(0..400);
            let many = self.random.random_range(1..40);
            let text = self.text();
            let sql = match self.random.random_range(0..6) {
                0 => format!("delete from note where id between {id} and {id} + {many}"),
                1 => format!("update note set body = null where id = {id}"),
                2 => format!("update note set id = id + 1000 where id = {id} and not exists (select from note where id = {id} + 1000)"),
                _ => format!(
                    "insert into note (id, body) select i, '{text} ' || i from generate_series({id}, {id} + {many}) as i
                     on conflict (id) do update set body = excluded.body"
                ),
            };
            self.expect("writing", session.batch_execute(&sql), &[]);
            sleep(Duration::from_millis(100));
        }
    }

    /// Sessions that ask once and go, some in the midst of it.
    fn pass_by(&mut self) {
        while self.goes_on() {
            if let Some(mut session) = self.session() {
                let text = self.text();
                let answer = session.query("select steadytext_embed($1::text, false)::text", &[&text]);
                self.expect("a passer-by", answer, &[]);
                if self.random.random_bool(0.2) {
                    // The connection breaks, as that is what it says.
                    session.batch_execute("select pg_terminate_backend(pg_backend_pid())").ok();
                }
            }
            sleep(Duration::from_millis(50));
        }
    }
}
