//! The books: the answers that clients got, set against what the audit trail and the queue say in the end.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Mutex;

use uuid::Uuid;

use crate::session::Session;

/// The outcome of a client's transaction, as far as the client can know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The server said so.
    Committed,
    /// The server said so, or never got a COMMIT.
    RolledBack,
    /// The connection was lost on the way.
    Unknown,
}

/// One transaction of a client.
#[derive(Debug)]
struct Entry {
    tag: String,
    /// Requests that it enqueues when it commits.
    requests: usize,
    /// The ids that the client has seen.
    ids: Vec<Uuid>,
    outcome: Outcome,
}

/// The records of the clients.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    entries: Mutex<Vec<Entry>>,
    /// Cancels that were tried, and whether the server said that it was done.
    cancels: Mutex<HashMap<Uuid, bool>>,
    kills: Mutex<u32>,
    /// Engines killed that were programs of their own, and restarts of the server that followed.
    engines: Mutex<(u32, u32)>,
    wrong_answers: Mutex<Vec<String>>,
}

impl Ledger {
    /// A transaction that would enqueue `requests` requests has ended.
    pub(super) fn note(&self, tag: String, requests: usize, ids: Vec<Uuid>, outcome: Outcome) {
        self.entries.lock().expect("no panic while noting").push(Entry { tag, requests, ids, outcome });
    }

    /// A client tried to cancel a request, and was answered that it is done (or not).
    pub(super) fn note_cancel(&self, id: Uuid, done: bool) {
        *self.cancels.lock().expect("no panic while noting").entry(id).or_default() |= done;
    }

    /// A process was killed.
    pub(super) fn note_kill(&self) {
        *self.kills.lock().expect("no panic while noting") += 1;
    }

    /// An engine was killed that is a program of its own; the server's processes were started anew after
    /// that, or not.
    pub(super) fn note_engine(&self, restarted: bool) {
        let mut engines = self.engines.lock().expect("no panic while noting");
        engines.0 += 1;
        engines.1 += u32::from(restarted);
    }

    /// A client was given an answer that the request does not have on a quiet day.
    pub(super) fn note_wrong_answer(&self, what: String) {
        self.wrong_answers.lock().expect("no panic while noting").push(what);
    }

    /// Sets the books against the server's, when everything is quiet.
    pub(super) fn settle(&self, session: &mut Session) -> Counts {
        let entries = self.entries.lock().expect("no panic while noting");
        let cancels = self.cancels.lock().expect("no panic while noting");
        let (engine_kills, engine_restarts) = *self.engines.lock().expect("no panic while noting");
        let kills = *self.kills.lock().expect("no panic");
        let mut counts = Counts { kills, engine_kills, engine_restarts, ..Counts::default() };
        counts.find(
            (0..engine_restarts).map(|_| (Fault::Wrong, "the server restarted as an engine died".to_owned())),
        );
        counts.find(
            self.wrong_answers.lock().expect("no panic").iter().map(|what| (Fault::Wrong, what.clone())),
        );

        let mut by_tag: HashMap<String, HashSet<Uuid>> = HashMap::new();
        for row in
            session.query("select coalesce(tag, ''), request_id from audit.inserted", &[]).expect("the trail")
        {
            by_tag.entry(row.get(0)).or_default().insert(row.get(1));
        }
        let fates: HashMap<Uuid, Fate> =
            session.query(FATES, &[]).expect("the fates").iter().map(Fate::read).collect();

        for entry in entries.iter() {
            let there = by_tag.remove(&entry.tag).unwrap_or_default();
            counts.requests += there.len();
            counts.unknown += usize::from(entry.outcome == Outcome::Unknown);
            let missing = entry.ids.iter().filter(|id| !there.contains(id)).count();
            match entry.outcome {
                Outcome::Committed => {
                    let lost = missing.max(entry.requests.saturating_sub(there.len()));
                    counts.find(
                        (0..lost).map(|_| (Fault::Lost, format!("{}: committed, but not there", entry.tag))),
                    );
                }
                Outcome::RolledBack if !there.is_empty() => {
                    counts.find([(Fault::Wrong, format!("{}: rolled back, but there", entry.tag))]);
                }
                Outcome::Unknown if !there.is_empty() && there.len() != entry.requests => {
                    counts.find([(
                        Fault::Lost,
                        format!("{}: {} of {}", entry.tag, there.len(), entry.requests),
                    )]);
                }
                Outcome::RolledBack | Outcome::Unknown => {}
            }
            if there.len() > entry.requests {
                counts.find([(
                    Fault::Doubled,
                    format!("{}: {} rows for {}", entry.tag, there.len(), entry.requests),
                )]);
            }
            for id in &there {
                counts.add_fate(*id, fates.get(id), cancels.get(id).copied());
            }
        }
        for (id, status) in session
            .query(STORED_TWICE, &[])
            .expect("the trail")
            .iter()
            .map(|row| (row.get::<_, Uuid>(0), row.get::<_, String>(1)))
        {
            counts.find([(Fault::Doubled, format!("{id}: {status}"))]);
        }
        counts
    }
}

