//! A second cluster that follows the first.

use crate::cluster::Cluster;
use crate::program::succeed;

impl Cluster {
    /// Makes a hot standby with pg_basebackup and starts it.
    #[track_caller]
    pub fn standby(&self) -> Cluster {
        let mut standby = Cluster::empty();
        succeed(
            self.client_program("pg_basebackup")
                .args([
                    "--write-recovery-conf",
                    "--checkpoint=fast",
                    "--no-sync",
                    "--wal-method=stream",
                    "--pgdata",
                ])
                .arg(standby.data()),
        );
        standby.append_settings(&format!("unix_socket_directories = '{}'\n", standby.directory().display()));
        standby.start();
        standby
    }

    /// Promotes a standby and waits until it takes writes.
    #[track_caller]
    pub fn promote(&self) {
        self.psql("postgres", "select pg_promote(true, 60)");
    }

    /// Waits until `standby` has replayed everything that this cluster has written up to now.
    #[track_caller]
    pub fn wait_for_replay(&self, standby: &Cluster) {
        let position: String = self.session("postgres").one("select pg_current_wal_flush_lsn()::text");
        let mut there = standby.session("postgres");
        crate::wait::wait_until("the standby replays", || {
            there.one::<bool>(&format!("select pg_last_wal_replay_lsn() >= '{position}'::pg_lsn"))
        });
    }
}
