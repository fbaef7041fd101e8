//! Searches in what a vectorizer keeps while the table changes.

use steadytext_test_server::{Cluster, Session, wait_until};

/// A table of two columns in its key with a vectorizer whose vectors are there.
fn shelves() -> (Cluster, Session) {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    session.run(
        "create table book (shelf text, place integer, title text, primary key (shelf, place));
         insert into book select 'a', i, 'volume ' || i from generate_series(1, 50) as i;
         select steadytext_create_vectorizer('book', '{title}', 'books')",
    );
    wait_until("all have vectors", || session.one("select count(*) = 50 from book_title_embedding"));
    (cluster, session)
}

/// The title of the row that is nearest to a text, as it is now.
fn nearest(session: &mut Session, text: &str) -> String {
    session.one(&format!(
        "select chunk from book_title_embedding order by embedding <=> steadytext_embed('{text}', mode => 'query') limit 1"
    ))
}

#[test]
fn a_search_finds_what_the_table_has_now() {
    let (_cluster, mut session) = shelves();
    let found = "select coalesce((select \"row\" ->> 'title' from steadytext_search('books', 'a new edition', 1)), '')";
    let expected = nearest(&mut session, "a new edition");
    assert_eq!(session.one::<String>(found), expected);
    session.run("update book set title = 'a new edition' where place = 7; insert into book values ('b', 1, 'a new one')");
    let is_there = "select count(*) = 51 and bool_or(chunk = 'a new edition') from book_title_embedding";
    wait_until("the change has its vector", || session.one(is_there));
    let expected = nearest(&mut session, "a new edition");
    assert_eq!(session.one::<String>(found), expected);
    // A deleted row is not found, whether its vector is still there or not.
    session.run("select steadytext_pause_vectorizer('books'); delete from book where place > 1");
    let places = "select ('row ' || (key ->> 'shelf') || (key ->> 'place')) from steadytext_search('books', 'x', 50) order by 1";
    let left: Vec<String> = session.list(places);
    assert!(left.contains(&"row a1".to_owned()) && left.iter().all(|row| row.ends_with('1')), "{left:?}");
}

#[test]
fn an_index_on_words_is_found_again_after_a_restart_and_a_new_name() {
    let (mut cluster, mut session) = shelves();
    session.run("select steadytext_create_text_index('books', 'simple'); alter index book_title_embedding_to_tsvector_idx rename to words");
    drop(session);
    cluster.restart();
    let mut session = cluster.session("postgres");
    assert_eq!(session.one::<String>("select steadytext_create_text_index('books')"), "public.words");
    let first = "select chunk from steadytext_hybrid_search('books', 'volume 17', 1, alpha => 0)";
    assert_eq!(session.one::<String>(first), "volume 17");
}

#[test]
fn a_search_before_there_are_vectors_says_so() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    session.run(
        "create table book (id integer primary key, title text);
         select steadytext_create_vectorizer('book', '{title}', 'books');
         select steadytext_pause_vectorizer('books');
         insert into book values (1, 'a volume')",
    );
    for search in ["steadytext_search('books', 'x')", "steadytext_hybrid_search('books', 'x')"] {
        session.notices();
        assert_eq!(session.one::<i64>(&format!("select count(*) from {search}")), 0);
        let notices = session.notices();
        let said = notices.iter().find(|notice| notice.message().contains("\"books\" has no vectors yet"));
        let hint = said.and_then(|notice| notice.hint());
        assert!(hint.is_some_and(|hint| hint.contains("steadytext_vectorizer_status")), "{notices:?}");
        // A row that a filter excludes is not missing.
        session.one::<i64>(&format!(
            "select count(*) from {}",
            search.replace("'x')", "'x', filter => 'false')")
        ));
        assert!(session.notices().is_empty());
    }
    session.run("select steadytext_resume_vectorizer('books')");
    wait_until("it has its vector", || session.one("select count(*) = 1 from book_title_embedding"));
    session.notices();
    assert_eq!(session.one::<i64>("select count(*) from steadytext_search('books', 'x')"), 1);
    assert!(session.notices().is_empty());
}
