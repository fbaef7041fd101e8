//! Files of models that are replaced while requests are computed: an answer comes from one content.

use std::fs;
use std::path::Path;

use steadytext_test_models::Bert;
use steadytext_test_server::{Cluster, wait_until};

/// Puts an encoder that takes its time in the place of another one, in one step.
fn replace(directory: &Path, seed: u64) {
    let spec = Bert { seed, layers: 2, width: 256, feed_forward: 1024, ..Bert::default() };
    let made = directory.join(".made");
    spec.write(&made).expect("our own file");
    fs::rename(made, directory.join("m.gguf")).expect("our own files");
}

#[test]
fn an_answer_of_many_vectors_comes_from_one_content_though_the_file_is_replaced_meanwhile() {
    const TEXTS: &str = "array(select i || repeat(' word', 40) from generate_series(1, 64) as i order by i)";
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    let directory = cluster.model_directory();
    replace(&directory, 1);
    let call = format!("select steadytext_embed_batch({TEXTS}, use_cache => false, model => 'm')::text");
    let row = format!(
        "insert into steadytext_queue (request_type, prompts, params) values ('batch_embed', {TEXTS}, '{{\"model\": \"m\"}}') returning request_id"
    );
    // Loads it.
    session.run("select steadytext_embed('words', model => 'm')");
    let (mut other, called) = (cluster.session("postgres"), call.clone());
    let pid = other.backend_pid();
    let answering = std::thread::spawn(move || other.one::<String>(&called));
    // It waits for the engine, which has the first of its texts.
    let waits =
        format!("select state = 'active' and wait_event is not null from pg_stat_activity where pid = {pid}");
    wait_until("the call has begun", || session.one(&waits));
    replace(&directory, 2);
    let answer = answering.join().expect("an answer");
    assert!(answer == session.one::<String>(&call), "a call is answered by two models");

    let id: uuid::Uuid = session.one(&row);
    wait_until("the request has begun", || session.request(id).status == "processing");
    replace(&directory, 3);
    session.wait_for_end(id);
    let answer: String =
        session.one(&format!("select steadytext_get_async_result('{id}', 0)::vector[]::text"));
    assert!(answer == session.one::<String>(&call), "the queue answers by two models");
}
