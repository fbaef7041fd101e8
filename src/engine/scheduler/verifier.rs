//! Verification of models ([`crate::verify()`]): on a thread of its own, one at a time, beside the engine's,
//! which go on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::loader::Hook;
use super::{EngineShared, Submission};
use crate::kernels::Pool;
use crate::kernels::instructions::Instructions;
use crate::panic::catch;
use crate::process::COMPUTING_STACK_BYTES;
use crate::verify::{Means, Verification, Verify, verify_with};
use crate::{Error, EventKind, Output, Ticket};

/// Starts the threads that verify models.
pub(super) struct Verifier {
    threads: usize,
    instructions: Instructions,
    hook: Hook,
    busy: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier").field("threads", &self.threads).finish_non_exhaustive()
    }
}

/// Clears the flag when it is dropped.
struct Busy(Arc<AtomicBool>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Verifier {
    /// Verifies with so many threads; `hook` runs first on each.
    pub(super) fn new(threads: usize, instructions: Instructions, hook: Hook) -> Verifier {
        Verifier { threads, instructions, hook, busy: Arc::default(), thread: Mutex::new(None) }
    }

    /// Begins, unless another verification is under way. Its events go to the submission.
    pub(super) fn begin(&self, submission: Submission, what: Verify, shared: &Arc<EngineShared>) {
        if self.busy.swap(true, Ordering::AcqRel) {
            return submission.fail(Error::QueueFull { capacity: 1 });
        }
        let busy = Busy(Arc::clone(&self.busy));
        let (threads, instructions) = (self.threads, self.instructions);
        let (hook, shared) = (Arc::clone(&self.hook), Arc::clone(shared));
        let thread =
            std::thread::Builder::new().name("st-verify".to_owned()).stack_size(COMPUTING_STACK_BYTES);
        let thread = thread.spawn(move || {
            let _ = catch(|| hook());
            let verified = catch(|| {
                let pool =
                    Pool::new(threads, instructions, &hook).map_err(|error| Error::no_thread(&error))?;
                run(&submission, &what, &pool, &shared)
            });
            // Freed before the last event: its receiver may ask for the next verification at once.
            drop(busy);
            match verified.and_then(|verified| verified) {
                Ok(verified) => submission.send(EventKind::Done(Output::Verification(verified))),
                Err(error) => {
                    if !submission.fail_if_cancelled() {
                        submission.fail(error);
                    }
                }
            }
        });
        // The thread of the last one has ended, or is about to. Where none could be started, the submission
        // went with the closure and has told its listeners.
        if let Ok(thread) = thread {
            *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        }
    }
}

fn run(
    submission: &Submission,
    what: &Verify,
    pool: &Pool,
    shared: &Arc<EngineShared>,
) -> Result<Verification, Error> {
    let tickets = submission.tickets();
    let stop = || {
        shared.stop.load(Ordering::Acquire) || !tickets.is_empty() && tickets.iter().all(Ticket::is_cancelled)
    };
    submission.send(EventKind::Loading);
    let means = Means { pool, memory: &shared.memory, stop: &stop };
    verify_with(&submission.request.model, what, &means, &mut |model, prompt_tokens| {
        submission.send(EventKind::Started { prompt_tokens, model });
    })
}

impl Drop for Verifier {
    /// Waits for the thread, which looks at the stop flag of the engine between two blocks.
    fn drop(&mut self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // The thread catches every panic, so there is no error to pass on.
            let _ = thread.join();
        }
    }
}
