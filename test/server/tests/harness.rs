//! The harness itself, on plain PostgreSQL: what the other tests stand on.

use std::path::PathBuf;

use steadytext_test_server::{Footprint, Options, Shutdown, Signal, is_alive, signal, slope, wait_until};

fn plain() -> Options {
    Options::new().without_preload()
}

#[test]
fn a_cluster_answers_over_its_own_socket_only() {
    let cluster = plain().start();
    let mut session = cluster.session("postgres");
    assert_eq!(session.one::<String>("show listen_addresses"), "");
    assert_eq!(cluster.psql("postgres", "select 6 * 7").trim(), "42");
    let error = cluster.psql_error("postgres", "select 1/0").expect("an error");
    assert!(error.contains("division by zero"), "{error}");
}

#[test]
fn clusters_live_side_by_side() {
    let (one, other) = (plain().start(), plain().start());
    one.session("postgres").run("create table here ()");
    assert!(!other.session("postgres").one::<bool>("select to_regclass('here') is not null"));
}

#[test]
fn a_dropped_cluster_leaves_neither_process_nor_file() {
    let cluster = plain().start();
    let (postmaster, directory) = (cluster.postmaster_pid(), cluster.directory().to_owned());
    assert!(is_alive(postmaster) && directory.exists());
    drop(cluster);
    assert!(!is_alive(postmaster) && !directory.exists());
}

#[test]
fn a_panicking_test_leaves_neither_process_nor_file() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let test = std::thread::spawn(move || {
        let cluster = plain().start();
        sender.send((cluster.postmaster_pid(), cluster.directory().to_owned())).expect("the parent listens");
        panic!("on purpose");
    });
    assert!(test.join().is_err());
    let (postmaster, directory): (i32, PathBuf) = receiver.recv().expect("the thread had started a cluster");
    assert!(!is_alive(postmaster) && !directory.exists());
}

#[test]
fn every_shutdown_ends_and_the_data_is_still_there() {
    let mut cluster = plain().start();
    cluster.session("postgres").run("create table kept as select 1 as value");
    for how in [Shutdown::Smart, Shutdown::Fast, Shutdown::Immediate] {
        // It panics when it does not end.
        cluster.stop(how);
        cluster.start();
        assert_eq!(cluster.session("postgres").one::<i32>("select value from kept"), 1);
    }
}

#[test]
fn a_killed_postmaster_takes_its_children_along_and_starts_again() {
    let mut cluster = plain().start();
    cluster.session("postgres").run("create table kept as select 1 as value");
    cluster.kill_postmaster();
    cluster.start();
    assert_eq!(cluster.session("postgres").one::<i32>("select value from kept"), 1);
}

#[test]
fn a_killed_backend_is_followed_by_recovery_and_the_log_says_so() {
    let cluster = plain().start();
    let from = cluster.log().len();
    let mut victim = cluster.session("postgres");
    assert!(signal(victim.backend_pid(), Signal::KILL));
    cluster.wait_for_log(from, "terminated by signal 9");
    assert_eq!(cluster.session("postgres").one::<i32>("select 1"), 1);
}

#[test]
fn a_standby_follows_and_can_be_promoted() {
    let cluster = plain().start();
    let standby = cluster.standby();
    cluster.session("postgres").run("create table kept as select 1 as value");
    cluster.wait_for_replay(&standby);
    let mut session = standby.session("postgres");
    assert_eq!(session.one::<i32>("select value from kept"), 1);
    assert!(session.one::<bool>("select pg_is_in_recovery()"));
    standby.promote();
    session.run("insert into kept values (2)");
    wait_until("recovery ends", || !session.one::<bool>("select pg_is_in_recovery()"));
}

#[test]
fn a_process_that_takes_more_is_seen_to_grow() {
    let own = std::process::id() as i32;
    let before = Footprint::of(own).expect("this process lives");
    let memory = std::hint::black_box(vec![7_u8; 64 << 20]);
    let file = std::fs::File::open("/proc/self/status").expect("there is such a file");
    let after = Footprint::of(own).expect("this process lives");
    // Other tests of this process come and go meanwhile.
    assert!(after.anonymous_kb > before.anonymous_kb + 32.0 * 1024.0, "{before:?} {after:?}");
    assert!(after.rss_kb >= after.pss_kb && after.descriptors >= 3.0 && after.threads >= 1.0, "{after:?}");
    drop(std::hint::black_box((memory, file)));
    assert_eq!(Footprint::of(i32::MAX), None);
}

#[test]
fn a_slope_is_that_of_the_line_among_the_points() {
    let points: Vec<(f64, f64)> =
        (0..100).map(|x| (f64::from(x), 5.0 + 0.25 * f64::from(x) + f64::from(x % 2))).collect();
    assert!((slope(&points) - 0.25).abs() < 0.001, "{}", slope(&points));
    assert_eq!(slope(&[]), 0.0);
    assert_eq!(slope(&[(3.0, 8.0)]), 0.0);
}
