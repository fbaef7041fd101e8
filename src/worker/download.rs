//! The process of a download. Its main thread answers interrupts and tells others how far it is; a thread
//! beside it downloads, and gives way to everything else on the machine.

use std::time::Duration;

use pgrx::prelude::*;

use crate::pg::error::PgError;
use crate::pg::interrupts::Termination;
use crate::pg::{bgworker, interrupts, pulls};
use crate::registry::DownloadRequest;

/// Interval at which its progress is reported.
const INTERVAL: Duration = Duration::from_millis(200);

/// The life of the process.
pub(super) fn run(index: usize) {
    interrupts::accept_signals(Termination::AtOnce);
    bgworker::connect(None);
    let Some(request) = pulls::take(index) else { return };
    interrupts::before_exit(pulls::abandon);
    let outcome = serde_json::from_str::<DownloadRequest>(&request)
        .map_err(|error| PgError::internal(format!("a download cannot be read: {error}")))
        .and_then(|request| fetch::download(index, &request));
    if let Err(error) = &outcome {
        error.clone().report(PgLogLevel::LOG);
    }
    pulls::finish(index, outcome.as_ref());
}

#[cfg(all(feature = "hub", not(feature = "noop-engine")))]
mod fetch {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::path::PathBuf;
    use std::sync::Arc;
    use std::sync::mpsc::{self, TryRecvError};

    use steadytext_engine::hub::{self, Hub, HubError, Order, Progress, Pulled, Reference, Token};

    use super::{DownloadRequest, INTERVAL, PgError, bgworker, interrupts, pulls};
    use crate::pg::error::of_hub;
    use crate::pg::guc;
    use crate::pg::pulls::CompletedDownload;
    use steadytext_engine::process::give_way;

    /// Niceness of the download.
    const NICE: i32 = 19;

    /// Downloads a model.
    pub(super) fn download(index: usize, request: &DownloadRequest) -> Result<CompletedDownload, PgError> {
        let (hub, order) =
            (settings().map_err(|error| of_hub(&error))?, order(request).map_err(|error| of_hub(&error))?);
        let directory = PathBuf::from(guc::model_dir());
        let progress = Arc::new(Progress::default());
        let (sender, receiver) = mpsc::channel();
        let of_thread = Arc::clone(&progress);
        let work = move || {
            bgworker::run_when_idle();
            give_way(NICE);
            let pull = || hub::pull(&hub, &order, &directory, &of_thread);
            // Nobody listens any more when this fails.
            let _ = sender.send(catch_unwind(AssertUnwindSafe(pull)));
        };
        interrupts::with_signals_blocked(|| {
            std::thread::Builder::new().name("download".to_owned()).spawn(work)
        })
        .map_err(|error| PgError::internal(format!("a thread could not be started: {error}")))?;
        loop {
            interrupts::check_between_transactions();
            interrupts::reload_configuration();
            let moment = progress.moment();
            let choice = moment.choice.as_deref().unwrap_or_default();
            if !pulls::report(index, moment.done, moment.total, moment.rate, &moment.note, choice) {
                progress.stop();
            }
            match receiver.try_recv() {
                Ok(Ok(outcome)) => {
                    return outcome.map(done).map_err(|error| of_hub(&error));
                }
                Ok(Err(_)) | Err(TryRecvError::Disconnected) => {
                    return Err(PgError::internal("the download panicked"));
                }
                Err(TryRecvError::Empty) => interrupts::wait(INTERVAL, None),
            }
        }
    }

    fn done(pulled: Pulled) -> CompletedDownload {
        let choice = pulled.said.unwrap_or_default();
        let adapters = pulled.adapters.join(", ");
        let Pulled { name, size, was_there, replaced, .. } = pulled;
        CompletedDownload { name, size, was_there, replaced, choice, adapters }
    }

    fn order(request: &DownloadRequest) -> Result<Order, HubError> {
        let reference = match &request.reference {
            Some(reference) => Reference::parse(reference)?,
            None => {
                // A file of the registry is found by its name in the repository.
                let file = request.file.as_deref().filter(|file| file.ends_with(".gguf"));
                let file = file.map(|file| file.rsplit('/').next().unwrap_or(file));
                Reference::new(&request.repository, request.revision.as_deref(), file)?
            }
        };
        Ok(Order {
            reference,
            name: request.file.clone(),
            sha256: request.sha256,
            card: request.card.clone(),
        })
    }

    /// The settings, and what the server's environment says where they say nothing.
    fn settings() -> Result<Hub, HubError> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let said = |text: String| Some(text).filter(|text| !text.is_empty());
        let token = match said(guc::hub_token_file()) {
            Some(path) => Token::read(path.as_ref())?,
            None => variable("HF_TOKEN").map_or(Ok(None), |token| Token::new(&token))?,
        };
        let endpoint = said(guc::hub_endpoint()).or_else(|| variable("HF_ENDPOINT"));
        Ok(Hub {
            endpoint: endpoint.unwrap_or_else(|| hub::DEFAULT_ENDPOINT.to_owned()),
            token,
            offline: guc::hub_offline(),
            gives_way: true,
            ..Hub::default()
        })
    }
}

#[cfg(not(all(feature = "hub", not(feature = "noop-engine"))))]
mod fetch {
    use super::{DownloadRequest, PgError, PgSqlErrorCode};
    use crate::pg::pulls::CompletedDownload;

    /// A build without downloads refuses them.
    pub(super) fn download(_index: usize, _request: &DownloadRequest) -> Result<CompletedDownload, PgError> {
        Err(PgError::new(
            PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
            "this build of pg_steadytext downloads nothing",
        )
        .hint("Build it with the Cargo feature hub, or put the model's file into pg_steadytext.model_dir."))
    }
}
