//! Limits on the connections of a server: their number, their shares, and the time that they stay.
//!
//! A connection is an open file, of which a process has a limited number. Connections that are not in use are
//! closed; a role, and a process, gets a share only; and who cannot be served is told so at once.

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

/// Open files that the process may want for anything but connections.
const OTHER_FILES: u64 = 72;
/// Most connections, whatever the process may open.
const MOST_CONNECTIONS: u64 = 4096;
/// Fewest of them.
const FEWEST_CONNECTIONS: u64 = 8;
/// Most open files that the process has a use for.
const WANTED_FILES: u64 = OTHER_FILES + 2 * MOST_CONNECTIONS;

/// The client at the other end. It is of the same build and of the same user of the system, so what it says
/// of itself is believed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caller {
    /// The role on whose behalf it connects.
    pub role: u32,
    /// Its process.
    pub process: u32,
    /// Whether it stays connected when it has nothing to ask.
    pub lasting: bool,
}

/// The reason why a connection is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConnectionRefusal {
    /// All are in use.
    Full {
        /// Number of all connections.
        connections: usize,
    },
    /// The role has its share of them.
    Role {
        /// Number of connections of a share.
        share: usize,
    },
    /// The process has its share of them.
    Process {
        /// Number of connections of a share.
        share: usize,
    },
}

/// Limits of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerLimits {
    /// Most connections in use.
    pub connections: usize,
    /// Most of one role, so that there are always some for the others.
    pub per_role: usize,
    /// Most of one process.
    pub per_process: usize,
    /// Most that have not said yet who they are; more wait before they are accepted.
    pub newcomers: usize,
    /// Time after which one without a request is closed.
    pub idle: Duration,
    /// Time after which one that does not say who it is is closed.
    pub silent: Duration,
}

impl ServerLimits {
    /// The limits of a process that may have so many open files.
    pub fn of(files: u64) -> ServerLimits {
        let connections =
            (files.saturating_sub(OTHER_FILES) / 2).clamp(FEWEST_CONNECTIONS, MOST_CONNECTIONS) as usize;
        ServerLimits {
            connections,
            per_role: connections * 3 / 4,
            per_process: (connections / 8).max(2),
            newcomers: (connections / 4).min(64),
            idle: Duration::from_secs(5),
            silent: Duration::from_secs(2),
        }
    }

    /// The limits of this process, whose limit of open files is raised as far as is allowed and useful.
    pub fn of_this_process() -> ServerLimits {
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        let wanted = maximum.map_or(WANTED_FILES, |maximum| maximum.min(WANTED_FILES));
        let before = current.unwrap_or(u64::MAX);
        if before >= wanted {
            return ServerLimits::of(before);
        }
        let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum });
        ServerLimits::of(if raised.is_ok() { wanted } else { before })
    }
}

#[cfg(test)]
mod tests {
    use super::ServerLimits;

    #[test]
    fn whatever_a_process_may_open_there_are_connections_for_several_roles_and_processes() {
        for files in [0, 80, 200, 256, 1024, 4096, 1 << 20, u64::MAX] {
            let ServerLimits { connections, per_role, per_process, newcomers, .. } = ServerLimits::of(files);
            assert!(per_role < connections && per_process * 3 <= connections && per_process < per_role);
            assert!(newcomers >= 1);
            assert!(files < 144 || (connections + newcomers) as u64 + 40 < files, "{files}: {connections}");
        }
        assert_eq!(ServerLimits::of(200).connections, 64);
        // Five processes with all that one may have leave some, also to their own role.
        assert!(ServerLimits::of(200).per_process * 5 < ServerLimits::of(200).per_role);
    }
}
