//! The side that connects.
//!
//! A client's handshake is over before the server has looked at its certificate (TLS 1.3): a refusal comes with the first
//! bytes that are read. So a [`Link`] keeps what it met, for whoever wants to say why the connection ended.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ClientConfig;
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::SingleCertAndKey;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::config::TlsConfig;
use super::failure::Failure;
use super::files::{FilesError, Material, Part, PemError};
use super::reload;

/// One state of the files, as a client uses it.
#[derive(Debug)]
pub struct TlsClient {
    config: Arc<ClientConfig>,
    verifier: Arc<WebPkiServerVerifier>,
}

impl TlsClient {
    /// From checked files.
    pub fn new(material: &Material) -> Result<Self, PemError> {
        let unusable = |reason: String| PemError::Unusable { part: Part::Ca, reason };
        let roots = Arc::clone(&material.roots);
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, super::provider())
            .build()
            .map_err(|error| unusable(error.to_string()))?;
        let mut config = ClientConfig::builder_with_provider(super::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| unusable(error.to_string()))?
            .with_webpki_verifier(Arc::clone(&verifier))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&material.key))));
        config.alpn_protocols = vec![super::ALPN_H2.to_vec()];
        config.resumption = Resumption::disabled();
        Ok(Self { config: Arc::new(config), verifier })
    }

    /// Whether a server's chain would be accepted now.
    pub fn accepts(&self, server: &Server) -> Result<(), Failure> {
        let (first, rest) = server.chain.split_first().ok_or(Failure::NoCertificate)?;
        match self.verifier.verify_server_cert(first, rest, &server.name, &[], UnixTime::now()) {
            Ok(_) => Ok(()),
            Err(error) => Err(Failure::of(&error)),
        }
    }
}

/// Who was reached: the name that was asked for, and the chain that was shown.
#[derive(Clone, Debug)]
pub struct Server {
    name: ServerName<'static>,
    chain: Vec<CertificateDer<'static>>,
}

/// How to connect.
#[derive(Clone, Debug)]
pub enum Dialer {
    /// Without TLS: to this host, or anywhere if that was asked for by name.
    Plain {
        /// Also to other hosts.
        anywhere: bool,
    },
    /// With TLS.
    Tls {
        /// The files' latest state.
        client: watch::Receiver<Arc<TlsClient>>,
        /// The name that the server's certificate must have; the host of the address else.
        server_name: Option<ServerName<'static>>,
    },
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The address has no host, no port, or a host that cannot be in a certificate.
    #[error("{address} is not host:port")]
    Address {
        /// As given.
        address: String,
    },
    /// The network.
    #[error("connect to {address}")]
    Connect {
        /// Where to.
        address: String,
        /// The system's words.
        source: io::Error,
    },
    /// Nobody answered.
    #[error("connect to {address}: no answer within {after:?}")]
    Timeout {
        /// Where to.
        address: String,
        /// How long it was tried.
        after: Duration,
    },
    /// It leads to another host, and TLS is not set up.
    #[error(
        "{address} leads to {reached}, another host: without TLS that must be asked for by name (tls.mode)"
    )]
    NotLoopback {
        /// Where to.
        address: String,
        /// What it was resolved to.
        reached: SocketAddr,
    },
    /// The handshake.
    #[error("TLS with {address}: {failure}")]
    Tls {
        /// Where to.
        address: String,
        /// What is wrong.
        failure: Failure,
        /// In the library's words.
        source: io::Error,
    },
}

impl Dialer {
    /// As configured. `reloaded` is told of each new state of the files: used or not. Blocks on the disk.
    pub fn open(
        config: &TlsConfig,
        server_name: Option<ServerName<'static>>,
        reloaded: impl Fn(bool) + Send + 'static,
    ) -> Result<Self, FilesError> {
        Ok(match config {
            TlsConfig::Loopback => Self::Plain { anywhere: false },
            TlsConfig::Plaintext => Self::Plain { anywhere: true },
            TlsConfig::Files { files, reload_interval } => {
                let client = reload::watch(files.clone(), *reload_interval, TlsClient::new, reloaded)?;
                Self::Tls { client, server_name }
            }
        })
    }

    /// Waits until the files have a new state.
    pub async fn changed(&self) {
        let Self::Tls { client, .. } = self else { return std::future::pending().await };
        let mut client = client.clone();
        client.mark_unchanged();
        if client.changed().await.is_err() {
            // The program ends.
            std::future::pending::<()>().await;
        }
    }

