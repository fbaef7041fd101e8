//! The hub's protocol over HTTP.
//!
//! The crate hf-hub says how repositories, revisions and their addresses are called. It downloads, too, but
//! neither goes on with what has arrived in a process that was killed, nor waits as a hub asks it to, nor can
//! be stopped; it follows redirects with the token in its hands, and checks no checksum. What is done here
//! beside it: redirects, one at a time; retries; ranges.
//!
//! Invariant: the token is shown to the address of the hub only, and never over a connection that others can
//! read.

use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use hf_hub::{Repo, RepoType};
use ureq::http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, ETAG, IF_RANGE, LOCATION, RANGE,
    RETRY_AFTER,
};
use ureq::http::{Response, StatusCode, Uri};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::address::{
    endpoint, host_and_port, host_of, is_near, is_private, is_same_origin, proxy, redirected,
};
use super::error::HubError;
use super::progress::Progress;
use super::reference::{Reference, encoded};
use super::settings::{Hub, Token};
use super::steady::Steady;

/// Bytes of a list of files.
const MAX_LISTING: u64 = 32 << 20;
const MAX_REDIRECTS: usize = 8;
/// The longest that is waited because a hub asks for it.
const LONGEST_WAIT: Duration = Duration::from_secs(600);
const NO_ADDRESS: &str = "an address that is none";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection to a hub.
pub(super) struct HubClient<'a> {
    hub: &'a Hub,
    endpoint: Uri,
    agent: Agent,
    progress: &'a Progress,
}

/// The failure of an attempt.
pub(super) enum AttemptFailure {
    /// The next attempt would fail in the same way.
    Forever(HubError),
    /// The next attempt may go better, and should not be made before so long.
    ThisTime(HubError, Option<Duration>),
}

impl From<HubError> for AttemptFailure {
    fn from(error: HubError) -> AttemptFailure {
        AttemptFailure::Forever(error)
    }
}

/// The answer to a request for a file.
pub(super) struct HubResponse {
    /// Where its bytes begin in the file.
    pub(super) begin: u64,
    /// Bytes of the whole file, if that is said.
    pub(super) size: Option<u64>,
    /// The SHA-256 of the file, in hexadecimal digits, if the hub says it.
    pub(super) sha256: Option<String>,
    /// The strong entity tag of its content at the host that it comes from.
    pub(super) etag: Option<String>,
    /// Its bytes.
    pub(super) body: Box<dyn Read>,
    /// The address that the bytes come from.
    pub(super) from: Uri,
}

/// The answer to a request for a part of a file.
pub(super) enum Answered {
    /// Bytes of it.
    With(HubResponse),
    /// The file has nothing behind the place that was asked for.
    NothingBehind,
}

