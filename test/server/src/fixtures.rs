//! Fixtures: clusters in the states from which tests of several subjects begin.

use crate::cluster::{Cluster, Options};
use crate::models::slow_model;
use crate::session::Session;

/// A cluster with the extension in database `postgres`, and a session there.
#[track_caller]
pub fn with_session() -> (Cluster, Session) {
    let cluster = Cluster::with_extension();
    let session = cluster.session("postgres");
    (cluster, session)
}

/// A cluster with an audit trail and the slow model.
#[track_caller]
pub fn audited_with_slow_model() -> (Cluster, Session) {
    let (cluster, mut session) = with_session();
    session.audit();
    slow_model(&cluster, &mut session);
    (cluster, session)
}

/// A cluster whose settings leave the choice of each model to the databases and the directory of the models.
#[track_caller]
pub fn with_automatic_models(options: Options) -> (Cluster, Session) {
    let cluster = options.automatic_models().start();
    let mut session = cluster.session("postgres");
    session.create_extension();
    (cluster, session)
}

/// A cluster whose worker looks around once in an hour, and has nothing to do until then.
#[track_caller]
pub fn sleepy() -> (Cluster, Session) {
    let (cluster, mut session) = with_session();
    session.run("select steadytext_config_set('worker_poll_interval', '3600')");
    // The first request also sees to it that the model is loaded.
    let id = session.generate("to begin with", "max_tokens => 3");
    session.answer(id);
    (cluster, session)
}
