//! LISTEN: wakes the thread of a database when something is enqueued there. Where it cannot, polling goes on.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;
use postgres::fallible_iterator::FallibleIterator;

use crate::connect::DatabaseTarget;
use crate::shared::SharedState;

/// Longest wait for a notification, after which the thread looks whether the program goes on.
const WAIT: Duration = Duration::from_secs(30);
/// Pauses before a lost connection is made again: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));

/// Starts the thread of a database, which ends with the program.
///
/// # Errors
///
/// The system's, where there are no more threads.
pub(crate) fn start(number: usize, shared: Arc<SharedState>, waker: Sender<()>) -> io::Result<()> {
    if !shared.options.use_listen {
        return Ok(());
    }
    let url = shared.options.database_urls[number].clone();
    let thread = std::thread::Builder::new().name(format!("listen {number}"));
    let work = move || {
        let Ok(target) = DatabaseTarget::read(&url) else { return };
        let mut pause = PAUSES.0;
        while shared.stopping() == 0 {
            // The other thread reports errors of the connection.
            if listen(&target, &shared, &waker).is_ok() {
                pause = PAUSES.0;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(PAUSES.1);
        }
    };
    thread.spawn(work).map(|_| ())
}

fn listen(target: &DatabaseTarget, shared: &SharedState, waker: &Sender<()>) -> Result<(), postgres::Error> {
    let mut client = target.connect()?;
    client.batch_execute("listen steadytext_queue")?;
    // Requests that were enqueued before LISTEN are not announced, so the queue is looked at once.
    let mut is_wanted = waker.send(()).is_ok();
    while is_wanted && shared.stopping() == 0 {
        let mut notifications = client.notifications();
        let mut heard = notifications.timeout_iter(WAIT);
        while is_wanted && heard.next()?.is_some() {
            is_wanted = waker.send(()).is_ok();
        }
        drop(heard);
        drop(notifications);
        if client.is_closed() {
            return Ok(());
        }
    }
    Ok(())
}
