//! Threads beside the engine thread, for work that takes long and computes no step: opening and loading
//! models, tokenizing long texts, compiling constraints and checking answers under them. Running requests go
//! on meanwhile.
//!
//! Each thread does one job after the other, of users in turn ([`JobQueue`]), and reports to the engine
//! thread through its queue of messages. Loads are the exception: they run at the same time. Plans and checks
//! of cancelled requests are not begun.
//!
//! Invariant: every job is reported exactly once, also when it panics, unless the engine has stopped. The
//! result of a check always goes to the listeners of its request.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use super::job_queue::{EngineJob, JobQueue};
use super::load_settings::LoadSettings;
use super::loaded::{AnyModel, Opened};
use super::plan::Plan;
use super::{EngineMessage, EngineShared};
use crate::computing::Loading;
use crate::constraints::Checker;
use crate::kernels::Pool;
use crate::memory;
use crate::panic::catch;
use crate::{Error, EventKind, ModelIdentity, ModelSource, Output, Ticket};

/// Time for which the engine waits at its end for jobs that look at its stop flag. Jobs that take longer (a
/// disk that writes) are left to themselves.
const PATIENCE: Duration = Duration::from_secs(2);

/// Memory that a job may allocate beside what depends on a model or a text.
const OPENING_BYTES: usize = 1 << 20;

/// Run first on every thread of the engine.
pub(super) type Hook = Arc<dyn Fn() + Send + Sync>;

/// The result of a job.
pub(super) enum JobReport {
    Opened(ModelSource, Result<Box<Opened>, Error>),
    Loaded(ModelSource, Result<(AnyModel, ModelIdentity), Error>),
    Planned { number: u64, plan: Result<Box<Plan>, Error> },
}

/// A thread that does jobs. Dropping it takes back those that have not begun.
pub(super) struct JobThread {
    jobs: Option<Sender<EngineJob>>,
    thread: Option<JoinHandle<()>>,
}

impl JobThread {
    /// Starts a thread of this name, with a stack of `stack_bytes` for work that recurses.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn start(
        name: &str,
        stack_bytes: usize,
        hook: Hook,
        settings: LoadSettings,
        shared: Arc<EngineShared>,
        reports: Sender<EngineMessage>,
    ) -> std::io::Result<JobThread> {
        let (sender, jobs) = crossbeam_channel::unbounded();
        let thread = std::thread::Builder::new().name(name.to_owned()).stack_size(stack_bytes);
        let thread = thread.spawn(move || {
            // There is nobody to tell of a panic in the caller's hook.
            let _ = catch(|| hook());
            work(&jobs, &hook, &settings, &shared, &reports);
        })?;
        Ok(JobThread { jobs: Some(sender), thread: Some(thread) })
    }

    /// Adds a job.
    pub(super) fn send(&self, job: EngineJob) {
        if let Some(jobs) = &self.jobs {
            // The thread lives as long as the sender.
            let _ = jobs.send(job);
        }
    }
}

impl Drop for JobThread {
    fn drop(&mut self) {
        self.jobs = None;
        let Some(thread) = self.thread.take() else { return };
        let begun = Instant::now();
        while !thread.is_finished() && begun.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(2));
        }
        if thread.is_finished() {
            // The thread catches every panic, so there is no error to pass on.
            let _ = thread.join();
        }
    }
}

