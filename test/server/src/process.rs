//! Signals to processes, and who is whose child.

pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process, test_kill_process};

fn pid(process: i32) -> Pid {
    Pid::from_raw(process).expect("a process id is positive")
}

/// Sends a signal; `false` when the process has gone.
pub fn signal(process: i32, signal: Signal) -> bool {
    kill_process(pid(process), signal).is_ok()
}

/// Whether the process exists and has not ended (a zombie has).
pub fn is_alive(process: i32) -> bool {
    test_kill_process(pid(process)).is_ok() && stat(process).is_some_and(|(state, _)| state != 'Z')
}

/// The processes whose parent is `parent`.
pub fn children_of(parent: i32) -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|process| stat(*process).is_some_and(|(_, its_parent)| its_parent == parent))
        .collect()
}

/// State letter and parent of a process.
fn stat(process: i32) -> Option<(char, i32)> {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name in parentheses may itself hold parentheses and blanks.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}