impl<'a> HubClient<'a> {
    /// # Errors
    /// [`HubError::Setting`] for an address that is none.
    pub(super) fn new(hub: &'a Hub, progress: &'a Progress) -> Result<HubClient<'a>, HubError> {
        let endpoint = endpoint(&hub.endpoint)?;
        let tls = TlsConfig::builder().root_certs(root_certificates()).build();
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .tls_config(tls)
            .proxy(None)
            .user_agent(concat!("pg_steadytext/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(CONNECT_TIMEOUT))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(hub.silence))
            .timeout_per_read(Some(hub.silence))
            .timeout_per_write(Some(hub.silence));
        let agent = Agent::new_with_config(config.build());
        progress.interrupts(&agent);
        Ok(HubClient { hub, endpoint, agent, progress })
    }

    /// The host of the hub.
    pub(super) fn host(&self) -> String {
        host_of(&self.endpoint)
    }

    /// The hub's description of a repository, as JSON.
    ///
    /// # Errors
    /// [`HubError`].
    pub(super) fn listing(&self, reference: &Reference) -> Result<Vec<u8>, HubError> {
        let address = format!("{}/api/{}?blobs=true", self.base(), repo(reference).api_url());
        let what = format!("repository \"{}\"", reference.repository);
        self.trying(|| {
            let (response, from, _) = self.follow(&address, &what, None)?;
            let mut bytes = Vec::new();
            let body = Steady::new(response.into_body().into_reader(), self.hub.silence);
            body.take(MAX_LISTING + 1).read_to_end(&mut bytes).map_err(|error| self.cut(&from, &error))?;
            if bytes.len() as u64 > MAX_LISTING {
                let reason = "its list of files is too long".to_owned();
                return Err(HubError::Protocol { host: host_of(&from), reason }.into());
            }
            Ok(bytes)
        })
    }

    /// Asks for a file at a commit from a byte on. `etag` is that of the bytes before it, where it is known:
    /// another file is then sent from its beginning.
    ///
    /// # Errors
    /// [`AttemptFailure`].
    pub(super) fn file(
        &self,
        reference: &Reference,
        path: &str,
        begin: u64,
        etag: Option<&str>,
    ) -> Result<Answered, AttemptFailure> {
        let repo = repo(reference);
        let address =
            format!("{}/{}/resolve/{}/{}", self.base(), repo.url(), repo.url_revision(), encoded(path));
        let what = format!("file \"{path}\" of repository \"{}\"", reference.repository);
        let (response, from, linked) = self.follow(&address, &what, Some((begin, etag)))?;
        let headers = response.headers();
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let wrong = |reason: &str| HubError::Protocol { host: host_of(&from), reason: reason.to_owned() };
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(Answered::NothingBehind);
        }
        let (begin, size) = if response.status() == StatusCode::PARTIAL_CONTENT {
            let range = text(CONTENT_RANGE.as_str()).and_then(content_range);
            let (first, size) = range.ok_or_else(|| wrong("a part of a file without saying which"))?;
            if first != begin {
                return Err(wrong("another part of the file than was asked for").into());
            }
            (first, size)
        } else {
            (0, text(CONTENT_LENGTH.as_str()).and_then(|length| length.parse().ok()))
        };
        let etag = text(ETAG.as_str())
            .filter(|etag| !etag.starts_with("W/") && etag.len() <= 256)
            .map(str::to_owned);
        let (size, sha256) = (size.or(linked.size), linked.sha256);
        Ok(Answered::With(HubResponse {
            begin,
            size,
            sha256,
            etag,
            body: Box::new(Steady::new(response.into_body().into_reader(), self.hub.silence)),
            from,
        }))
    }

    /// Tries until something has worked, or nothing has so often that it will not.
    ///
    /// # Errors
    /// The last one.
    pub(super) fn trying<T>(
        &self,
        mut attempt: impl FnMut() -> Result<T, AttemptFailure>,
    ) -> Result<T, HubError> {
        let mut retry = Retry::new(self.hub);
        loop {
            match attempt() {
                Ok(value) => return Ok(value),
                Err(failed) => self.wait(&mut retry, failed)?,
            }
        }
    }

    /// Waits before the next attempt.
    ///
    /// # Errors
    /// The failure, if there is no next attempt; [`HubError::Cancelled`].
    pub(super) fn wait(&self, retry: &mut Retry, failed: AttemptFailure) -> Result<(), HubError> {
        // An attempt that was interrupted on purpose has failed for that reason only.
        self.progress.check()?;
        let (error, after) = match failed {
            AttemptFailure::Forever(error) => return Err(error),
            AttemptFailure::ThisTime(error, after) => (error, after),
        };
        let pause = retry.next().ok_or_else(|| error.clone())?;
        let pause = pause.max(after.unwrap_or_default());
        if pause > LONGEST_WAIT {
            return Err(error);
        }
        self.progress.pause(pause, &format!("{error}; trying again"))
    }

    fn base(&self) -> String {
        self.endpoint.to_string().trim_end_matches('/').to_owned()
    }

