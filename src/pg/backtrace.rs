//! No backtraces: they are full of paths of the machine that built the library, and the reader of an error's
//! message can use nothing of them. pgrx and other crates take one at every error when the server's
//! environment has RUST_BACKTRACE or RUST_LIB_BACKTRACE, and put it into DETAIL, for the client and the log.

use std::backtrace::Backtrace;
use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;
use std::sync::Once;

/// The variable that decides for libraries, and comes before RUST_BACKTRACE.
const VARIABLE: &str = "RUST_LIB_BACKTRACE";

/// Keeps this copy of the standard library, and with it everything in this library, from ever taking a
/// backtrace. The first thing that is done when the library is loaded.
pub(crate) fn suppress() {
    static DONE: Once = Once::new();
    DONE.call_once(|| {
        decide();
        silence_other_threads();
    });
}

/// The standard library looks into the environment when the first backtrace is asked for, and keeps to what
/// it found. The environment itself is the server's, and stays as it was.
fn decide() {
    let before = std::env::var_os(VARIABLE);
    set(Some(OsStr::new("0")));
    drop(Backtrace::capture());
    set(before.as_deref());
}

fn set(value: Option<&OsStr>) {
    // SAFETY: the library is being loaded, by the only thread of a server process.
    unsafe {
        match value {
            Some(value) => std::env::set_var(VARIABLE, value),
            None => std::env::remove_var(VARIABLE),
        }
    }
}

/// pgrx gives a panic of the main thread to PostgreSQL, and those of other threads to the standard hook,
/// which prints what was said, be it a prompt, and a backtrace. The engine's threads have a hook of their
/// own; of others, this says where it was.
fn silence_other_threads() {
    let main = std::thread::current().id();
    let previous = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if std::thread::current().id() == main {
            return previous(panic);
        }
        let place = panic.location().map_or_else(String::new, |location| {
            let file = Path::new(location.file()).file_name().unwrap_or_default();
            format!(" at {}:{}", file.to_string_lossy(), location.line())
        });
        // Standard error is the server's log; there is nobody to tell where it cannot be written.
        let _ = writeln!(std::io::stderr(), "pg_steadytext: a thread panicked{place}");
    }));
}
