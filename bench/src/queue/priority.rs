//! The time until an urgent request begins beside many long ones.

use std::time::Instant;

use steadytext_bench::{Report, percentile};
use steadytext_test_server::{Cluster, endless_text, slow_model, wait_until};

const LONG_ONES: usize = 64;
const URGENT_ONES: usize = 10;
/// Most steps until the first token.
const MOST_STEPS: i32 = 3;

pub(crate) fn measure(cluster: &Cluster, report: &mut Report) {
    let mut session = cluster.session("postgres");
    slow_model(cluster, &mut session);
    for i in 0..LONG_ONES {
        session.generate(&format!("Tell story {i}."), endless_text());
    }
    wait_until("all places are taken", || {
        session.one::<i64>("select count(*) from steadytext_activity where phase = 'decoding'") >= 16
    });
    let (mut steps, mut times) = (0, Vec::new());
    for i in 0..URGENT_ONES {
        let begun = Instant::now();
        let id = session.generate(&format!("Urgent {i}."), format!("{}, priority => 10", endless_text()));
        let first_token =
            format!("select max(first_token_turns) from steadytext_activity where request_id = '{id}'");
        let mut found = None;
        wait_until("it has its first token", || {
            found = session.one::<Option<i32>>(&first_token);
            found.is_some()
        });
        times.push(begun.elapsed().as_secs_f64() * 1e3);
        steps = steps.max(found.unwrap_or(i32::MAX));
        session.cancel(id);
        session.wait_for_end(id);
    }
    times.sort_by(f64::total_cmp);
    report.add("priority_10_first_token_steps", f64::from(steps), "");
    report.add("priority_10_first_token_ms", percentile(&times, 0.5), "ms");
    let pending: i64 =
        session.one("select count(*) from steadytext_queue where status in ('pending', 'processing')");
    assert!(pending >= LONG_ONES as i64, "the long ones have ended");
    assert!(steps <= MOST_STEPS, "an urgent request took {steps} steps to its first token");
}