    /// Requests an address of the hub and follows redirects. Returns the response, the address that it came
    /// from in the end, and what the hub states about the file.
    fn follow(
        &self,
        address: &str,
        what: &str,
        range: Option<(u64, Option<&str>)>,
    ) -> Result<(Response<Body>, Uri, Linked), AttemptFailure> {
        let mut uri: Uri = address.parse().map_err(|_| self.protocol(NO_ADDRESS))?;
        let mut linked = Linked::default();
        for _ in 0..=MAX_REDIRECTS {
            self.progress.check()?;
            let response = self.send(&uri, range)?;
            if is_same_origin(&uri, &self.endpoint) {
                linked.read(&response);
            }
            let status = response.status();
            match status {
                StatusCode::OK | StatusCode::PARTIAL_CONTENT => return Ok((response, uri, linked)),
                StatusCode::RANGE_NOT_SATISFIABLE if range.is_some() => return Ok((response, uri, linked)),
                StatusCode::MOVED_PERMANENTLY
                | StatusCode::FOUND
                | StatusCode::SEE_OTHER
                | StatusCode::TEMPORARY_REDIRECT
                | StatusCode::PERMANENT_REDIRECT => {
                    let target = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
                    uri = target
                        .and_then(|target| redirected(&uri, target))
                        .filter(|to| self.may_lead(to))
                        .ok_or_else(|| HubError::Protocol {
                        host: host_of(&uri),
                        reason: "a redirect to where none may lead".to_owned(),
                    })?;
                }
                _ => return Err(self.refused(&uri, &response, what)),
            }
        }
        Err(self.protocol("one redirect after the other").into())
    }

    /// Whether a redirect may lead there: what is near the server only where the hub is near as well.
    fn may_lead(&self, to: &Uri) -> bool {
        !is_near(to) || is_near(&self.endpoint)
    }

    fn send(&self, uri: &Uri, range: Option<(u64, Option<&str>)>) -> Result<Response<Body>, AttemptFailure> {
        let mut request = self.agent.get(uri.clone()).config().proxy(proxy(uri)?).build();
        request = request.header(ACCEPT_ENCODING, "identity");
        if let Some(token) = self.hub.token.as_ref().map(Token::secret)
            && is_same_origin(uri, &self.endpoint)
            && is_private(uri)
        {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some((begin, etag)) = range.filter(|(begin, _)| *begin > 0) {
            request = request.header(RANGE, format!("bytes={begin}-"));
            if let Some(etag) = etag {
                request = request.header(IF_RANGE, etag);
            }
        }
        request.call().map_err(|error| match error {
            // The rest is what networks do.
            ureq::Error::Http(error) => {
                HubError::Protocol { host: host_of(uri), reason: error.to_string() }.into()
            }
            // It quotes the address, which the hub may have signed.
            ureq::Error::BadUri(_) => {
                HubError::Protocol { host: host_of(uri), reason: NO_ADDRESS.to_owned() }.into()
            }
            error => AttemptFailure::ThisTime(unreachable(uri, error.to_string()), None),
        })
    }

    /// The failure that an unsuccessful status means.
    fn refused(&self, uri: &Uri, response: &Response<Body>, what: &str) -> AttemptFailure {
        let (host, status) = (host_of(uri), response.status());
        let text = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let what = what.to_owned();
        let of_hub = is_same_origin(uri, &self.endpoint);
        let with_token = self.hub.token.is_some();
        let denied = |reason| HubError::Denied { what: what.clone(), host: host.clone(), reason, with_token };
        match (status, text("x-error-code")) {
            (StatusCode::TOO_MANY_REQUESTS, _) => AttemptFailure::ThisTime(
                HubError::TooManyRequests { host },
                text(RETRY_AFTER.as_str()).and_then(seconds),
            ),
            (_, Some("GatedRepo")) if of_hub => denied("it has conditions that must be accepted").into(),
            (_, Some("RevisionNotFound" | "EntryNotFound"))
            | (StatusCode::NOT_FOUND | StatusCode::GONE, _)
                if of_hub =>
            {
                HubError::NotFound { what, host }.into()
            }
            (StatusCode::UNAUTHORIZED, _) if of_hub => {
                denied("there is none of that name, or it is not public").into()
            }
            (StatusCode::FORBIDDEN, _) if of_hub => denied("the token does not allow it").into(),
            // An address that was signed for a while is made anew by the hub.
            _ => {
                let reason = format!("status {}", status.as_u16());
                let again = !of_hub || status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT;
                if again {
                    let after = text(RETRY_AFTER.as_str()).and_then(seconds);
                    AttemptFailure::ThisTime(unreachable(uri, reason), after)
                } else {
                    HubError::Protocol { host, reason }.into()
                }
            }
        }
    }

    /// A body that ended too early.
    pub(super) fn cut(&self, from: &Uri, error: &io::Error) -> AttemptFailure {
        AttemptFailure::ThisTime(unreachable(from, error.to_string()), None)
    }

    fn protocol(&self, reason: &str) -> HubError {
        HubError::Protocol { host: self.host(), reason: reason.to_owned() }
    }
}

/// The error for an address that could not be reached, with the proxy on the way to it, if there is one.
fn unreachable(uri: &Uri, reason: String) -> HubError {
    let proxy = proxy(uri).ok().flatten().map(|proxy| format!("{}:{}", proxy.host(), proxy.port()));
    HubError::Unreachable { place: host_and_port(uri), proxy, reason }
}

/// Attempts that brought nothing, one after the other.
pub(super) struct Retry {
    left: u32,
    pause: Duration,
    hub: Duration,
    tries: u32,
}

impl Retry {
    pub(super) fn new(hub: &Hub) -> Retry {
        let (tries, pause) = (hub.tries.saturating_sub(1), hub.first_pause);
        Retry { left: tries, pause, hub: pause, tries }
    }