/// The ends of requests: of those in the table, and of those that went with a DROP EXTENSION.
const FATES: &str = "
select q.request_id, q.status, q.status <> 'completed' or r.answer is not distinct from q.answer, q.dropped, q.error
from (select request_id, request_type, prompt, params, status, coalesce(result, embedding::text) as answer,
             false as dropped, format('%s %s', error_code, error) as error
      from steadytext_queue
      union all
      select request_id, request_type, prompt, params, status, answer, true, '' from audit.dropped) q
left join audit.reference r using (request_type, prompt, params)";

/// Requests that got more than one answer, or changed after they had ended.
const STORED_TWICE: &str = "
select request_id, format('%s answers', count(*)) from audit.changed where new_answer group by 1 having count(*) > 1
union all
select request_id, format('%s became %s', was, becomes) from audit.changed where was in ('completed', 'failed', 'cancelled')";

struct Fate {
    status: String,
    is_right: bool,
    dropped: bool,
    error: String,
}

impl Fate {
    fn read(row: &postgres::Row) -> (Uuid, Fate) {
        (
            row.get(0),
            Fate { status: row.get(1), is_right: row.get(2), dropped: row.get(3), error: row.get(4) },
        )
    }
}

/// The kinds of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Lost,
    Doubled,
    Stuck,
    Wrong,
}

/// The result of a storm.
#[derive(Debug, Default, Clone)]
pub struct Counts {
    /// Requests that were committed.
    pub requests: usize,
    /// Requests that were answered.
    pub completed: usize,
    /// Requests that were cancelled.
    pub cancelled: usize,
    /// Requests that were still to do when their table was dropped.
    pub dropped: usize,
    /// Transactions of which no client knows how they ended.
    pub unknown: usize,
    /// Processes killed.
    pub kills: u32,
    /// Engines killed that were programs of their own.
    pub engine_kills: u32,
    /// Restarts of the server by that.
    pub engine_restarts: u32,
    faults: Vec<(Fault, String)>,
}

impl Counts {
    fn find(&mut self, faults: impl IntoIterator<Item = (Fault, String)>) {
        self.faults.extend(faults);
    }

    /// Adds what is wrong with something else than requests.
    pub(super) fn find_wrong(&mut self, what: Vec<String>) {
        self.find(what.into_iter().map(|what| (Fault::Wrong, what)));
    }

    fn add_fate(&mut self, id: Uuid, fate: Option<&Fate>, cancel: Option<bool>) {
        let Some(fate) = fate else {
            return self.find([(Fault::Lost, format!("{id}: neither in the queue nor dropped with it"))]);
        };
        match fate.status.as_str() {
            "completed" if !fate.is_right => {
                self.find([(Fault::Wrong, format!("{id}: not the answer of a quiet day"))])
            }
            "completed" if cancel == Some(true) => {
                self.find([(Fault::Wrong, format!("{id}: completed after its cancel was confirmed"))]);
            }
            "completed" => self.completed += 1,
            "cancelled" if cancel.is_none() => {
                self.find([(Fault::Wrong, format!("{id}: cancelled, but by nobody"))]);
            }
            "cancelled" => self.cancelled += 1,
            "pending" | "processing" if fate.dropped => self.dropped += 1,
            "pending" | "processing" => self.find([(Fault::Stuck, format!("{id}: {}", fate.status))]),
            other => self.find([(Fault::Wrong, format!("{id}: {other}: {}", fate.error))]),
        }
    }

    fn count(&self, which: Fault) -> usize {
        self.faults.iter().filter(|(fault, _)| *fault == which).count()
    }

    /// Whether nothing was lost, doubled, stuck or wrong.
    pub fn is_clean(&self) -> bool {
        self.faults.is_empty()
    }

