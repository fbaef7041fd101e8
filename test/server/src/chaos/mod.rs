//! The storm: ten clients, and a server whose processes are killed, whose extension is dropped and created,
//! whose requests are cancelled. In the end every request that was committed must have been answered exactly
//! once, with the bytes that it gets on a quiet day.
//!
//! A table has a vectorizer and an enrichment meanwhile; in the end its vectors and values are those of its
//! rows ([`kept`]).
//!
//! Three books are kept: each client notes its answers ([`ledger`]), a trigger notes in the same transaction
//! what really happened (`audit`), and the disturbance that drops the extension notes in the same transaction
//! which requests go with it.

mod client;
mod disturbance;
mod engine;
mod kept;
mod ledger;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::cluster::{Cluster, Options};
use crate::wait::eventually;
use disturbance::Storm;
pub use engine::EngineProcess;
pub use ledger::Counts;
use ledger::Ledger;

/// Time without the end of a request after which the server counts as stuck.
const STILLNESS: Duration = Duration::from_secs(180);

/// Options of the storm.
#[derive(Debug, Clone, Copy)]
pub struct Chaos {
    /// Number of disturbances.
    pub loops: u32,
    /// Concurrent clients.
    pub clients: u32,
    /// The process in which the engine runs.
    pub engine: EngineProcess,
    /// Decides on everything that is random, except for what concurrency itself makes of it.
    pub seed: u64,
}

impl Chaos {
    /// Runs it, and calls `say` for each disturbance.
    pub fn run(self, mut say: impl FnMut(&str)) -> Counts {
        // Fewer open files than sessions: the engine cannot keep a connection for each of a crowd.
        let mut cluster = Options::new()
            .set("restart_after_crash", "on")
            .set("deadlock_timeout", "200ms")
            .set("max_connections", 400)
            .set("pg_steadytext.engine_process", self.engine.in_round(1))
            .open_files(256)
            .start();
        disturbance::prepare(&cluster);
        client::note_reference_answers(&cluster);
        let ledger = Arc::new(Ledger::default());
        let calm = Arc::new(AtomicBool::new(false));
        let clients: Vec<_> = (0..self.clients)
            .map(|number| {
                let client = client::Client::new(number, self.seed, cluster.address(), &ledger, &calm);
                std::thread::spawn(move || client.run())
            })
            .collect();
        let mut storm = Storm::new(StdRng::seed_from_u64(self.seed), Arc::clone(&ledger));
        let mut answered = disturbance::answers(&cluster);
        for round in 1..=self.loops {
            let before = Instant::now();
            if self.engine.in_round(round) != self.engine.in_round(round.max(2) - 1) {
                say(&format!("     the engine moves: {}", self.engine.in_round(round)));
                cluster.configure("pg_steadytext.engine_process", self.engine.in_round(round));
                cluster.reload();
            }
            let what = storm.strike(&mut cluster);
            let target = answered + storm.pace();
            let went_on = eventually(STILLNESS, || {
                answered = disturbance::answers(&cluster);
                (answered >= target).then_some(())
            });
            say(&format!(
                "{round:>3}  {what:<60} {answered:>6} answers, {:.1} s",
                before.elapsed().as_secs_f32()
            ));
            if went_on.is_none() {
                say("nothing is answered any more");
                break;
            }
        }
        calm.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().expect("a client does not panic");
        }
        say("waiting for quiet");
        wait_for_quiet(&cluster);
        let mut counts = ledger.settle(&mut cluster.session("postgres"));
        counts.find_wrong(kept::settle(&cluster));
        counts
    }
}

/// Returns when no request is left to do, or when none has ended for a while.
fn wait_for_quiet(cluster: &Cluster) {
    const SQL: &str = "select count(*) from steadytext_queue where status in ('pending', 'processing')";
    let mut open = i64::MAX;
    let mut since = Instant::now();
    eventually(10 * STILLNESS, || {
        // The last disturbance may still be going on.
        disturbance::end_prepared(cluster).ok()?;
        let now: i64 = cluster.session("postgres").query_one(SQL, &[]).ok()?.get(0);
        if now < open {
            (open, since) = (now, Instant::now());
        }
        (open == 0 || since.elapsed() > STILLNESS).then_some(())
    });
}