    /// Something has arrived.
    pub(super) fn reset(&mut self) {
        (self.left, self.pause) = (self.tries, self.hub);
    }

    fn next(&mut self) -> Option<Duration> {
        const LONGEST: Duration = Duration::from_secs(60);
        self.left = self.left.checked_sub(1)?;
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST);
        Some(pause)
    }
}

/// The size and SHA-256 that the hub states in its own responses, which may redirect to another host.
#[derive(Default)]
struct Linked {
    size: Option<u64>,
    sha256: Option<String>,
}

impl Linked {
    fn read(&mut self, response: &Response<Body>) {
        let text = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        if let Some(size) = text("x-linked-size").and_then(|size| size.parse().ok()) {
            self.size = Some(size);
        }
        if let Some(hash) =
            text("x-linked-etag").map(|etag| etag.trim_matches('"')).filter(|etag| is_sha256(etag))
        {
            self.sha256 = Some(hash.to_ascii_lowercase());
        }
    }
}

pub(super) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn repo(reference: &Reference) -> Repo {
    Repo::with_revision(reference.repository.clone(), RepoType::Model, reference.revision.clone())
}

/// The first byte and the size of a file, of `bytes 100-199/200`.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then(|| (first, size.parse().ok()))
}

/// The seconds of `Retry-After`. A date is as good as nothing: it is waited as after other failures.
fn seconds(text: &str) -> Option<Duration> {
    text.trim().parse().ok().map(Duration::from_secs)
}

/// The certificates that the system trusts, so that those of an organisation's own mirror count; where it has
/// none, Mozilla's.
fn root_certificates() -> RootCerts {
    const BUNDLES: [&str; 5] = [
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt",
        "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
        "/etc/ssl/ca-bundle.pem",
        "/etc/ssl/cert.pem",
    ];
    let named = ["SSL_CERT_FILE", "SSL_CERT_DIR"].iter().any(|name| std::env::var_os(name).is_some());
    if named || BUNDLES.iter().any(|path| Path::new(path).exists()) {
        RootCerts::PlatformVerifier
    } else {
        RootCerts::WebPki
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{content_range, seconds};

    #[test]
    fn headers_are_read_and_strange_ones_passed_over() {
        assert_eq!(content_range("bytes 100-199/200"), Some((100, Some(200))));
        assert_eq!(content_range("bytes 0-0/*"), Some((0, None)));
        for bad in ["", "bytes", "bytes */200", "bytes 5-4/9", "bytes -1-2/3", "items 0-1/2"] {
            assert_eq!(content_range(bad), None, "{bad}");
        }
        assert_eq!(seconds(" 7 "), Some(Duration::from_secs(7)));
        assert_eq!(seconds("Wed, 21 Oct 2026 07:28:00 GMT"), None);
    }
}
