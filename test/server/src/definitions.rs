//! Helpers for tests of vectorizers and enrichments: waiting until nothing is left to be done, and random
//! changes of their tables.
//!
//! `OPERATIONS` and `SEED` in the environment say how many changes there are and which; a test that fails
//! says what they were.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::cluster::{Cluster, Options};
use crate::session::{Address, Session};
use crate::wait::wait_until;

/// Whether nothing is noted, under way or being searched, and nothing has changed unseen.
pub const IS_AT_REST: &str = "
    select not exists (select from steadytext_vectorizer_work) and not exists (select from steadytext_vectorizer_batches)
        and (select count(*) from steadytext_vectorizer_state where scan is null and is_indexed and problem is null)
            = (select count(*) from steadytext_vectorizers)
        and not exists (select from steadytext_vectorizers where replaces is not null)
        and (select coalesce(bool_and(s.signature = steadytext.vectorizer_signature(s.vectorizer_id)), true)
            from steadytext_vectorizer_state as s)";

/// Waits until nothing is left to be done.
#[track_caller]
pub fn rest(session: &mut Session) {
    wait_until("nothing is left to be done", || session.one(IS_AT_REST));
}

/// A cluster with the extension whose processes look around often, and a session.
pub fn prepared(options: Options) -> (Cluster, Session) {
    let cluster = options.start();
    let mut session = cluster.session("postgres");
    session.create_extension();
    session.run("select steadytext_config_set('worker_poll_interval', '0.05')");
    (cluster, session)
}

/// The process that works for vectorizers and enrichments.
pub fn process(session: &mut Session) -> i32 {
    let mut found = None;
    wait_until("there is a process for vectorizers", || {
        found = session
            .list("select pid from pg_stat_activity where backend_type = 'pg_steadytext vectorizer'")
            .first()
            .copied();
        found.is_some()
    });
    found.unwrap()
}

/// Numbers that look as if there were no rule in them, the same for the same seed.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    /// One for each client.
    pub fn new(seed: u64, client: u64) -> Self {
        // Seeds that are near each other begin alike otherwise.
        let mut dice = Dice(
            (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (client + 1).wrapping_mul(0x2545_f491_4f6c_dd1d)) | 1,
        );
        for _ in 0..8 {
            dice.roll(2);
        }
        dice
    }

    /// A number from 0 to `sides`, which is not among them.
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// Random changes by several clients.
#[derive(Debug)]
pub struct Changes {
    /// Number of clients.
    pub clients: u64,
    /// Number of transactions that they make together.
    pub operations: usize,
    /// The seed of the random changes.
    pub seed: u64,
    /// One change, as SQL.
    pub change: fn(&mut Dice) -> String,
    done: AtomicUsize,
}

impl Changes {
    /// So many operations, unless the environment says otherwise.
    pub fn new(clients: u64, operations: usize, change: fn(&mut Dice) -> String) -> Self {
        fn setting<T: std::str::FromStr>(name: &str, default: T) -> T {
            std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
        }
        let (operations, seed) = (setting("OPERATIONS", operations), setting("SEED", 1));
        Changes { clients, operations, seed, change, done: AtomicUsize::new(0) }
    }

    /// Begins them, and runs `meanwhile`.
    pub fn run(&self, address: &Address, meanwhile: impl FnOnce()) {
        thread::scope(|scope| {
            for client in 0..self.clients {
                scope.spawn(move || self.work(address, client));
            }
            meanwhile();
        });
    }

    /// Waits until so many percent are done.
    pub fn wait_for(&self, percent: usize) {
        wait_until("some of the changes are made", || {
            self.done.load(Ordering::SeqCst) * 100 >= self.operations * percent
        });
    }

    /// Changes in transactions of several shapes; an error, such as a deadlock or a server that has crashed,
    /// ends one of them.
    fn work(&self, address: &Address, client: u64) {
        let mut dice = Dice::new(self.seed, client);
        let mut session: Option<Session> = None;
        for _ in 0..self.operations / self.clients as usize {
            let one = (self.change)(&mut dice);
            let two = (self.change)(&mut dice);
            let statements = match dice.roll(6) {
                0 => format!("begin; {one}; savepoint a; {two}; rollback to a; commit"),
                1 => format!("begin; {one}; savepoint a; {two}; release a; commit"),
                2 => format!("begin; {one}; rollback"),
                3 => format!("begin; {one}; {two}; commit"),
                _ => one,
            };
            loop {
                if session.is_none() {
                    session = address.session("postgres", "postgres").ok();
                }
                let Some(connected) = &mut session else {
                    thread::yield_now();
                    continue;
                };
                if connected.batch_execute(&statements).is_err()
                    && connected.batch_execute("rollback").is_err()
                {
                    session = None;
                }
                break;
            }
            self.done.fetch_add(1, Ordering::SeqCst);
        }
    }
}
