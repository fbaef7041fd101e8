//! Privileges of each role: users among each other, and users against the worker, which starts as superuser.

use steadytext_test_server::{Cluster, Session, endless_text, slow_model, wait_until};
use uuid::Uuid;

/// Alice and bob may use pg_steadytext, carol administers it, mallory may do nothing.
fn people() -> (Cluster, Session) {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    session.run(
        "create role alice login in role steadytext_user; create role bob login in role steadytext_user;
         create role carol login in role steadytext_admin; create role mallory login",
    );
    slow_model(&cluster, &mut session);
    (cluster, session)
}

#[test]
fn a_user_neither_sees_nor_touches_the_requests_of_another() {
    let (cluster, mut session) = people();
    let mut alice = cluster.session_as("postgres", "alice");
    let mut bob = cluster.session_as("postgres", "bob");
    let secret = alice.generate("alice's secret", "max_tokens => 4");
    let answer = alice.answer(secret);
    let running = alice.generate("alice's long secret", endless_text());
    alice.wait_for_tokens(running);

    for id in [secret, running] {
        assert_eq!(bob.find(id), None);
        for call in
            ["steadytext_check_async", "steadytext_get_async_result", "steadytext_get_async_embedding"]
        {
            let error = bob.error(&format!("select * from {call}('{id}')"));
            assert_eq!(error.message(), format!("Request ID {id} not found"), "{call}");
        }
        let statuses = bob.list::<Option<String>>(&format!(
            "select status from steadytext_check_async_batch(array['{id}'::uuid])"
        ));
        assert!(statuses.iter().all(Option::is_none), "{statuses:?}");
        if let Ok(row) = bob.query_one("select steadytext_cancel_async($1)", &[&id]) {
            assert!(!row.get::<_, bool>(0));
        }
        assert_eq!(
            bob.execute("update steadytext_queue set status = 'pending' where request_id = $1", &[&id])
                .unwrap_or(0),
            0
        );
    }
    assert_eq!(bob.one::<i64>("select count(*) from steadytext_activity"), 0);
    assert_eq!(bob.one::<i64>("select count(*) from steadytext.activity()"), 0);
    assert_eq!(alice.list::<Uuid>("select request_id from steadytext_activity"), [running]);
    assert_eq!(alice.request(running).status, "processing");
    assert_eq!(alice.request(secret).answer, Some(answer));
    // The superuser sees everything, and may cancel it.
    assert_eq!(session.list::<Uuid>("select request_id from steadytext_activity"), [running]);
    assert!(alice.one::<bool>(&format!("select steadytext_cancel_async('{running}')")));
}

#[test]
fn an_admin_may_cancel_the_requests_of_others() {
    let (cluster, _session) = people();
    let mut alice = cluster.session_as("postgres", "alice");
    let mut carol = cluster.session_as("postgres", "carol");
    let running = alice.generate("without end", endless_text());
    alice.wait_for_tokens(running);
    assert!(carol.one::<bool>(&format!("select steadytext_cancel_async('{running}')")));
    assert_eq!(alice.request(running).status, "cancelled");
}

#[test]
fn somebody_who_was_given_nothing_can_do_nothing() {
    let (cluster, mut session) = people();
    let id = session.generate("not for mallory", "max_tokens => 3");
    let mut mallory = cluster.session_as("postgres", "mallory");
    for sql in [
        "select steadytext_generate_async('x')".to_owned(),
        "select st_embed_async('x')".to_owned(),
        format!("select * from steadytext_check_async('{id}')"),
        format!("select steadytext_get_async_result('{id}', 1)"),
        format!("select steadytext_cancel_async('{id}')"),
        "select steadytext_daemon_stop()".to_owned(),
        "select * from steadytext_queue".to_owned(),
        "select * from steadytext_activity".to_owned(),
        "insert into steadytext_queue (request_type, prompt) values ('generate', 'x')".to_owned(),
        "select * from steadytext_models".to_owned(),
        "select steadytext.new_request_id()".to_owned(),
    ] {
        assert_eq!(mallory.error(&sql).code().code(), "42501", "{sql}");
    }
}