    /// Connects to `host:port`, handshake included.
    pub async fn dial(&self, address: &str, patience: Duration) -> Result<Link, DialError> {
        let name = match self {
            Self::Plain { .. } => None,
            Self::Tls { server_name: Some(name), .. } => Some(name.clone()),
            Self::Tls { server_name: None, .. } => Some(host_name(address)?),
        };
        let stream = timeout(patience, TcpStream::connect(address))
            .await
            .map_err(|_| DialError::Timeout { address: address.to_owned(), after: patience })?
            .map_err(|source| DialError::Connect { address: address.to_owned(), source })?;
        // Without it small frames wait for the peer's delayed acknowledgement.
        let _ = stream.set_nodelay(true);
        let link = |io, server| Link { io, server, failure: LinkFailure::default() };
        match (self, name) {
            (Self::Tls { client, .. }, Some(name)) => {
                let config = Arc::clone(&client.borrow().config);
                let failed =
                    |failure, source| DialError::Tls { address: address.to_owned(), failure, source };
                let stream = timeout(patience, TlsConnector::from(config).connect(name.clone(), stream))
                    .await
                    .map_err(|_| failed(Failure::Timeout, io::ErrorKind::TimedOut.into()))?
                    .map_err(|error| failed(Failure::of_handshake(&error), error))?;
                let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
                let chain = chain.iter().cloned().map(CertificateDer::into_owned).collect();
                Ok(link(Io::Tls(Box::new(stream)), Some(Server { name, chain })))
            }
            (Self::Plain { anywhere }, _) => {
                let reached = stream.peer_addr();
                let reached =
                    reached.map_err(|source| DialError::Connect { address: address.to_owned(), source })?;
                if !anywhere && !super::plaintext::is_loopback_ip(reached.ip()) {
                    return Err(DialError::NotLoopback { address: address.to_owned(), reached });
                }
                Ok(link(Io::Plain(stream), None))
            }
            (Self::Tls { .. }, None) => Err(DialError::Address { address: address.to_owned() }),
        }
    }

    /// Waits until the files' state does not accept a server any more that was reached with an earlier one, and says
    /// why. Looks again after each change and every minute.
    pub async fn refused(&self, server: Option<&Server>) -> Failure {
        let (Self::Tls { client, .. }, Some(server)) = (self, server) else {
            return std::future::pending().await;
        };
        let mut client = client.clone();
        loop {
            let verdict = client.borrow_and_update().accepts(server);
            if let Err(failure) = verdict {
                return failure;
            }
            let changed = async {
                if client.changed().await.is_err() {
                    // The program ends.
                    std::future::pending::<()>().await;
                }
            };
            let _ = timeout(LOOK_AGAIN, changed).await;
        }
    }
}

fn host_name(address: &str) -> Result<ServerName<'static>, DialError> {
    let host = address.rsplit_once(':').map(|(host, _)| host.trim_start_matches('[').trim_end_matches(']'));
    let name = host.and_then(|host| ServerName::try_from(host.to_owned()).ok());
    name.ok_or_else(|| DialError::Address { address: address.to_owned() })
}

/// What TLS said last on a connection; stays when the connection is gone.
#[derive(Clone, Debug, Default)]
pub struct LinkFailure(Arc<OnceLock<Failure>>);

impl LinkFailure {
    /// What it was, if it was TLS that ended the connection.
    pub fn met(&self) -> Option<Failure> {
        self.0.get().copied()
    }
}

/// A connection.
#[derive(Debug)]
pub struct Link {
    io: Io,
    server: Option<Server>,
    failure: LinkFailure,
}

#[derive(Debug)]
enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Link {
    /// Who was reached; `None` without TLS.
    pub fn server(&self) -> Option<Server> {
        self.server.clone()
    }

    /// A handle to what TLS will have said.
    pub fn failure(&self) -> LinkFailure {
        self.failure.clone()
    }

    fn note<T>(&self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &result
            && let Some(failure) = Failure::of_io(error)
        {
            // The first word counts.
            let _ = self.failure.0.set(failure);
        }
        result
    }
}

impl AsyncRead for Link {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_read(context, buffer),
            Io::Tls(io) => Pin::new(io).poll_read(context, buffer),
        };
        self.note(result)
    }
}

impl AsyncWrite for Link {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_write(context, bytes),
            Io::Tls(io) => Pin::new(io).poll_write(context, bytes),
        };
        self.note(result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_flush(context),
            Io::Tls(io) => Pin::new(io).poll_flush(context),
        };
        self.note(result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_shutdown(context),
            Io::Tls(io) => Pin::new(io).poll_shutdown(context),
        };
        self.note(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_write_vectored(context, slices),
            Io::Tls(io) => Pin::new(io).poll_write_vectored(context, slices),
        };
        self.note(result)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(io) => io.is_write_vectored(),
            Io::Tls(io) => io.is_write_vectored(),
        }
    }
}

/// A certificate can expire while nothing changes.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
