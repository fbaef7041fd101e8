//! TLS to a server, by `sslmode` and `sslrootcert` as in libpq.
//!
//! Invariant: a connection that was to be encrypted or verified and cannot be is an error, and never one
//! without. Only `prefer` and `allow`, which promise nothing, go on without TLS where the server has none.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::{fmt, io};

use postgres::Socket;
use postgres::config::SslMode;
use postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsConnector;

use crate::Error;
use crate::dsn::TlsParameters;

/// The root certificates that libpq looks at where none are named, below the home directory.
const ROOT_FILE: &str = ".postgresql/root.crt";
/// The word for the roots of the operating system.
const SYSTEM: &str = "system";
/// PostgreSQL's protocol name in ALPN.
const PROTOCOL: &[u8] = b"postgresql";

/// The checks that a connection must pass, from `sslmode` and `sslrootcert`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Demand {
    Nothing,
    /// TLS where the server has it.
    Preferred,
    Encrypted,
    /// The certificate is one of a known authority.
    Verified,
    /// The certificate is one of a known authority, and is for this host.
    VerifiedHost,
}

/// The use of TLS for connections to a server.
#[derive(Debug)]
pub(crate) enum Tls {
    Without,
    With(SslMode, SessionConnector),
}

/// Reads what is said in a URL and in the environment.
///
/// # Errors
///
/// [`Error::Usage`] for an unknown mode, and for root certificates that are not there or cannot be read.
pub(crate) fn of(parameters: &TlsParameters) -> Result<Tls, Error> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let mode = parameters.sslmode.clone().or_else(|| variable("PGSSLMODE"));
    let named = parameters.sslrootcert.clone().or_else(|| variable("PGSSLROOTCERT"));
    let is_system = named.as_deref() == Some(SYSTEM);
    let demand = match mode.as_deref() {
        Some("disable") => Demand::Nothing,
        // The roots of the system vouch for everybody: they say nothing without the name.
        None if is_system => Demand::VerifiedHost,
        None | Some("prefer" | "allow") => Demand::Preferred,
        Some("require") => Demand::Encrypted,
        Some("verify-ca") => Demand::Verified,
        Some("verify-full") => Demand::VerifiedHost,
        Some(_) => {
            return Err(Error::Usage(
                "sslmode must be disable, allow, prefer, require, verify-ca or verify-full".to_owned(),
            ));
        }
    };
    if is_system && !matches!(demand, Demand::Nothing | Demand::VerifiedHost) {
        return Err(Error::Usage("sslrootcert=system needs sslmode=verify-full".to_owned()));
    }
    let file = named.map(PathBuf::from).or_else(|| {
        let file = Path::new(&std::env::var_os("HOME")?).join(ROOT_FILE);
        file.is_file().then_some(file)
    });
    // As in libpq, a file of roots means that certificates are to be checked against them.
    let demand = if demand == Demand::Encrypted && file.is_some() { Demand::Verified } else { demand };
    let verifier = match demand {
        Demand::Nothing => return Ok(Tls::Without),
        Demand::Preferred | Demand::Encrypted => CertificateVerifier::believing(),
        Demand::Verified | Demand::VerifiedHost => {
            let roots = if is_system { system_roots()? } else { roots_of(file.as_deref())? };
            CertificateVerifier::of(roots, demand == Demand::VerifiedHost)?
        }
    };
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|error| Error::Usage(format!("TLS cannot be used: {error}")))?;
    let mut config =
        config.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth();
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    let mode = if demand == Demand::Preferred { SslMode::Prefer } else { SslMode::Require };
    Ok(Tls::With(mode, SessionConnector(Arc::new(config))))
}

fn roots_of(file: Option<&Path>) -> Result<Vec<CertificateDer<'static>>, Error> {
    let Some(file) = file else {
        return Err(Error::Usage(format!(
            "there are no root certificates: name a file in sslrootcert, or put it at ~/{ROOT_FILE}"
        )));
    };
    let unreadable = |why: String| Error::Usage(format!("root certificates {}: {why}", file.display()));
    let found = CertificateDer::pem_file_iter(file).map_err(|error| unreadable(error.to_string()))?;
    let roots: Vec<_> = found.collect::<Result<_, _>>().map_err(|error| unreadable(error.to_string()))?;
    if roots.is_empty() {
        return Err(unreadable("there is none in the file".to_owned()));
    }
    Ok(roots)
}

fn system_roots() -> Result<Vec<CertificateDer<'static>>, Error> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        return Err(Error::Usage("the system has no root certificates".to_owned()));
    }
    Ok(found.certs)
}

/// The check of a server's certificate.
#[derive(Debug)]
struct CertificateVerifier {
    provider: CryptoProvider,
    /// `None`: whatever the server has is believed.
    authorities: Option<Arc<WebPkiServerVerifier>>,
    /// The root certificates.
    roots: Vec<CertificateDer<'static>>,
    /// Whether the name must fit, too.
    with_name: bool,
}

impl CertificateVerifier {
    fn believing() -> CertificateVerifier {
        let provider = ring::default_provider();
        CertificateVerifier { provider, authorities: None, roots: Vec::new(), with_name: false }
    }

    fn of(roots: Vec<CertificateDer<'static>>, with_name: bool) -> Result<CertificateVerifier, Error> {
        let provider = ring::default_provider();
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(roots.iter().cloned());
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::new(provider.clone()));
        let authorities = verifier
            .build()
            .map_err(|error| Error::Usage(format!("root certificates cannot be used: {error}")))?;
        Ok(CertificateVerifier { provider, authorities: Some(authorities), roots, with_name })
    }
}

impl ServerCertVerifier for CertificateVerifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(authorities) = &self.authorities else { return Ok(ServerCertVerified::assertion()) };
        let verified = authorities.verify_server_cert(certificate, intermediates, name, ocsp_response, now);
        match verified {
            // The name is looked at last.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.with_name => Ok(ServerCertVerified::assertion()),
            // A certificate that has signed itself, as `openssl req -x509` makes them, is an authority to the
            // verifier, and no server. Where it is a root itself, nobody else need vouch for it. Its dates
            // were looked at before that.
            Err(rustls::Error::InvalidCertificate(CertificateError::Other(_)))
                if self.roots.iter().any(|root| root == certificate) =>
            {
                if self.with_name {
                    rustls::client::verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
                }
                Ok(ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Makes connections with TLS.
#[derive(Debug, Clone)]
pub(crate) struct SessionConnector(Arc<ClientConfig>);

impl MakeTlsConnect<Socket> for SessionConnector {
    type Stream = Stream;
    type TlsConnect = ToHost;
    type Error = rustls::pki_types::InvalidDnsNameError;

    fn make_tls_connect(&mut self, host: &str) -> Result<ToHost, Self::Error> {
        Ok(ToHost { config: Arc::clone(&self.0), name: ServerName::try_from(host.to_owned())? })
    }
}

/// Makes one connection with TLS, to one host.
pub(crate) struct ToHost {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl TlsConnect<Socket> for ToHost {
    type Stream = Stream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send>>;

    fn connect(self, socket: Socket) -> Self::Future {
        let connecting = TlsConnector::from(self.config).connect(self.name, socket);
        Box::pin(async move { connecting.await.map(|stream| Stream(Box::new(stream))) })
    }
}

/// A connection with TLS.
pub(crate) struct Stream(Box<tokio_rustls::client::TlsStream<Socket>>);

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").finish_non_exhaustive()
    }
}

impl TlsStream for Stream {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
