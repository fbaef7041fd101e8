//! Splits the TLS parameters off a database URL, because the driver supports only some of them, and resolves
//! a host that is named twice, which the driver would take for two hosts.
//!
//! Both forms that libpq takes are known: `postgresql://…?key=value&…` and `key=value key='a value'`.

use crate::Error;

/// The TLS parameters of a URL.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TlsParameters {
    pub(crate) sslmode: Option<String>,
    pub(crate) sslrootcert: Option<String>,
}

impl TlsParameters {
    /// Takes a parameter if it is about TLS.
    fn take(&mut self, key: &str, value: &str) -> Result<bool, Error> {
        match key {
            "sslmode" => self.sslmode = Some(value.to_owned()),
            "sslrootcert" => self.sslrootcert = Some(value.to_owned()),
            // If the client cannot do what a parameter asks for, the connection would not be the one that was
            // asked for.
            "sslcert" | "sslkey" | "sslpassword" | "sslcrl" | "sslcrldir" => {
                return Err(Error::Usage(format!("a database URL has {key}, which is not supported")));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// The URL without its TLS parameters, and these parameters.
///
/// # Errors
///
/// [`Error::Usage`] for a URL that cannot be read. It says nothing of what stands in it.
pub(crate) fn split(url: &str) -> Result<(String, TlsParameters), Error> {
    let is_uri = url.starts_with("postgresql://") || url.starts_with("postgres://");
    if is_uri { split_uri(url) } else { split_pairs(url) }
}

fn unreadable() -> Error {
    Error::Usage("a database URL cannot be read".to_owned())
}

fn split_uri(url: &str) -> Result<(String, TlsParameters), Error> {
    let mut parameters = TlsParameters::default();
    let Some((place, query)) = url.split_once('?') else { return Ok((url.to_owned(), parameters)) };
    let mut others = Vec::new();
    for pair in query.split('&') {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if !parameters.take(&decoded(key)?, &decoded(value)?)? {
            others.push(pair.to_owned());
        }
    }
    // As in libpq, a host in the query string replaces those of the authority part.
    let names = |wanted: &[&str]| {
        others.iter().any(|pair| {
            let key = decoded(pair.split_once('=').map_or(pair.as_str(), |(key, _)| key));
            key.is_ok_and(|key| wanted.contains(&key.as_str()))
        })
    };
    let mut place = place.to_owned();
    if names(&["host"]) {
        let (without, ports) = without_hosts(&place);
        place = without;
        if let Some(ports) = ports.filter(|_| !names(&["port"])) {
            others.push(ports);
        }
    }
    let rest = if others.is_empty() { place } else { format!("{place}?{}", others.join("&")) };
    Ok((rest, parameters))
}

/// A URI without its hosts, and their ports as a parameter, if they have any.
fn without_hosts(place: &str) -> (String, Option<String>) {
    let begin = place.find("://").map_or(0, |at| at + 3);
    let end = place[begin..].find('/').map_or(place.len(), |at| begin + at);
    let begin = place[begin..end].rfind('@').map_or(begin, |at| begin + at + 1);
    let ports: Vec<&str> = place[begin..end]
        .split(',')
        .map(|host| {
            // Colons in brackets are an address's own.
            let port = host.rsplit_once(':').filter(|(_, port)| !port.contains(']'));
            port.map_or("", |(_, port)| port)
        })
        .collect();
    let has_ports = ports.iter().any(|port| !port.is_empty());
    (format!("{}{}", &place[..begin], &place[end..]), has_ports.then(|| format!("port={}", ports.join(","))))
}

/// A text without percent signs and what they stand for.
fn decoded(text: &str) -> Result<String, Error> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|byte| char::from(byte).to_digit(16));
        let (Some(high), Some(low)) = (digit(), digit()) else { return Err(unreadable()) };
        bytes.push((high * 16 + low) as u8);
    }
    String::from_utf8(bytes).map_err(|_| unreadable())
}

fn split_pairs(text: &str) -> Result<(String, TlsParameters), Error> {
    let mut parameters = TlsParameters::default();
    let mut others = Vec::new();
    let mut left = text.trim_start();
    while !left.is_empty() {
        let (key, after) = left.split_once('=').ok_or_else(unreadable)?;
        let after = after.trim_start();
        let (value, end) = value(after)?;
        if !parameters.take(key.trim(), &value)? {
            others.push(format!("{}={}", key.trim(), &after[..end]));
        }
        left = after[end..].trim_start();
    }
    Ok((others.join(" "), parameters))
}

/// A value at the beginning of a text, and how many bytes it takes there.
fn value(text: &str) -> Result<(String, usize), Error> {
    let mut value = String::new();
    let is_quoted = text.starts_with('\'');
    let mut characters = text.char_indices().skip(usize::from(is_quoted));
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => value.push(characters.next().ok_or_else(unreadable)?.1),
            '\'' if is_quoted => return Ok((value, at + 1)),
            _ if !is_quoted && character.is_whitespace() => return Ok((value, at)),
            _ => value.push(character),
        }
    }
    if is_quoted { Err(unreadable()) } else { Ok((value, text.len())) }
}
