//! A program that a process of the server starts, watches and ends.
//!
//! Invariant: it has nothing of the server but its user, its working directory and where errors are written:
//! no shared memory, no open file, no handled or blocked signal, no environment, and a session of its own, so
//! that no signal for the process that has started it is one for it. It does not outlive that process,
//! however that ends: the kernel kills it then, and its standard input ends.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr, OsString, c_char};
use std::fs;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::interrupts::WaitFd;

/// Variables of the server's environment that the program gets: those by which crates choose their number of
/// threads.
const ENVIRONMENT: [&str; 2] = ["CANDLE_NUM_THREADS", "RAYON_NUM_THREADS"];
/// Longest wait for the end of a process that was killed. It does nothing any more; the kernel may still be
/// taking its memory back.
const END_PATIENCE: Duration = Duration::from_secs(2);
/// Interval between two checks whether a process has ended.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);
/// Most bytes of a line that it says.
const MAX_LINE_BYTES: usize = 4096;

/// MAXPGPATH in all versions.
const PATH_BYTES: usize = 1024;

unsafe extern "C" {
    static my_exec_path: [c_char; PATH_BYTES];
}

/// The path of a program in the directory of the server's own.
pub(crate) fn beside_server(name: &str) -> PathBuf {
    // SAFETY: a C string that the postmaster has filled in, and that nobody changes.
    let server = unsafe { CStr::from_ptr((&raw const my_exec_path).cast()) };
    Path::new(OsStr::from_bytes(server.to_bytes())).with_file_name(name)
}

/// A program that runs, or has ended. Dropping it kills it.
pub(crate) struct Program {
    child: Child,
    /// Its standard input and output.
    channel: UnixStream,
    said: Vec<u8>,
    /// Nanoseconds for which each of its threads has waited for a processor.
    waits: HashMap<OsString, u64>,
}

impl Program {
    /// Starts it. Only by the main thread, with whose end the program ends.
    ///
    /// # Errors
    ///
    /// The system's: where it is not there, or cannot be run.
    pub(crate) fn start(path: &Path, arguments: &[String]) -> io::Result<Program> {
        forget_stragglers();
        let (ours, its) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut command = Command::new(path);
        command.args(arguments).env_clear();
        for name in ENVIRONMENT {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command.stdin(Stdio::from(OwnedFd::from(its.try_clone()?))).stdout(Stdio::from(OwnedFd::from(its)));
        let parent = std::process::id();
        // SAFETY: what it calls may be called between fork and exec.
        unsafe { command.pre_exec(move || become_own(parent)) };
        Ok(Program { child: command.spawn()?, channel: ours, said: Vec::new(), waits: HashMap::new() })
    }

    /// Its process.
    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap_or(i32::MAX)
    }

    /// Becomes ready when it says something, and when it ends.
    pub(crate) fn wait_fd(&self) -> WaitFd {
        WaitFd { fd: self.channel.as_raw_fd(), writing: false }
    }

    /// A line that it has said on standard output; `None`: it has not said one to its end yet.
    ///
    /// # Errors
    ///
    /// The connection's; `UnexpectedEof` when it has closed it.
    pub(crate) fn read_line(&mut self) -> io::Result<Option<String>> {
        loop {
            if let Some(end) = self.said.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.said.drain(..=end).collect();
                return Ok(Some(String::from_utf8_lossy(&line[..end]).into_owned()));
            }
            if self.said.len() > MAX_LINE_BYTES {
                return Err(ErrorKind::InvalidData.into());
            }
            let mut bytes = [0; 512];
            match self.channel.read(&mut bytes) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.said.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The time for which a thread of it was kept waiting for a processor since this was called last, the one
    /// that waited longest. Where the system does not say, and the first time, nothing.
    pub(crate) fn kept_waiting(&mut self) -> Duration {
        let Ok(threads) = fs::read_dir(format!("/proc/{}/task", self.pid())) else { return Duration::ZERO };
        let waits: HashMap<OsString, u64> = threads
            .flatten()
            .filter_map(|thread| {
                let says = fs::read_to_string(thread.path().join("schedstat")).ok()?;
                Some((thread.file_name(), says.split_whitespace().nth(1)?.parse().ok()?))
            })
            .collect();
        let since = |(thread, wait): (&OsString, &u64)| {
            self.waits.get(thread).map_or(0, |before| wait.saturating_sub(*before))
        };
        let longest = waits.iter().map(since).max().unwrap_or(0);
        self.waits = waits;
        Duration::from_nanos(longest)
    }

    /// Waits for its end, at most so long. The status with which it ended; `None` if it has not ended, or
    /// where that cannot be found out.
    pub(crate) fn wait(&mut self, patience: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if Instant::now() < deadline => std::thread::sleep(LOOK_INTERVAL),
                Ok(None) | Err(_) => return None,
            }
        }
    }

    /// Kills it, if it has not ended by itself. The status with which it ended, where the kernel has said so
    /// in time.
    pub(crate) fn end(&mut self) -> Option<ExitStatus> {
        // An error says that it has ended.
        let _ = self.child.kill();
        self.wait(END_PATIENCE)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if self.end().is_none() {
            STRAGGLERS.lock().unwrap_or_else(PoisonError::into_inner).push(self.pid());
        }
    }
}

/// Processes that were killed and had not gone in time. They are forgotten by the kernel when this process
/// has asked how they ended.
static STRAGGLERS: Mutex<Vec<i32>> = Mutex::new(Vec::new());

fn forget_stragglers() {
    let mut stragglers = STRAGGLERS.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: asks for children of this process, and does not wait.
    stragglers.retain(|pid| unsafe { libc::waitpid(*pid, std::ptr::null_mut(), libc::WNOHANG) } == 0);
}

/// Leaves everything of the process behind that this one was forked from. Between fork and exec, where
/// nothing may be allocated.
fn become_own(parent: u32) -> io::Result<()> {
    const FIRST_OTHER: u32 = 3;
    const LAST_SIGNAL: i32 = 64;
    // SAFETY: calls that are allowed in a process that was forked from one with several threads, about this
    // process only.
    unsafe {
        libc::setsid();
        for signal in 1..=LAST_SIGNAL {
            // The C library refuses the two signals that nobody can handle, and its own.
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
        #[cfg(target_os = "linux")]
        if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
            return Err(io::Error::last_os_error());
        }
        // The parent may have died before that.
        if u32::try_from(libc::getppid()) != Ok(parent) {
            return Err(ErrorKind::NotFound.into());
        }
        // Closed by exec, as the standard library has one open by which it tells of errors.
        #[cfg(target_os = "linux")]
        if libc::syscall(libc::SYS_close_range, FIRST_OTHER, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) == 0 {
            return Ok(());
        }
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        let most = i32::try_from(limit.rlim_cur).unwrap_or(i32::MAX).min(1 << 20);
        for file in FIRST_OTHER as i32..most {
            libc::fcntl(file, libc::F_SETFD, libc::FD_CLOEXEC);
        }
    }
    Ok(())
}
