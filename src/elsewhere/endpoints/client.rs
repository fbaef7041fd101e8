//! One call of an endpoint over HTTP.
//!
//! Invariant: the key is shown to the host of the endpoint only. No redirect is followed, no proxy is asked
//! unless the settings say so, and of an answer no more is read than they allow.

use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};
use ureq::http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use ureq::http::{Response, StatusCode, Uri};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, Proxy, Timeout};

use super::settings::{ApiKey, EndpointSettings};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of an answer that says what is wrong, and characters of that.
const MAX_COMPLAINT: u64 = 64 << 10;
const MAX_COMPLAINT_CHARACTERS: usize = 300;
/// Files in which systems have the certificates of authorities.
const BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The reason why a call came to nothing.
#[derive(Debug)]
pub(super) enum CallFailure {
    /// The endpoint refuses what is asked, and would again.
    Request(String),
    /// The endpoint takes nothing now, whatever is asked, or is not there; it may say for how long.
    Busy(String, Option<Duration>),
    /// The endpoint takes nothing from this worker: the settings are wrong, or the key.
    Denied(String),
    /// The connection broke off, or the answer cannot be read.
    Broken(String),
}

/// The body of an error response.
#[derive(Deserialize)]
struct Complaint {
    error: Option<Value>,
    message: Option<String>,
    detail: Option<Value>,
}

/// A way to make calls, one at a time, whose connections are kept.
///
/// # Errors
///
/// A message about certificates or a proxy that cannot be used.
pub(super) fn agent(settings: &EndpointSettings) -> Result<Agent, String> {
    let roots = match &settings.ca_file {
        Some(file) => authorities(file)?,
        None if has_authorities() => RootCerts::PlatformVerifier,
        None => RootCerts::WebPki,
    };
    let proxy = if settings.use_proxy { Proxy::try_from_env() } else { None };
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .tls_config(TlsConfig::builder().root_certs(roots).build())
        .proxy(proxy)
        .user_agent(concat!("steadytext-worker/", env!("CARGO_PKG_VERSION")))
        .timeout_resolve(Some(CONNECT_TIMEOUT.min(settings.timeout)))
        .timeout_connect(Some(CONNECT_TIMEOUT.min(settings.timeout)))
        .timeout_global(Some(settings.timeout))
        .max_idle_connections(1)
        .max_idle_connections_per_host(1);
    Ok(Agent::new_with_config(config.build()))
}

/// Whether the system has certificates of authorities; otherwise those that the program brings along vouch.
fn has_authorities() -> bool {
    let is_named = ["SSL_CERT_FILE", "SSL_CERT_DIR"].iter().any(|name| std::env::var_os(name).is_some());
    is_named || BUNDLES.iter().any(|path| Path::new(path).exists())
}

fn authorities(file: &Path) -> Result<RootCerts, String> {
    let wrong = |why: String| format!("certificates {}: {why}", file.display());
    let pem = fs::read(file).map_err(|error| wrong(error.to_string()))?;
    let mut certificates = Vec::new();
    for item in parse_pem(&pem) {
        if let PemItem::Certificate(certificate) = item.map_err(|error| wrong(error.to_string()))? {
            certificates.push(certificate);
        }
    }
    if certificates.is_empty() { Err(wrong("there is none".to_owned())) } else { Ok(certificates.into()) }
}

/// Asks, and reads the whole answer.
///
/// # Errors
///
/// [`CallFailure`].
pub(super) fn call(
    agent: &Agent,
    settings: &EndpointSettings,
    key: Option<&ApiKey>,
    path: &str,
    mut body: Map<String, Value>,
) -> Result<Vec<u8>, CallFailure> {
    settings.omit.iter().for_each(|field| drop(body.shift_remove(field)));
    body.extend(settings.extra.clone());
    let bytes = Value::Object(body).to_string();
    let uri: Uri = format!("{}{path}", settings.base_url)
        .parse()
        .map_err(|_| CallFailure::Denied("the address is none".to_owned()))?;
    let mut request =
        agent.post(uri).header(CONTENT_TYPE, "application/json").header(ACCEPT, "application/json");
    if let Some(key) = key {
        request = request.header(AUTHORIZATION, format!("Bearer {}", key.secret()));
    }
    let response = request.send(bytes.as_bytes()).map_err(|error| failed(&error, settings))?;
    if response.status() == StatusCode::OK {
        return read(response, settings.max_answer, settings);
    }
    Err(refused(response, settings, key))
}

