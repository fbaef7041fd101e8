//! Judgements: how many rows a second, and how often a small model is right, beside the choice that a prompt
//! of one's own asks for.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use steadytext_bench::Report;
use steadytext_test_server::{Cluster, Session, copied_model};

/// Made-up tickets, each behind its category.
const TICKETS: &str = include_str!("../../data/tickets.tsv");
/// Rows whose time is taken.
const ROWS: usize = 60;
const ROUNDS: usize = 3;
const WAIT: Duration = Duration::from_millis(5);
/// A prompt for a classification without a function for it.
const NAIVE: &str = "'Classify this text into one of: ' || (select string_agg(c, ', ') from unnest(categories) as c) || E'.\\n\\n' || body";

pub(crate) fn measure(cluster: &Cluster, model: &Path, encoder: &Path, report: &mut Report) {
    let mut session = cluster.session("postgres");
    copied_model(cluster, &mut session, "measured", model);
    copied_encoder(cluster, &mut session, encoder);
    session.run("create table ticket (id int primary key, category text not null, body text not null)");
    for (id, line) in (0..).zip(TICKETS.lines()) {
        let (category, body) = line.split_once('\t').expect("a category and a text");
        let values: [&(dyn postgres::types::ToSql + Sync); 3] = [&id, &category, &body];
        session.execute("insert into ticket values ($1, $2, $3)", &values).expect("a ticket");
    }
    session.run(
        "create table few as select array_agg(distinct category) as categories from ticket;
         create table many as select categories || array(select 'topic number ' || i from generate_series(1, 15) as i) as categories from few;",
    );
    speed(&mut session, report);
    accuracy(&mut session, report);
}

/// Rows a second, medians of rounds that take turns.
fn speed(session: &mut Session, report: &mut Report) {
    let rows = |call: &str, of: &str| {
        format!(
            "select count({call}) from (select id, category, 'ROUND: ' || body as body from ticket order by id limit {ROWS}) as t, {of}"
        )
    };
    let array = |call: &str, of: &str| {
        format!(
            "select count(a) from unnest((select {call} from (select id, category, 'ROUND: ' || body as body from ticket order by id limit {ROWS}) as t, {of} group by categories)) as a"
        )
    };
    let choice = format!("steadytext_generate_choice({NAIVE}, categories, false, model => 'measured')");
    let classify = "steadytext_classify(body, categories, use_cache => false, model => 'measured')";
    let all = classify.replace("body", "array_agg(body)");
    let is_so = "steadytext_if('Is the customer angry? ' || body, false, model => 'measured')";
    let all_so =
        is_so.replace("'Is the customer angry? ' || body", "array_agg('Is the customer angry? ' || body)");
    let extract = "steadytext_extract(body, array['product', 'count: integer', 'is_angry: boolean'], false, model => 'measured')";
    let all_extracts = extract.replace("body", "array_agg(body)");
    let statements = [
        ("choice_5", rows(&choice, "few")),
        ("classify_5", rows(classify, "few")),
        ("classify_array_5", array(&all, "few")),
        ("choice_20", rows(&choice, "many")),
        ("classify_20", rows(classify, "many")),
        ("classify_array_20", array(&all, "many")),
        ("if", rows(is_so, "few")),
        ("if_array", array(&all_so, "few")),
        ("extract", rows(extract, "few")),
        ("extract_array", array(&all_extracts, "few")),
    ];
    let queued = [
        (
            "choice_queue_5",
            format!("steadytext_generate_choice_async({NAIVE}, categories, false, model => 'measured')"),
        ),
        (
            "classify_queue_5",
            "steadytext_classify_async(body, categories, use_cache => false, model => 'measured')".to_owned(),
        ),
        (
            "extract_queue",
            "steadytext_extract_async(body, array['product', 'count: integer', 'is_angry: boolean'], false, model => 'measured')"
                .to_owned(),
        ),
    ];
    let mut rates: Vec<(String, Vec<f64>)> = Vec::new();
    let mut add = |name: &str, rate: f64| match rates.iter_mut().find(|(known, _)| known == name) {
        Some((_, rates)) => rates.push(rate),
        None => rates.push((name.to_owned(), vec![rate])),
    };
    // The first run loads the models.
    session.run(&rows(&choice, "few"));
    // Other texts in each round, so that nothing of them is known from before.
    for round in 0..ROUNDS {
        let of_round = |statement: &str| statement.replace("ROUND", &format!("Ticket in box {round}"));
        for (name, statement) in &statements {
            let since = Instant::now();
            session.run(&of_round(statement));
            add(name, ROWS as f64 / since.elapsed().as_secs_f64());
        }
        for (name, call) in &queued {
            let since = Instant::now();
            session.run(&of_round(&rows(call, "few")));
            while session
                .one::<i64>("select count(*) from steadytext_queue where status in ('pending', 'processing')")
                > 0
            {
                std::thread::sleep(WAIT);
            }
            add(name, ROWS as f64 / since.elapsed().as_secs_f64());
        }
    }
    let mut median = |name: &str| {
        let found = rates.iter_mut().find(|(known, _)| known == name).expect("a rate");
        found.1.sort_by(f64::total_cmp);
        found.1[ROUNDS / 2]
    };
    for (name, _) in &statements {
        report.add(&format!("verbs_{name}_per_s"), median(name), "1/s");
    }
    for (name, _) in &queued {
        report.add(&format!("verbs_{name}_per_s"), median(name), "1/s");
    }
    report.add("verbs_classify_array_ratio", median("classify_array_5") / median("choice_5"), "");
    report.add("verbs_classify_queue_ratio", median("classify_queue_5") / median("choice_queue_5"), "");
}

/// The share of all tickets whose category is found.
fn accuracy(session: &mut Session, report: &mut Report) {
    let share =
        |of: &str| format!("select count(*) from ({of}) as t (category, found) where category = found");
    let array = |call: &str| {
        share(&format!(
            "select unnest(array_agg(category order by id)), unnest((select {call} from ticket as t)) from ticket, few group by categories"
        ))
    };
    let choice = format!("steadytext_generate_choice({NAIVE}, categories, model => 'measured')");
    for (name, statement) in [
        ("naive", share(&format!("select category, {choice} from ticket, few"))),
        (
            "classify",
            array("steadytext_classify(array_agg(t.body order by t.id), categories, model => 'measured')"),
        ),
        (
            "classify_embed",
            array(
                "steadytext_classify(array_agg(t.body order by t.id), categories, method => 'embed', model => 'measured-encoder')",
            ),
        ),
    ] {
        let found = session.one::<i64>(&statement) as f64;
        report.add(&format!("accuracy_{name}"), found / TICKETS.lines().count() as f64, "");
    }
}

/// Puts the folder of an encoder into the cluster's model directory.
fn copied_encoder(cluster: &Cluster, session: &mut Session, from: &Path) {
    copy_folder(from, &cluster.model_directory().join("measured-encoder"));
    session.run("insert into steadytext_models (name, task, file) values ('measured-encoder', 'embed', 'measured-encoder')");
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).expect("the folder of an encoder").flatten() {
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy_folder(&path, &to);
        } else {
            fs::copy(&path, &to).expect("a file");
        }
    }
}
