//! A process that runs an engine considers the others on its machine: it gives way to them, is the first to
//! be killed when memory runs out, and takes no more memory than it may.
//!
//! It also has the contract between a server and the program that it starts as its engine: [`BUILD`], and the
//! exit statuses of that program.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getpid, getrlimit, getsid, setrlimit};

/// The version that both ends of a socket must have in common, because their messages have no versions of
/// their own: the crate's version, and a number to be raised with each change, within that version, of a
/// message of [`crate::socket`] or of the options of `steadytext-engine serve`.
pub const BUILD: &str = concat!(env!("CARGO_PKG_VERSION"), "/2");

/// Bytes of the stack of each thread that computes; the masks of constraints are computed on it.
pub(crate) const COMPUTING_STACK_BYTES: usize = 16 << 20;

/// Requests that wait in a server's engine, from all databases and backends.
pub const QUEUE_CAPACITY: usize = 16_384;

/// Exit status of the program where its engine has failed whatever it did.
pub const FAILED_STATUS: i32 = 70;
/// Exit status of the program where the system had no memory for something small.
pub const NO_MEMORY_STATUS: i32 = 71;
/// The line by which the program says that its socket takes connections.
pub const READY: &str = "ready";
/// The beginning of the line by which it says why it cannot.
pub const REFUSED: &str = "refused: ";

/// Makes the whole process give way to others as `nice` says, on Linux with automatic task groups: there a
/// thread's niceness counts among the threads of its session only, so it must be a session of its own. It may
/// wait for some tenths of a second.
pub fn give_way(nice: i32) {
    const TRIES: usize = 5;
    const PAUSE: Duration = Duration::from_millis(110);
    let own_session = getsid(None).is_ok_and(|session| session == getpid());
    if !own_session || nice <= 0 {
        return;
    }
    for _ in 0..TRIES {
        match fs::write("/proc/self/autogroup", nice.min(19).to_string()) {
            // The kernel lets one process in a tenth of a second do this.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => std::thread::sleep(PAUSE),
            // Where the system has no such groups the file is not there, and niceness counts everywhere.
            Ok(()) | Err(_) => return,
        }
    }
}

/// Offers this process to the kernel before all others, where it must kill one for want of memory.
pub fn offer_first() {
    // Raising it is everybody's right; where the system has nothing of the kind, there is nothing to offer.
    let _ = fs::write("/proc/self/oom_score_adj", "1000");
}

/// Bounds what the process may have of memory that is its own and can be written: beyond that the system
/// refuses it, as if it had none. Mapped files do not count. A limit that is lower already stays.
pub fn limit_data(bytes: u64) {
    let Rlimit { current, maximum } = getrlimit(Resource::Data);
    let least = |limit: Option<u64>| Some(limit.map_or(bytes, |limit| limit.min(bytes)));
    // Lowering it is everybody's right.
    let _ = setrlimit(Resource::Data, Rlimit { current: least(current), maximum: least(maximum) });
}

/// For [`Config::fault`](crate::Config::fault): a panic at this place as long as the file is there, or, where
/// it says `hang`, no end.
#[doc(hidden)]
pub fn fault_while(place: String, file: PathBuf) -> Arc<dyn Fn(&'static str) + Send + Sync> {
    const PAUSE: Duration = Duration::from_millis(1);
    Arc::new(move |here| {
        if here != place {
            return;
        }
        while fs::read(&file).is_ok_and(|says| says == b"hang") {
            std::thread::sleep(PAUSE);
        }
        assert!(!file.exists(), "a fault in {here}");
    })
}
