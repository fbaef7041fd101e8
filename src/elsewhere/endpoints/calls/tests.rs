use std::sync::Mutex;
use std::sync::atomic::AtomicU64;

use super::*;
use crate::endpoints::settings;

/// An endpoint that nobody calls.
fn endpoint() -> Endpoint {
    let file = tempfile::NamedTempFile::new().expect("a file of our own");
    std::fs::write(&file, "[[model]]\nname = \"m\"\napi = \"chat\"\nbase_url = \"http://127.0.0.1:1/v1\"\n")
        .expect("our own file");
    let settings = settings::read(file.path()).expect("settings").remove(0);
    Endpoint {
        types: Vec::new(),
        settings,
        state: Mutex::new(EndpointState { next_rest: RESTS.0, ..EndpointState::default() }),
        changed: Condvar::new(),
        calls: AtomicU64::new(0),
        failures: AtomicU64::new(0),
    }
}

#[test]
fn an_endpoint_that_asks_for_no_pause_is_left_alone_for_longer_and_longer() {
    let endpoint = endpoint();
    // Its rest is over each time.
    let rest = |asked| {
        let rest = endpoint.rest("busy", asked);
        endpoint.state().rest_until = None;
        rest
    };
    let rests: Vec<Duration> = (0..10).map(|_| rest(Some(Duration::ZERO))).collect();
    // Each is of twice the length, and between half of that and all of it.
    let mut most = RESTS.0;
    for rest in &rests {
        assert!((most / 2..=most).contains(rest), "{rests:?}");
        most = (most * 2).min(RESTS.1);
    }
    assert_eq!(most, RESTS.1, "{rests:?}");
    // One that asks for more gets it, within bounds; and none is too short.
    assert_eq!(rest(Some(RESTS.1 * 2)), RESTS.1 * 2);
    assert_eq!(rest(Some(LONGEST_REST * 9)), LONGEST_REST);
    assert!(rest(None) >= RESTS.1 / 2);
}

#[test]
fn calls_that_are_turned_away_together_count_once() {
    let endpoint = endpoint();
    let first = endpoint.rest("busy", Some(Duration::ZERO));
    for _ in 0..10 {
        assert!(endpoint.rest("busy", Some(Duration::ZERO)) <= first);
    }
    assert_eq!(endpoint.state().next_rest, RESTS.0 * 2);
    assert!(endpoint.is_resting());
}
