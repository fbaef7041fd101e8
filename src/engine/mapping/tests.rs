//! Files that are cut short while they are mapped, and signals that are none of our business.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use super::{Blank, Mapping, unblock_sigbus};

/// Set in a process of its own: what it is to die of.
const DEATH: &str = "STEADYTEXT_TEST_DEATH";

fn mapped(bytes: &[u8]) -> (tempfile::NamedTempFile, Mapping) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let mapping = Mapping::file(&File::open(file.path()).unwrap()).unwrap();
    (file, mapping)
}

#[test]
fn a_file_that_is_cut_short_reads_as_zeros_and_is_marked() {
    let (file, mapping) = mapped(&[7; 100_000]);
    let (_other, sound) = mapped(&[8; 100_000]);
    assert!(mapping[99_999] == 7 && !mapping.lost());
    file.as_file().set_len(5000).unwrap();
    assert_eq!(mapping[50_000], 0);
    assert!(mapping.lost());
    assert!(mapping.iter().all(|byte| *byte == 0));
    assert!(sound.iter().all(|byte| *byte == 8) && !sound.lost());
}

#[test]
fn all_threads_that_read_what_is_gone_go_on() {
    let (file, mapping) = mapped(&vec![7; 4 << 20]);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let mapping = &mapping;
            scope.spawn(move || {
                unblock_sigbus();
                while !mapping.lost() {
                    assert!(mapping.iter().skip(thread * 4096).all(|byte| *byte == 7 || *byte == 0));
                }
            });
        }
        file.as_file().set_len(1 << 20).unwrap();
    });
    assert!(mapping.lost());
}

#[test]
fn a_place_is_free_again_for_the_next_mapping() {
    for _ in 0..3000 {
        let (file, mapping) = mapped(&[1; 5000]);
        assert!(!mapping.lost());
        drop(file);
    }
}

#[test]
fn released_pages_come_back_from_the_file_and_anonymous_ones_stay() {
    let (_file, mapping) = mapped(&[7; 100_000]);
    mapping.release(&mapping[4096..90_000]);
    mapping.release(&[1, 2, 3]);
    assert!(mapping.iter().all(|byte| *byte == 7));
    let mut blank = Blank::new(10_000).unwrap();
    blank.bytes_mut().fill(9);
    let mapping = blank.finish().unwrap();
    mapping.release(&mapping);
    assert!(mapping[..10_000].iter().all(|byte| *byte == 9));
}

/// Dies as it is told, in a process of its own; otherwise there is nothing to see.
#[test]
#[allow(clippy::exit, reason = "a process of its own")]
fn dies_when_told() {
    let Some(death) = std::env::var_os(DEATH) else { return };
    // As in a server's process; the test's has a handler against full stacks.
    // SAFETY: no thread expects another action.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
    let (file, mapping) = mapped(&[7; 8192]);
    match death.to_str() {
        // Memory that is mapped by somebody else.
        Some("stranger") => {
            // SAFETY: nobody else writes to the file.
            let map = unsafe { memmap2::Mmap::map(file.as_file()).unwrap() };
            file.as_file().set_len(0).unwrap();
            std::process::exit(i32::from(map[5000]));
        }
        // SAFETY: sends a signal to this process.
        Some("sent") => unsafe {
            libc::kill(libc::getpid(), libc::SIGBUS);
            std::thread::sleep(std::time::Duration::from_secs(10));
        },
        _ => {
            file.as_file().set_len(0).unwrap();
            std::process::exit(i32::from(mapping[5000]));
        }
    }
}

#[test]
fn other_addresses_and_signals_go_where_they_went_before() {
    let die = |death: &str| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "mapping::tests::dies_when_told", "--test-threads=1"]).env(DEATH, death);
        command.output().unwrap().status
    };
    assert_eq!(die("stranger").signal(), Some(libc::SIGBUS));
    assert_eq!(die("sent").signal(), Some(libc::SIGBUS));
    assert_eq!(die("own").code(), Some(0), "the same access to a mapping of ours");
}