#[test]
fn a_user_cannot_write_what_belongs_to_the_worker_or_to_admins() {
    let (cluster, _session) = people();
    let mut alice = cluster.session_as("postgres", "alice");
    let id = alice.generate("mine", "max_tokens => 3");
    alice.answer(id);
    for sql in [
        "insert into steadytext_queue (request_type, prompt, owner_role) values ('generate', 'x', 'bob')",
        "insert into steadytext_queue (request_type, prompt, status) values ('generate', 'x', 'completed')",
        "update steadytext_queue set result = 'forged'",
        "update steadytext_queue set owner_role = 'bob'",
        "update steadytext_queue set worker = 'x', attempt = 0",
        "delete from steadytext_queue",
        "truncate steadytext_queue",
        "insert into steadytext_models (name, task, file) values ('x', 'generate', '/etc/passwd')",
        "update steadytext_config set value = '1'",
        "select steadytext_config_set('max_tokens_limit', '100000')",
        "select steadytext_daemon_stop()",
        "select * from steadytext.claim_requests('me', 10, 60, null, false)",
        "select * from steadytext.complete_requests('me', '{1}', '{1}', '{x}', '{}', '{0}')",
        "create trigger mine before update on steadytext_queue for each row execute function suppress_redundant_updates_trigger()",
        "create policy mine on steadytext_queue using (true)",
        "alter table steadytext_queue disable row level security",
    ] {
        assert_eq!(alice.error(sql).code().code(), "42501", "{sql}");
    }
    // A completed request cannot be made pending: documented for failed ones only.
    alice.execute("update steadytext_queue set status = 'pending' where request_id = $1", &[&id]).ok();
    assert_eq!(alice.request(id).status, "completed");
    for status in ["completed", "processing", "cancelled"] {
        alice.execute("update steadytext_queue set status = $1", &[&status]).ok();
    }
    assert_eq!(alice.request(id).status, "completed");
}

#[test]
fn row_security_cannot_be_read_around_with_a_leaky_function() {
    let (cluster, mut session) = people();
    let id = session.generate("the superuser's secret", "max_tokens => 3");
    session.answer(id);
    session.run("grant create on schema public to alice");
    let mut alice = cluster.session_as("postgres", "alice");
    alice.run(
        "create function leak(text) returns boolean language plpgsql cost 0.0001 as
         $$ begin raise notice 'leaked %', $1; return true; end $$",
    );
    alice.notices();
    assert_eq!(alice.one::<i64>("select count(*) from steadytext_queue where leak(prompt)"), 0);
    assert!(alice.notices().is_empty());
}

#[test]
fn a_member_of_pg_monitor_watches_without_reading() {
    let (cluster, mut session) = people();
    session.run("create role watcher login in role pg_monitor");
    let mut alice = cluster.session_as("postgres", "alice");
    let running = alice.generate("alice's secret", endless_text());
    alice.generate("alice's other secret", "priority => 1");
    alice.wait_for_tokens(running);
    wait_until("there is text", || {
        alice.one::<i64>("select count(*) from steadytext_activity where partial_text <> ''") == 1
    });
    let mut watcher = cluster.session_as("postgres", "watcher");
    let seen = watcher
        .query_one("select request_id, owner_role::text, request_type, generated_tokens > 0, partial_text from steadytext_activity", &[])
        .expect("the view can be read");
    assert_eq!(
        (seen.get(0), seen.get(1), seen.get(2), seen.get(3), seen.get(4)),
        (running, "alice", "generate", true, None::<String>)
    );
    assert_eq!(watcher.one::<i64>("select sum(requests)::bigint from steadytext_queue_counts"), 2);
    assert_eq!(watcher.one::<String>("select state from steadytext.worker_state()"), "running");
    watcher.run("select * from steadytext_daemon_health");
    for sql in [
        "select * from steadytext_queue".to_owned(),
        "select * from steadytext_cache_with_frecency".to_owned(),
        "select * from steadytext_models".to_owned(),
        format!("select * from steadytext_check_async('{running}')"),
        format!("select steadytext_cancel_async('{running}')"),
        "select steadytext_generate_async('x')".to_owned(),
    ] {
        assert_eq!(watcher.error(&sql).code().code(), "42501", "{sql}");
    }
}

