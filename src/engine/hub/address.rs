//! Addresses of the web: which ones a hub may have, where a redirect may lead, which proxy stands before one.

use std::net::{IpAddr, Ipv4Addr};

use ureq::Proxy;
use ureq::http::Uri;

use super::error::HubError;

pub(super) fn endpoint(text: &str) -> Result<Uri, HubError> {
    let wrong =
        |reason: &str| HubError::Setting { setting: "the address of the hub", reason: reason.to_owned() };
    let uri: Uri = text.trim_end_matches('/').parse().map_err(|_| wrong("it is no address"))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(wrong("it must begin with https:// or http://"));
    }
    let authority = uri.authority().map(|authority| authority.as_str()).unwrap_or_default();
    if authority.is_empty() || authority.contains('@') || uri.query().is_some() {
        return Err(wrong("it is a host and perhaps a path, without user, password or query"));
    }
    Ok(uri)
}

pub(super) fn host_of(uri: &Uri) -> String {
    uri.host().unwrap_or_default().to_owned()
}

/// Host and port, as whoever looks for the fault in a network needs them.
pub(super) fn host_and_port(uri: &Uri) -> String {
    format!("{}:{}", host_of(uri), port(uri))
}

fn port(uri: &Uri) -> u16 {
    uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 })
}

pub(super) fn is_same_origin(one: &Uri, other: &Uri) -> bool {
    let host = |uri: &Uri| host_of(uri).to_ascii_lowercase();
    one.scheme() == other.scheme() && host(one) == host(other) && port(one) == port(other)
}

/// Whether nobody on the way can read the traffic: it is encrypted, or stays on this machine.
pub(super) fn is_private(uri: &Uri) -> bool {
    uri.scheme_str() == Some("https") || matches!(uri.host(), Some("localhost" | "127.0.0.1" | "[::1]"))
}

/// Whether an address is one of this machine or of the networks around it, as far as it says so itself.
pub(super) fn is_near(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_ascii_lowercase();
    if host == "localhost" || host.ends_with(".localhost") {
        return true;
    }
    match host.parse() {
        Ok(IpAddr::V4(address)) => is_near_v4(address),
        Ok(IpAddr::V6(address)) => match address.to_ipv4_mapped() {
            Some(address) => is_near_v4(address),
            None => {
                let first = address.segments()[0];
                address.is_loopback()
                    || address.is_unspecified()
                    || first & 0xfe00 == 0xfc00
                    || first & 0xffc0 == 0xfe80
            }
        },
        Err(_) => false,
    }
}

fn is_near_v4(address: Ipv4Addr) -> bool {
    address.is_loopback() || address.is_private() || address.is_link_local() || address.is_unspecified()
}

/// The target of a redirect. None for a target that is no address of the web, has a password in it, or would
/// leave encryption.
pub(super) fn redirected(from: &Uri, target: &str) -> Option<Uri> {
    let (scheme, authority) = (from.scheme_str()?, from.authority()?.as_str());
    let address = if target.starts_with("//") {
        format!("{scheme}:{target}")
    } else if target.starts_with('/') {
        format!("{scheme}://{authority}{target}")
    } else {
        target.to_owned()
    };
    let uri: Uri = address.parse().ok()?;
    let allowed = match uri.scheme_str()? {
        "https" => true,
        "http" => scheme == "http",
        _ => false,
    };
    let authority = uri.authority()?.as_str();
    (allowed && !authority.is_empty() && !authority.contains('@')).then_some(uri)
}

/// The proxy of the environment for an address.
pub(super) fn proxy(uri: &Uri) -> Result<Option<Proxy>, HubError> {
    let value = |name: &&str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let names: &[&str] = match uri.scheme_str() {
        Some("https") => &["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"],
        _ => &["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"],
    };
    let Some(address) = names.iter().find_map(value) else { return Ok(None) };
    let exceptions = ["no_proxy", "NO_PROXY"].iter().find_map(value).unwrap_or_default();
    if is_excepted(&host_of(uri), &exceptions) {
        return Ok(None);
    }
    // Its address may have a password.
    let wrong = |_| HubError::Setting {
        setting: "the proxy of the environment",
        reason: "it is no address of a proxy".to_owned(),
    };
    Proxy::new(&address).map(Some).map_err(wrong)
}

