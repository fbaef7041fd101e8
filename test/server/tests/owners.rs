//! Owners of requests: a request belongs to a role, under whatever name, in this cluster and in others.

use std::path::Path;

use steadytext_test_server::{Cluster, Options, Session, endless_text, slow_model, wait_until};

/// Alice, bob and gone may use pg_steadytext, carol administers it. Each of the three has a pending request;
/// then alice becomes alicia, and gone is dropped.
fn renamed_and_dropped(cluster: &Cluster) -> Session {
    let mut session = cluster.session("postgres");
    session.create_extension();
    session.run(
        "create role alice login in role steadytext_user; create role bob login in role steadytext_user;
         create role gone login in role steadytext_user; create role carol login in role steadytext_admin",
    );
    session.pause();
    for user in ["alice", "bob", "gone"] {
        cluster.session_as("postgres", user).generate(&format!("of {user}"), "max_tokens => 3");
    }
    session.run("alter role alice rename to alicia; drop role gone");
    session
}

/// Another cluster, whose roles have other numbers, and in which bob is missing.
fn elsewhere(options: Options) -> (Cluster, Session) {
    let cluster = options.start();
    let mut session = cluster.session("postgres");
    for i in 0..9 {
        session.run(&format!("create role other{i} login"));
    }
    session.run("create role carol login; create role alicia login");
    (cluster, session)
}

/// The requests belong to whom they should, and nobody else sees them.
fn belong_to_those_who_are_there(cluster: &Cluster, session: &mut Session) {
    session.run("grant steadytext_user to alicia; grant steadytext_admin to carol");
    let of = |user: &str| {
        cluster
            .session_as("postgres", user)
            .list::<String>("select prompt || ' ' || owner_role from steadytext_queue order by id")
    };
    assert_eq!(of("alicia"), ["of alice alicia"]);
    assert_eq!(of("carol"), ["of alice alicia", "of bob ", "of gone "]);
    for i in 0..9 {
        session.run(&format!("grant steadytext_user to other{i}"));
        assert_eq!(of(&format!("other{i}")), [""; 0]);
    }
    session
        .run("create role bob login in role steadytext_user; create role gone login in role steadytext_user");
    assert_eq!(of("bob"), [""; 0]);
    assert_eq!(of("gone"), [""; 0]);
}

#[test]
fn a_dump_names_owners_as_they_are_called_now_and_a_missing_one_stops_no_restore() {
    let cluster = Options::new().start();
    let mut session = renamed_and_dropped(&cluster);
    let file = cluster.make_directory("dump").join("plain.sql");
    dump(&cluster, &file);
    let text = std::fs::read_to_string(&file).expect("the dump can be read");
    assert!(text.contains("\talicia\t") && !text.contains("\talice\t"), "{text}");

    let (other, mut there) = elsewhere(Options::new());
    let output = other
        .client_program("psql")
        .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", "postgres", "-f"])
        .arg(&file)
        .output()
        .expect("psql starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert_eq!(said.matches("role \"bob\" does not exist").count(), 1, "{said}");
    belong_to_those_who_are_there(&other, &mut there);

    // Nobody's requests are answered like all others, in turn.
    there.run("select steadytext_daemon_start()");
    for id in there.list("select request_id from steadytext_queue") {
        there.answer(id);
    }
    // Here, too, where nothing was restored.
    session.run("select steadytext_daemon_start()");
    for id in session.list("select request_id from steadytext_queue") {
        session.answer(id);
    }
}

fn dump(cluster: &Cluster, file: &Path) {
    let output = cluster.client_program("pg_dump").args(["-d", "postgres", "-f"]).arg(file).output();
    assert!(output.expect("pg_dump starts").status.success());
}

#[test]
fn logical_replication_and_binary_copies_name_owners() {
    let cluster = Options::new().set("wal_level", "logical").start();
    let mut session = renamed_and_dropped(&cluster);
    session.run("create publication requests for table steadytext_queue");
    let file = cluster.make_directory("copy").join("binary");
    session
        .run(&format!("copy steadytext_queue (prompt, owner_role) to '{}' (format binary)", file.display()));

    let (other, mut there) = elsewhere(Options::new());
    there.create_extension();
    there.pause();
    there.run(&format!(
        "create table copied (prompt text, owner_role steadytext.role_id);
         copy copied from '{}' (format binary)",
        file.display()
    ));
    assert_eq!(
        there.list::<String>("select prompt || ' ' || owner_role from copied order by 1"),
        ["of alice alicia", "of bob ", "of gone "]
    );
    for binary in ["off", "on"] {
        there.run("truncate steadytext_queue");
        there.run(&format!(
            "create subscription requests connection 'host={} port=5432 user=postgres dbname=postgres'
             publication requests with (slot_name = requests_{binary}, binary = {binary})",
            cluster.directory().display()
        ));
        wait_until("the requests are there", || {
            there.one::<i64>("select count(*) from steadytext_queue") == 3
        });
        assert_eq!(
            there.list::<String>("select prompt || ' ' || owner_role from steadytext_queue order by id"),
            ["of alice alicia", "of bob ", "of gone "],
            "binary {binary}"
        );
        // Changes after the first copy go another way.
        session.run("update steadytext_queue set priority = 6 where prompt = 'of alice'");
        wait_until("the change is there", || {
            there.one::<i64>(
                "select count(*) from steadytext_queue where priority = 6 and owner_role = 'alicia'",
            ) == 1
        });
        session.run("update steadytext_queue set priority = 5");
        there.run("drop subscription requests");
    }
    there.run("truncate steadytext_queue");
    there.run(
        "insert into steadytext_queue (request_type, prompt, owner_role)
         values ('generate', 'of alice', 'alicia'), ('generate', 'of bob', 'bob'), ('generate', 'of gone', '')",
    );
    belong_to_those_who_are_there(&other, &mut there);
}

#[test]
fn a_new_name_changes_nothing_for_a_running_request_and_gives_nothing_to_who_bears_the_old_one() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    session.run("create role alice login in role steadytext_user");
    slow_model(&cluster, &mut session);
    let mut alicia = cluster.session_as("postgres", "alice");
    let id = alicia.generate("takes its time", endless_text());
    alicia.wait_for_tokens(id);
    session.run("alter role alice rename to alicia; create role alice login in role steadytext_user");
    let mut alice = cluster.session_as("postgres", "alice");
    assert_eq!(alice.one::<i64>("select count(*) from steadytext_activity"), 0);
    assert!(!alice.cancel(id));
    assert_eq!(alicia.list::<String>("select owner_role::text from steadytext_activity"), ["alicia"]);
    assert_eq!(alicia.request(id).status, "processing");
    assert!(alicia.cancel(id));
    assert_eq!(alicia.request(id).status, "cancelled");
}