#[test]
fn an_administrator_dumps_the_tables_with_their_sequences() {
    let (cluster, mut session) = people();
    let id = session.generate("dumped", "max_tokens => 2");
    session.answer(id);
    let output = cluster
        .client_program("pg_dump")
        .env("PGUSER", "carol")
        .args(["--enable-row-security", "--data-only", "-d", "postgres"])
        .output()
        .expect("pg_dump runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for part in
        ["dumped", "setval('public.steadytext_queue_id_seq'", "setval('public.steadytext_audit_log_id_seq'"]
    {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}

/// Functions and operators by which a user tries to be called by somebody stronger. Each notes who calls.
const TRAPS: &str = "
create table caught (who text, where_ text);
grant insert on caught to public;
create function note(where_ text) returns void language plpgsql as $$
begin
    insert into public.caught values (current_user, where_);
end $$;
create function now() returns timestamptz language plpgsql as
    $$ begin perform public.note('now'); return pg_catalog.now(); end $$;
create function clock_timestamp() returns timestamptz language plpgsql as
    $$ begin perform public.note('clock_timestamp'); return pg_catalog.clock_timestamp(); end $$;
create function jsonb_typeof(jsonb) returns text language plpgsql as
    $$ begin perform public.note('jsonb_typeof'); return pg_catalog.jsonb_typeof($1); end $$;
create function jsonb_strip_nulls(jsonb) returns jsonb language plpgsql as
    $$ begin perform public.note('jsonb_strip_nulls'); return pg_catalog.jsonb_strip_nulls($1); end $$;
create function length(text) returns integer language plpgsql as
    $$ begin perform public.note('length'); return pg_catalog.length($1); end $$;
create function text_equal(text, text) returns boolean language plpgsql as
    $$ begin perform public.note('='); return $1 operator(pg_catalog.=) $2; end $$;
create operator = (leftarg = text, rightarg = text, function = text_equal);
create function uuid_equal(uuid, uuid) returns boolean language plpgsql as
    $$ begin perform public.note('uuid ='); return $1 operator(pg_catalog.=) $2; end $$;
create operator = (leftarg = uuid, rightarg = uuid, function = uuid_equal);
create function get(jsonb, text) returns text language plpgsql as
    $$ begin perform public.note('->>'); return $1 operator(pg_catalog.->>) $2; end $$;
create operator ->> (leftarg = jsonb, rightarg = text, function = get);
";

#[test]
fn objects_planted_in_the_search_path_never_run_as_somebody_else() {
    let (cluster, mut session) = people();
    session.run("grant create on schema public to alice; alter database postgres set search_path = public, pg_catalog");
    let mut alice = cluster.session_as("postgres", "alice");
    alice.run(
        "create temporary table steadytext_queue (x int); create temporary table steadytext_config (x int)",
    );
    alice.run(TRAPS);
    // A new worker, which starts with the database's search_path. This session was there before and has its
    // own.
    session.run("set search_path = pg_catalog, public");
    let worker = session.worker_pid();
    session.one::<bool>(&format!("select pg_terminate_backend({worker}, 10000)"));
    wait_until("another worker", || session.worker_of("postgres").is_some_and(|pid| pid != worker));
    alice.run("set search_path = public, pg_catalog, pg_temp");
    let id: Uuid =
        alice.one("select public.steadytext_generate_async('trapped', 3, eos_string => 'x', seed => 7)");
    let embed: Uuid = alice.one("select public.steadytext_embed_async('trapped')");
    alice.one::<String>(&format!("select public.steadytext_get_async_result('{id}', 50)"));
    alice.one::<String>(&format!("select public.steadytext_get_async_result('{embed}', 50)"));
    alice.run(&format!(
        "select * from public.steadytext_check_async('{id}'); select public.steadytext_cancel_async('{id}');
         select * from public.steadytext_check_async_batch(array['{id}'::uuid]);
         select public.steadytext_embed_batch_async(array['a', 'b']);
         select * from public.steadytext_activity; select public.steadytext_config_get('max_retries');
         select * from public.steadytext_daemon_status()"
    ));
    let mut carol = cluster.session_as("postgres", "carol");
    carol.run(
        "set search_path = public, pg_catalog, pg_temp;
               select public.steadytext_config_set('max_retries', '4');
               select public.steadytext_daemon_stop(); select public.steadytext_daemon_start()",
    );
    session.run("set search_path = public, pg_catalog");
    let id: Uuid = session.one("select public.steadytext_generate_async('by the superuser', 3)");
    session.one::<String>(&format!("select public.steadytext_get_async_result('{id}', 50)"));
    session.run(&format!(
        "select * from public.steadytext_check_async('{id}'); select public.steadytext_daemon_status()"
    ));
    session.run("set search_path = pg_catalog, public");
    let caught: Vec<String> = session.list(
        "select distinct format('%s in %s', who, where_) from public.caught
         where (who operator(pg_catalog.<>) 'alice'::text) order by 1",
    );
    assert!(caught.is_empty(), "{caught:?}");
}

#[test]
fn a_trigger_of_the_tables_owner_runs_as_that_owner_and_cannot_become_more() {
    let (cluster, mut session) = people();
    // A session that has never used the extension, with a snapshot of the time before olga owns anything.
    let mut alice = cluster.session_as("postgres", "alice");
    alice.run("begin isolation level repeatable read; select 1");
    session.run(
        "create role olga login; create schema olga authorization olga;
         do $$ declare object text; begin
             for object in
                 select format('%s %s', case when o.classid = 'pg_class'::regclass then 'table' else 'function' end,
                               pg_describe_object(o.classid, o.objid, 0))
                 from pg_depend o
                 where o.refclassid = 'pg_extension'::regclass and o.deptype = 'e'
                   and o.refobjid = (select oid from pg_extension where extname = 'pg_steadytext')
                   and (o.classid = 'pg_proc'::regclass
                        or o.objid in (select oid from pg_class where relkind = 'r'))
             loop
                 object := regexp_replace(object, '^(table|function) (table|function) ', '\\1 ');
                 execute format('alter %s owner to olga', object);
             end loop;
         end $$;
         grant usage, create on schema public, steadytext to olga",
    );
    let mut olga = cluster.session_as("postgres", "olga");
    olga.run(
        "create table olga.seen (who text, escaped boolean);
         create function olga.spy() returns trigger language plpgsql as $$
         declare escaped boolean := false;
         begin
             begin
                 execute 'reset role';
                 escaped := current_user <> 'olga';
             exception when others then null;
             end;
             begin
                 execute 'set session authorization postgres';
                 escaped := true;
             exception when others then null;
             end;
             begin
                 perform pg_ls_dir('/');
                 escaped := true;
             exception when insufficient_privilege then null;
             end;
             insert into olga.seen values (current_user, escaped);
             return new;
         end $$;
         create trigger spy before update on public.steadytext_queue for each row execute function olga.spy()",
    );
    let id = session.generate("watched", "max_tokens => 3");
    session.wait_for(id, "completed");
    session.pause();
    let id = alice.generate("enqueued in the old snapshot", "max_tokens => 3");
    alice.run("commit");
    assert!(alice.cancel(id));
    let seen: Vec<String> = session.list("select distinct format('%s %s', who, escaped) from olga.seen");
    assert_eq!(seen, ["olga f"]);
}

#[test]
fn prompts_do_not_reach_the_server_log() {
    let (cluster, mut session) = people();
    let mut alice = cluster.session_as("postgres", "alice");
    session.run(
        "insert into steadytext_models (name, task, file) values ('missing', 'generate', 'missing.gguf')",
    );
    cluster.configure("log_min_error_statement", "panic");
    cluster.reload();
    wait_until("the setting is read", || alice.one::<String>("show log_min_error_statement") == "panic");
    for sql in [
        "select steadytext_generate_async('sesame-4711', 0)",
        "insert into steadytext_queue (request_type, prompt, priority) values ('generate', 'sesame-4711', 99)",
        "insert into steadytext_queue (request_type, prompt) values ('nonsense', 'sesame-4711')",
        "insert into steadytext_queue (request_type, prompt, params) values ('generate', 'sesame-4711', '{\"max_tokens\": \"x\"}')",
        "insert into steadytext_queue (request_type, prompt, max_retries) values ('generate', 'sesame-4711', -1)",
    ] {
        let error = alice.error(sql);
        assert!(!format!("{error:?}").contains("sesame-4711"), "{error:?}");
    }
    let id = alice.generate("sesame-4711", "model => 'missing'");
    alice.wait_for(id, "failed");
    let id = alice.generate(&"sesame-4711 ".repeat(20_000), "max_tokens => 4");
    alice.wait_for(id, "failed");
    assert!(!cluster.log().contains("sesame-4711"));
}