fn read(response: Response<Body>, most: u64, settings: &EndpointSettings) -> Result<Vec<u8>, CallFailure> {
    let length =
        response.headers().get("content-length").and_then(|length| length.to_str().ok()?.parse().ok());
    let too_long = || CallFailure::Request(format!("the endpoint's answer is longer than {} MB", most >> 20));
    if length.is_some_and(|length: u64| length > most) {
        return Err(too_long());
    }
    let mut bytes = Vec::new();
    let body = response.into_body().into_reader();
    body.take(most + 1).read_to_end(&mut bytes).map_err(|error| match error.downcast::<ureq::Error>() {
        // The body's reader wraps the error of the connection.
        Ok(error) => failed(&error, settings),
        Err(error) => CallFailure::Broken(format!("the endpoint's answer broke off: {error}")),
    })?;
    if bytes.len() as u64 > most { Err(too_long()) } else { Ok(bytes) }
}

/// Classifies an error of a call that got no response.
fn failed(error: &ureq::Error, settings: &EndpointSettings) -> CallFailure {
    use io::ErrorKind as Kind;
    let unreachable = |why: String| CallFailure::Busy(format!("the endpoint cannot be reached: {why}"), None);
    match error {
        ureq::Error::HostNotFound
        | ureq::Error::ConnectionFailed
        | ureq::Error::ConnectProxyFailed(_)
        | ureq::Error::Timeout(Timeout::Resolve | Timeout::Connect) => unreachable(error.to_string()),
        ureq::Error::Io(cause)
            if matches!(
                cause.kind(),
                Kind::ConnectionRefused
                    | Kind::HostUnreachable
                    | Kind::NetworkUnreachable
                    | Kind::NetworkDown
                    | Kind::AddrNotAvailable
            ) =>
        {
            unreachable(cause.to_string())
        }
        ureq::Error::Rustls(_) | ureq::Error::Tls(_) | ureq::Error::Pem(_) | ureq::Error::TlsRequired => {
            CallFailure::Denied(format!("no TLS with the endpoint: {error}"))
        }
        // TLS errors of the handshake are reported as read errors.
        ureq::Error::Io(cause) if cause.kind() == Kind::InvalidData => {
            CallFailure::Denied(format!("no TLS with the endpoint: {cause}"))
        }
        ureq::Error::Timeout(_) => CallFailure::Broken(format!(
            "the endpoint has not answered within {} seconds",
            settings.timeout.as_secs_f64()
        )),
        ureq::Error::Http(_) | ureq::Error::BadUri(_) => CallFailure::Denied(error.to_string()),
        error => CallFailure::Broken(format!("the endpoint broke off: {error}")),
    }
}

/// Classifies a response whose status is not success.
fn refused(response: Response<Body>, settings: &EndpointSettings, key: Option<&ApiKey>) -> CallFailure {
    let status = response.status();
    let code = status.as_u16();
    if status.is_redirection() {
        return CallFailure::Denied(format!(
            "the endpoint answers with a redirect ({code}), and none is followed"
        ));
    }
    let after = response.headers().get(RETRY_AFTER).and_then(|value| seconds(value.to_str().ok()?));
    match code {
        429 | 503 | 529 => {
            return CallFailure::Busy(format!("the endpoint takes nothing now ({code})"), after);
        }
        401 | 407 => return CallFailure::Denied(format!("the endpoint does not know the key ({code})")),
        // The endpoint refuses the account or the address, so every other request would fail in the same way.
        402 | 403 => return CallFailure::Denied(format!("the endpoint refuses the account ({code})")),
        404 | 405 | 410 => {
            return CallFailure::Denied(format!("the endpoint has nothing at this address ({code})"));
        }
        408 | 425 => return CallFailure::Broken(format!("the endpoint asks to be asked again ({code})")),
        400..=499 => {}
        _ => return CallFailure::Broken(format!("the endpoint has failed ({code})")),
    }
    let complaint = read(response, MAX_COMPLAINT, settings).ok().and_then(|bytes| complaint(&bytes, key));
    CallFailure::Request(match complaint {
        Some(complaint) => format!("the endpoint refuses the request ({code}): {complaint}"),
        None => format!("the endpoint refuses the request ({code})"),
    })
}

/// The header as a number of seconds. A date is not read, because it is that of another clock.
fn seconds(text: &str) -> Option<Duration> {
    let seconds: f64 = text.trim().parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// The endpoint's message about a request that it refuses, in one line and without the key.
fn complaint(bytes: &[u8], key: Option<&ApiKey>) -> Option<String> {
    let complaint: Complaint = serde_json::from_slice(bytes).ok()?;
    let text = |value: Value| match value {
        Value::String(text) => Some(text),
        Value::Object(mut object) => match object.remove("message") {
            Some(Value::String(text)) => Some(text),
            _ => None,
        },
        _ => None,
    };
    let said = complaint.error.and_then(text).or(complaint.message).or(complaint.detail.and_then(text))?;
    let said = match key {
        Some(key) => said.replace(key.secret(), "…"),
        None => said,
    };
    let line = said.split(|character: char| character.is_whitespace() || character.is_control());
    let line: Vec<&str> = line.filter(|word| !word.is_empty()).collect();
    Some(line.join(" ").chars().take(MAX_COMPLAINT_CHARACTERS).collect())
}