    /// The faults, one line each.
    pub fn faults(&self) -> Vec<String> {
        self.faults.iter().map(|(fault, what)| format!("{fault:?} {what}").to_lowercase()).collect()
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "requests {} completed {} cancelled {} dropped {} unknown {} kills {} engine_kills {} engine_restarts {} wrong {} lost {} doubled {} stuck {}",
            self.requests,
            self.completed,
            self.cancelled,
            self.dropped,
            self.unknown,
            self.kills,
            self.engine_kills,
            self.engine_restarts,
            self.count(Fault::Wrong),
            self.count(Fault::Lost),
            self.count(Fault::Doubled),
            self.count(Fault::Stuck),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Options;

    /// Tables of the same form as the storm's, for [`Ledger::settle`].
    const TABLES: &str = "
        create schema audit;
        create table steadytext_queue (request_id uuid, request_type text default 'generate', prompt text default 'p',
            params jsonb default '{}', status text, result text, embedding text, error_code text, error text);
        create table audit.dropped (request_id uuid, request_type text default 'generate', prompt text default 'p',
            params jsonb default '{}', status text, answer text);
        create table audit.reference as
            select 'generate' as request_type, 'p' as prompt, '{}'::jsonb as params, 'right' as answer;
        create table audit.inserted (request_id uuid, tag text);
        create table audit.changed (request_id uuid, was text, becomes text, new_answer boolean)";

    fn id(number: u128) -> Uuid {
        Uuid::from_u128(number)
    }

    fn note(ledger: &Ledger, number: u128, outcome: Outcome) {
        ledger.note(format!("tag {number}"), 1, vec![id(number)], outcome);
    }

    fn enter(session: &mut Session, number: u128, status: &str, answer: Option<&str>) {
        let id = id(number);
        session.run(&format!("insert into audit.inserted values ('{id}', 'tag {number}')"));
        session
            .execute(
                "insert into steadytext_queue values ($1, default, default, default, $2, $3)",
                &[&id, &status, &answer],
            )
            .unwrap();
        if answer.is_some() {
            session
                .run(&format!("insert into audit.changed values ('{id}', 'processing', 'completed', true)"));
        }
    }

    #[test]
    fn a_clean_storm_is_clean() {
        let cluster = Options::new().without_preload().start();
        let mut session = cluster.session("postgres");
        session.run(TABLES);
        let ledger = Ledger::default();
        enter(&mut session, 1, "completed", Some("right"));
        note(&ledger, 1, Outcome::Committed);
        note(&ledger, 2, Outcome::RolledBack);
        note(&ledger, 3, Outcome::Unknown);
        enter(&mut session, 4, "cancelled", None);
        note(&ledger, 4, Outcome::Unknown);
        ledger.note_cancel(id(4), false);
        session.run(&format!(
            "insert into audit.inserted values ('{0}', 'tag 5');
             insert into audit.dropped values ('{0}', default, default, default, 'processing', null)",
            id(5)
        ));
        note(&ledger, 5, Outcome::Committed);
        let counts = ledger.settle(&mut session);
        assert!(counts.is_clean(), "{:?}", counts.faults());
        assert_eq!((counts.requests, counts.completed, counts.cancelled, counts.dropped), (3, 1, 1, 1));
        assert!(counts.to_string().ends_with("wrong 0 lost 0 doubled 0 stuck 0"), "{counts}");
    }

    #[test]
    fn every_fault_is_found() {
        let cluster = Options::new().without_preload().start();
        let mut session = cluster.session("postgres");
        session.run(TABLES);
        let ledger = Ledger::default();
        // Committed, but never there; there once, but neither in the queue nor dropped.
        note(&ledger, 1, Outcome::Committed);
        enter(&mut session, 2, "completed", Some("right"));
        note(&ledger, 2, Outcome::Committed);
        session.run(&format!("delete from steadytext_queue where request_id = '{}'", id(2)));
        // Still to do.
        enter(&mut session, 3, "processing", None);
        note(&ledger, 3, Outcome::Committed);
        // Answered twice, enqueued twice, changed after its end.
        enter(&mut session, 4, "completed", Some("right"));
        note(&ledger, 4, Outcome::Committed);
        session
            .run(&format!("insert into audit.changed values ('{}', 'processing', 'completed', true)", id(4)));
        enter(&mut session, 5, "completed", Some("right"));
        enter(&mut session, 6, "completed", Some("right"));
        session.run("update audit.inserted set tag = 'tag 5' where tag = 'tag 6'");
        note(&ledger, 5, Outcome::Committed);
        enter(&mut session, 7, "cancelled", None);
        note(&ledger, 7, Outcome::Committed);
        ledger.note_cancel(id(7), true);
        session
            .run(&format!("insert into audit.changed values ('{}', 'cancelled', 'cancelled', false)", id(7)));
        // Another answer, rolled back but there, failed, cancelled by nobody, completed in spite of a cancel.
        enter(&mut session, 8, "completed", Some("other"));
        note(&ledger, 8, Outcome::Committed);
        enter(&mut session, 9, "completed", Some("right"));
        note(&ledger, 9, Outcome::RolledBack);
        enter(&mut session, 10, "failed", None);
        note(&ledger, 10, Outcome::Committed);
        enter(&mut session, 11, "cancelled", None);
        note(&ledger, 11, Outcome::Committed);
        enter(&mut session, 12, "completed", Some("right"));
        note(&ledger, 12, Outcome::Committed);
        ledger.note_cancel(id(12), true);
        let counts = ledger.settle(&mut session);
        assert!(
            counts.to_string().ends_with("wrong 5 lost 2 doubled 3 stuck 1"),
            "{counts}\n{:#?}",
            counts.faults()
        );
    }
}