/// Whether a host is in a list of domains as NO_PROXY has it.
fn is_excepted(host: &str, exceptions: &str) -> bool {
    let host = host.to_ascii_lowercase();
    exceptions.split(',').map(|entry| entry.trim().to_ascii_lowercase()).any(|entry| {
        let domain = entry.trim_start_matches('*').trim_start_matches('.');
        entry == "*" || (!domain.is_empty() && (host == domain || host.ends_with(&format!(".{domain}"))))
    })
}

#[cfg(test)]
mod tests {
    use ureq::http::Uri;

    use super::{endpoint, is_excepted, is_near, is_private, is_same_origin, redirected};

    fn uri(text: &str) -> Uri {
        text.parse().unwrap()
    }

    #[test]
    fn redirects_stay_in_the_web_and_encrypted() {
        let hub = uri("https://hub.example/a/resolve/main/b");
        for (target, expected) in [
            ("/x/y?z", "https://hub.example/x/y?z"),
            ("//cdn.example/b", "https://cdn.example/b"),
            ("https://cdn.example:8443/b?s=1", "https://cdn.example:8443/b?s=1"),
        ] {
            assert_eq!(redirected(&hub, target), Some(uri(expected)));
        }
        for target in [
            "http://cdn.example/b",
            "file:///etc/passwd",
            "ftp://x/y",
            "b",
            "",
            "https://u:p@cdn.example/b",
            "https://",
        ] {
            assert_eq!(redirected(&hub, target), None, "{target}");
        }
        assert!(redirected(&uri("http://localhost:1/"), "http://other/").is_some());
    }

    #[test]
    fn origins_are_scheme_host_and_port() {
        let hub = uri("https://Hub.example/");
        assert!(is_same_origin(&hub, &uri("https://hub.example:443/x")));
        for other in [
            "http://hub.example/",
            "https://hub.example:444/",
            "https://hub.example.org/",
            "https://cdn.hub.example/",
        ] {
            assert!(!is_same_origin(&hub, &uri(other)), "{other}");
        }
        assert!(
            is_private(&hub)
                && is_private(&uri("http://127.0.0.1:80/"))
                && !is_private(&uri("http://hub.example/"))
        );
    }

    #[test]
    fn endpoints_are_checked() {
        for good in ["https://huggingface.co", "http://127.0.0.1:8080/", "https://mirror.example/hf/"] {
            assert!(endpoint(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "huggingface.co",
            "file:///x",
            "ftp://x",
            "https://u:p@x",
            "https://x?y",
            "https://",
            "https://a b",
        ] {
            assert!(endpoint(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn no_proxy_names_domains() {
        for (host, list, excepted) in [
            ("a.example", "example", true),
            ("a.example", ".example, b", true),
            ("a.example", "*.example", true),
            ("example", "*.example", true),
            ("anexample", "example", false),
            ("a.example", "", false),
            ("a.example", "*", true),
            ("LOCALHOST", "localhost", true),
        ] {
            assert_eq!(is_excepted(host, list), excepted, "{host} {list}");
        }
    }

    #[test]
    fn what_is_near_the_server_says_so() {
        for near in [
            "http://localhost:80/x",
            "https://a.localhost/",
            "http://127.8.0.1/",
            "http://10.0.0.1/",
            "http://192.168.1.1/",
            "http://169.254.169.254/latest",
            "http://0.0.0.0/",
            "http://[::1]/",
            "http://[fe80::1]/",
            "http://[fd00::1]/",
            "http://[::ffff:10.0.0.1]/",
        ] {
            assert!(is_near(&uri(near)), "{near}");
        }
        for far in [
            "https://huggingface.co/",
            "http://8.8.8.8/",
            "https://[2001:db8::1]/",
            "https://localhost.example/",
        ] {
            assert!(!is_near(&uri(far)), "{far}");
        }
    }
}
