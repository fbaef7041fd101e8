//! `steadytext-worker` over TLS: what each `sslmode` demands of a server, and that none of them goes on with
//! less.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};

use steadytext_test_server::WorkerElsewhere as Worker;
use steadytext_test_server::{Cluster, Options, Session, wait_until};

/// Runs openssl, which PostgreSQL's packages bring along, in a directory.
fn openssl(directory: &Path, arguments: &[&str]) {
    let done = Command::new("openssl").args(arguments).current_dir(directory).output();
    let done = done.unwrap_or_else(|error| panic!("openssl: {error}"));
    assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// A certificate that has signed itself, for host localhost, and its key.
fn sign_itself(directory: &Path, name: &str) {
    let (key, certificate) = (format!("{name}.key"), format!("{name}.crt"));
    openssl(
        directory,
        &[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost",
            "-keyout",
            &key,
            "-out",
            &certificate,
        ],
    );
}

/// An authority `ca`, and a certificate `signed` of it for host localhost.
fn sign_by_authority(directory: &Path) {
    let new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let ca =
        ["req", "-x509", "-days", "2", "-subj", "/CN=An authority", "-keyout", "ca.key", "-out", "ca.crt"];
    openssl(directory, &[&ca[..], &new_key].concat());
    let request = ["req", "-subj", "/CN=localhost", "-keyout", "signed.key", "-out", "signed.csr"];
    openssl(directory, &[&request[..], &new_key].concat());
    std::fs::write(directory.join("names"), "subjectAltName=DNS:localhost\n").expect("our own directory");
    openssl(
        directory,
        &[
            "x509",
            "-req",
            "-in",
            "signed.csr",
            "-CA",
            "ca.crt",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            "names",
            "-out",
            "signed.crt",
        ],
    );
}

/// A server that is reached over TCP, with TLS where it gets a certificate of this name, and a session.
/// Certificates are in its directory.
struct Server {
    cluster: Cluster,
    session: Session,
    address: String,
}

impl Server {
    fn start(certificate: Option<&str>) -> Server {
        static LAST: AtomicU8 = AtomicU8::new(0);
        // Of this test alone, as all clusters have the same port.
        let own = std::process::id().to_le_bytes();
        let address =
            format!("127.{}.{}.{}", 64 + own[0] / 4, own[1], 1 + LAST.fetch_add(1, Ordering::Relaxed));
        let mut cluster = Options::new().set("listen_addresses", &address).create();
        let directory = cluster.directory().to_owned();
        sign_itself(&directory, "own");
        sign_itself(&directory, "other");
        sign_by_authority(&directory);
        let access = if certificate.is_some() { "hostssl" } else { "host" };
        let rules = format!("local all all trust\n{access} all all 127.0.0.0/8 trust\n");
        cluster.write_data("pg_hba.conf", rules.as_bytes());
        if let Some(name) = certificate {
            for kind in ["crt", "key"] {
                let file = std::fs::read(directory.join(format!("{name}.{kind}"))).expect("it was made");
                cluster.write_data(&format!("server.{kind}"), &file);
            }
            cluster.configure("ssl", "on");
        }
        cluster.start();
        let mut session = cluster.session("postgres");
        session.create_extension();
        session.run("create role remote login in role steadytext_worker");
        session.pause();
        Server { cluster, session, address }
    }

    fn worker(&self, host: &str, how: &str) -> Worker {
        let how = how.replace('@', &format!("{}/", self.cluster.directory().display()));
        let url = format!("postgresql://remote@{host}/postgres?hostaddr={}&{how}", self.address);
        Worker::start_at(&url, &self.cluster, &["--grace", "0.05"])
    }

    /// A worker serves a request, and both of its connections are encrypted, or none is.
    fn assert_served(&mut self, host: &str, how: &str, is_encrypted: bool) {
        let mut worker = self.worker(host, how);
        let id = self.session.generate("x", "max_tokens => 2, use_cache => false");
        self.session.answer(id);
        let encrypted: Vec<bool> = self.session.list(
            "select distinct s.ssl from pg_stat_ssl as s join pg_stat_activity as a using (pid) where a.usename = 'remote'",
        );
        assert_eq!(encrypted, [is_encrypted], "{how}: {}", worker.said());
        assert!(worker.stop());
    }

    /// A worker finds fault with the server, in these words, and serves nothing.
    fn is_refused(&mut self, host: &str, how: &str, words: &str) {
        let mut worker = self.worker(host, how);
        wait_until("it says why", || worker.said().contains(words));
        assert!(!worker.said().contains("connected"), "{how}: {}", worker.said());
        worker.stop();
    }
}

#[test]
fn a_server_is_verified_as_far_as_sslmode_says() {
    let mut server = Server::start(Some("own"));
    // A server that has TLS is served without a mode, with modes that ask for TLS, and with its self-signed
    // certificate as the authority.
    for how in [
        "application_name=w",
        "sslmode=prefer",
        "sslmode=require",
        "sslmode=verify-ca&sslrootcert=@own.crt",
        "sslmode=verify-full&sslrootcert=@own.crt",
    ] {
        server.assert_served("localhost", how, true);
    }
    // Another host's name is no matter until it is.
    server.assert_served("elsewhere.test", "sslmode=verify-ca&sslrootcert=@own.crt", true);
    server.is_refused("elsewhere.test", "sslmode=verify-full&sslrootcert=@own.crt", "certificate");
    // Another authority, also where TLS was only required: who names one means it.
    for mode in ["require", "verify-ca", "verify-full"] {
        for root in ["other", "ca"] {
            server.is_refused("localhost", &format!("sslmode={mode}&sslrootcert=@{root}.crt"), "certificate");
        }
    }
}

#[test]
fn a_certificate_of_an_authority_is_verified_by_it() {
    let mut server = Server::start(Some("signed"));
    server.assert_served("localhost", "sslmode=verify-full&sslrootcert=@ca.crt", true);
    server.assert_served("elsewhere.test", "sslmode=verify-ca&sslrootcert=@ca.crt", true);
    server.is_refused("elsewhere.test", "sslmode=verify-full&sslrootcert=@ca.crt", "certificate");
    server.is_refused("localhost", "sslmode=verify-full&sslrootcert=@own.crt", "certificate");
}

#[test]
fn a_server_without_tls_is_refused_where_tls_is_demanded() {
    let mut server = Server::start(None);
    server.assert_served("localhost", "sslmode=prefer", false);
    server.assert_served("localhost", "sslmode=disable", false);
    for how in [
        "sslmode=require",
        "sslmode=verify-ca&sslrootcert=@own.crt",
        "sslmode=verify-full&sslrootcert=@own.crt",
    ] {
        server.is_refused("localhost", how, "TLS");
    }
}

#[test]
fn what_cannot_be_meant_ends_the_worker_at_once() {
    let (cluster, _session) = steadytext_test_server::served_elsewhere();
    for (url, words) in [
        ("host=localhost sslmode=sometimes", "sslmode must be"),
        ("host=localhost sslmode=verify-full", "no root certificates"),
        ("host=localhost sslmode=verify-ca sslrootcert=/nowhere/at.all", "/nowhere/at.all"),
        ("host=localhost sslmode=verify-ca sslrootcert=system", "needs sslmode=verify-full"),
        ("host=localhost sslmode=require sslkey=secret", "sslkey"),
        ("host=localhost password='secret", "cannot be read"),
        ("postgresql://remote:secret@localhost/postgres?sslmode=%zz", "cannot be read"),
    ] {
        let mut worker = Worker::start_at(url, &cluster, &[]);
        assert!(!worker.wait(), "{url}");
        wait_until("it has said why", || worker.said().contains(words));
        assert!(!worker.said().contains("secret"), "{}", worker.said());
    }
    // Sockets of the machine are nobody else's, whatever is asked for.
    let url = format!(
        "host='{}' user=remote dbname=postgres sslmode = 'verify-full'",
        cluster.directory().display()
    );
    assert!(Worker::start_at(&url, &cluster, &["--drain"]).wait());
}
