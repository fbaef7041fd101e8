//! The defaults of SQL's arguments are those of the request model.

use std::collections::HashSet;

use steadytext_test_server::Cluster;

#[path = "../../../src/request/defaults.rs"]
mod request_defaults;

use request_defaults::{
    EOS_STRING, MAX_FACTS, MAX_TOKENS, MAX_WORDS, METHOD, PRIORITY, RERANK_TASK, RETURN_SCORES, SEED,
    SIMILARITY_THRESHOLD, TEMPERATURE, THRESHOLD, TRUNCATE, USE_CACHE,
};

/// Arguments with defaults that are no part of a request: those of searches, waits, administration and
/// definitions. A new one is either here or compared with the request model.
const OTHERS: [&str; 36] = [
    "all_entries",
    "alpha",
    "batch_size",
    "chunk_overlap",
    "chunk_size",
    "delete_file",
    "distance",
    "drop_all",
    "enqueue_existing",
    "hybrid",
    "if_exists",
    "if_not_exists",
    "index",
    "k",
    "kept",
    "key_format",
    "metadata",
    "min_access_count",
    "min_age_hours",
    "mode",
    "on_error",
    "options",
    "params",
    "positions",
    "preview_count",
    "replace",
    "request_type",
    "rerank",
    "rrf_k",
    "strategy",
    "strict",
    "timeout_seconds",
    "unsafe_mode",
    "wait",
    "warmup_count",
    "task",
];

/// The default of an argument of this name, as a text; `None` where it is not one of the request model's.
fn expected(function: &str, argument: &str) -> Option<String> {
    Some(match argument {
        "seed" => SEED.to_string(),
        "temperature" => TEMPERATURE.to_string(),
        "eos_string" => EOS_STRING.to_owned(),
        "use_cache" => USE_CACHE.to_string(),
        // NULL: as before.
        "truncate" if function.contains("alter_vectorizer") => return None,
        "truncate" => TRUNCATE.to_string(),
        "return_scores" => RETURN_SCORES.to_string(),
        // Requests for whole tables have a lower priority than those that somebody waits for.
        "priority"
            if ["enqueue_query", "vectorizer", "enrichment"].iter().any(|part| function.contains(part)) =>
        {
            return None;
        }
        "priority" => PRIORITY.to_string(),
        "method" => METHOD.to_owned(),
        "threshold" => THRESHOLD.to_string(),
        "max_facts" => MAX_FACTS.to_string(),
        "max_words" => MAX_WORDS.to_string(),
        // The predecessor's short name has a default of its own.
        "similarity_threshold" if !function.starts_with("st_deduplicate_facts(") => {
            SIMILARITY_THRESHOLD.to_string()
        }
        "task" if function.contains("rerank") => RERANK_TASK.to_owned(),
        _ => return None,
    })
}

#[test]
fn arguments_of_sql_functions_default_to_what_the_request_model_takes() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    let rows = session
        .query(
            "select p.oid::regprocedure::text, argument.name, default_value.expression
               from pg_extension as e
               join pg_depend as d
                 on d.refclassid = 'pg_extension'::regclass and d.refobjid = e.oid and d.deptype = 'e'
                and d.classid = 'pg_proc'::regclass
               join pg_proc as p on p.oid = d.objid
               cross join unnest(p.proargnames) with ordinality as argument (name, position)
               cross join pg_get_function_arg_default(p.oid, argument.position::int) as default_value (expression)
              where e.extname = 'pg_steadytext' and default_value.expression is not null",
            &[],
        )
        .expect("the catalogs can be read");
    let mut seen = HashSet::new();
    for row in rows {
        let (function, argument, expression): (String, String, String) = (row.get(0), row.get(1), row.get(2));
        let value: Option<String> = session.one(&format!("select ({expression})::text"));
        let Some(expected) = expected(&function, &argument) else {
            // Arguments of the protocol's functions begin with p_.
            let is_known = OTHERS.contains(&argument.as_str()) || argument.starts_with("p_");
            let differs = ["truncate", "priority", "similarity_threshold"].contains(&argument.as_str());
            assert!(
                value.is_none() || is_known || differs,
                "{argument} of {function} is compared with nothing"
            );
            continue;
        };
        assert_eq!(value.as_deref(), Some(expected.as_str()), "{argument} of {function}");
        seen.insert(argument);
    }
    for argument in [
        "seed",
        "temperature",
        "eos_string",
        "use_cache",
        "truncate",
        "return_scores",
        "priority",
        "task",
        "method",
        "threshold",
        "max_facts",
        "max_words",
        "similarity_threshold",
    ] {
        assert!(seen.contains(argument), "no function has an argument {argument} with a default");
    }
}

#[test]
fn settings_default_to_what_the_request_model_takes() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    let setting = |session: &mut steadytext_test_server::Session, key: &str| -> String {
        session.one(&format!("select default_value::text from steadytext.config_keys() where key = '{key}'"))
    };
    assert_eq!(setting(&mut session, "default_seed"), SEED.to_string());
    assert_eq!(setting(&mut session, "default_max_tokens"), MAX_TOKENS.to_string());
    let queue = "select pg_get_expr(d.adbin, d.adrelid) from pg_attrdef as d
        join pg_attribute as a on a.attrelid = d.adrelid and a.attnum = d.adnum
        where a.attrelid = 'steadytext_queue'::regclass and a.attname = 'priority'";
    assert_eq!(session.one::<String>(queue), PRIORITY.to_string());
    assert_eq!(session.one::<i32>("select steadytext.priority(null)"), PRIORITY as i32);
}

#[test]
fn sql_leaves_defaults_out_of_params_as_the_request_model_does() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    let calls = [
        format!("generate_params(null, {USE_CACHE}, {SEED}, '{EOS_STRING}', null, null, {TEMPERATURE})"),
        format!("embed_params({USE_CACHE}, {SEED}, null, null, null, false, {TRUNCATE}, null)"),
        format!("rerank_params('{RERANK_TASK}', {RETURN_SCORES}, {SEED}, null, {TRUNCATE})"),
    ];
    for call in calls {
        assert_eq!(session.one::<String>(&format!("select steadytext.{call}::text")), "{}", "{call}");
    }
    // It makes its parameters by itself.
    let call = format!("steadytext_similarity_async('a', 'b', {USE_CACHE}, {SEED}, null, {PRIORITY})");
    let id: String = session.one(&format!("select {call}::text"));
    let params: String =
        session.one(&format!("select params::text from steadytext_queue where request_id = '{id}'"));
    assert_eq!(params, "{}", "{call}");
}
