//! The harness itself, on plain PostgreSQL: what the other tests stand on.

use std::path::PathBuf;

use steadytext_test_server::{Options, Shutdown, Signal, is_alive, signal, wait_until};

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