fn work(
    jobs: &Receiver<EngineJob>,
    hook: &Hook,
    settings: &LoadSettings,
    shared: &Arc<EngineShared>,
    reports: &Sender<EngineMessage>,
) {
    let mut loads: Vec<JoinHandle<()>> = Vec::new();
    let mut queue = JobQueue::new(jobs);
    while let Some(job) = queue.next() {
        if shared.stop.load(Ordering::Acquire) {
            if let EngineJob::Check { submission, .. } = job {
                submission.fail(Error::Stopped);
            }
            continue;
        }
        let report = match job {
            EngineJob::Open(source) => {
                let opened = memory::watched("opening the model", OPENING_BYTES, || {
                    catch(|| Opened::new(&source, settings)).and_then(|opened| opened)
                });
                let opened = opened.and_then(|opened| opened);
                JobReport::Opened(source, opened.map(Box::new))
            }
            // On a thread of its own: it may wait for another process, and other models need not.
            EngineJob::Load(source, opened) => {
                loads.retain(|thread| !thread.is_finished());
                let (hook, settings) = (Arc::clone(hook), settings.clone());
                let (shared, answers, wanted) = (Arc::clone(shared), reports.clone(), source.clone());
                let thread = std::thread::Builder::new().name("st-load".to_owned()).spawn(move || {
                    let _ = catch(|| hook());
                    let stop = || shared.stop.load(Ordering::Acquire);
                    // Vocabulary and tables are made of the metadata; weights and workspaces fail by
                    // themselves.
                    let bytes = opened.gguf.metadata_bytes().saturating_mul(8);
                    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX).saturating_add(OPENING_BYTES);
                    let loaded = memory::watched("loading the model", bytes, || {
                        catch(|| load(&wanted, &opened, &hook, &settings, &stop)).and_then(|loaded| loaded)
                    });
                    let loaded = loaded.and_then(|loaded| loaded);
                    let _ = answers.send(EngineMessage::Report(JobReport::Loaded(wanted, loaded)));
                });
                match thread {
                    Ok(thread) => {
                        loads.push(thread);
                        continue;
                    }
                    Err(error) => JobReport::Loaded(source, Err(Error::no_thread(&error))),
                }
            }
            EngineJob::Plan { number, work, texts, tickets, .. } => {
                let unwanted = !tickets.is_empty() && tickets.iter().all(Ticket::is_cancelled);
                let plan = match unwanted {
                    true => Err(Error::Cancelled),
                    false => catch(|| texts.plan(&work, &settings.memory)).and_then(|plan| plan),
                };
                JobReport::Planned { number, plan: plan.map(Box::new) }
            }
            EngineJob::Check { submission, output, checker } => {
                if submission.fail_if_cancelled() {
                    continue;
                }
                let tickets = submission.tickets();
                let bytes = match &output {
                    Output::Text { text, .. } => OPENING_BYTES + text.len().saturating_mul(64),
                    _ => 0,
                };
                let checked = memory::watched("the check of the answer", bytes, || {
                    catch(|| check(&output, &checker, &tickets)).and_then(|checked| checked)
                });
                let checked = checked.and_then(|checked| checked);
                submission.send(match checked {
                    Ok(()) => EventKind::Done(output),
                    // The request may have been cancelled in the middle.
                    Err(_) if submission.fail_if_cancelled() => continue,
                    Err(error) => EventKind::Failed(error),
                });
                continue;
            }
        };
        // Where there is no receiver, no listener is left.
        let _ = reports.send(EngineMessage::Report(report));
    }
    for thread in loads {
        // The thread catches every panic, so there is no error to pass on.
        let _ = thread.join();
    }
}

fn check(output: &Output, checker: &Checker, tickets: &[Ticket]) -> Result<(), Error> {
    match output {
        Output::Text { text, .. } => checker.check(text, tickets),
        _ => Ok(()),
    }
}

/// Loads a model with threads of its own, as the engine's compute steps meanwhile.
fn load(
    source: &ModelSource,
    opened: &Opened,
    hook: &Hook,
    settings: &LoadSettings,
    stop: &(dyn Fn() -> bool + Sync),
) -> Result<(AnyModel, ModelIdentity), Error> {
    let pool =
        Pool::new(settings.threads, settings.instructions, hook).map_err(|error| Error::no_thread(&error))?;
    let model = AnyModel::new(opened, settings, &Loading { pool: &pool, stop })?;
    let identity = ModelIdentity::of(source, &opened.gguf, opened.file, stop)?;
    model.check_lost()?;
    Ok((model, ModelIdentity { backend: opened.backend, ..identity }))
}
