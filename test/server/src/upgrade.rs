//! pg_upgrade from one cluster to another of the same programs.

use crate::cluster::Cluster;
use crate::program::{bin_directory, succeed};

impl Cluster {
    /// Takes over everything from `old`, which must be stopped, as this one, which must never have been
    /// started.
    #[track_caller]
    pub fn upgrade_from(&self, old: &Cluster) {
        succeed(
            self.client_program("pg_upgrade")
                .current_dir(self.directory())
                .arg("--old-bindir")
                .arg(bin_directory())
                .arg("--new-bindir")
                .arg(bin_directory())
                .arg("--old-datadir")
                .arg(old.data())
                .arg("--new-datadir")
                .arg(self.data())
                .arg("--socketdir")
                .arg(self.directory())
                .args(["--username", "postgres"]),
        );
    }
}
