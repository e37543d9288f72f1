//! Who is at the other end of a connection, and whether they still may be.
//!
//! With TLS every open connection is checked again when the files change, and every minute: a certificate that would
//! not be accepted now ends it. Its streams are told first, so that what they sent is acknowledged; then it is cut.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weir_common::tls::CertificateDer;
use weir_common::tls::failure::Failure;
use weir_common::tls::identity::{Identity, NoIdentity};
use weir_common::tls::server::TlsServer;

use crate::metrics::{Metrics, Reason};

/// One end of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Where it is.
    pub address: SocketAddr,
    /// Who its certificate is for; `None` without TLS.
    pub certificate: Option<Result<Identity, NoIdentity>>,
    /// Cancelled when its certificate is not accepted any more.
    pub revoked: CancellationToken,
}

impl Peer {
    /// Without TLS.
    pub fn plain(address: SocketAddr) -> Self {
        Self { address, certificate: None, revoked: CancellationToken::new() }
    }
}

/// All peers with certificates.
#[derive(Debug)]
pub struct Peers {
    server: watch::Receiver<Arc<TlsServer>>,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    peers: HashMap<u64, (Peer, Arc<[CertificateDer<'static>]>)>,
}

/// A peer's place among the others; dropping it leaves.
#[derive(Debug)]
pub struct Entered {
    peers: Arc<Peers>,
    key: u64,
    peer: Peer,
}

impl Peers {
    /// With the files' latest state.
    pub fn new(server: watch::Receiver<Arc<TlsServer>>) -> Arc<Self> {
        Arc::new(Self { server, open: Mutex::default() })
    }

    /// The latest state.
    pub fn server(&self) -> Arc<TlsServer> {
        Arc::clone(&self.server.borrow())
    }

    /// Takes in a peer whose handshake is complete. An error: the files changed meanwhile.
    pub fn enter(
        self: &Arc<Self>,
        address: SocketAddr,
        chain: &Arc<[CertificateDer<'static>]>,
    ) -> Result<Entered, Failure> {
        let certificate = Some(chain.first().map_or(Err(NoIdentity::None), Identity::of));
        let peer = Peer { address, certificate, revoked: CancellationToken::new() };
        let key = {
            let mut open = self.lock();
            open.next += 1;
            let key = open.next;
            open.peers.insert(key, (peer.clone(), Arc::clone(chain)));
            key
        };
        let entered = Entered { peers: Arc::clone(self), key, peer };
        // Only now: a change before is seen here, a later one by the check of all.
        self.server().accepts(chain)?;
        Ok(entered)
    }

    /// Checks all peers after each change of the files, and every minute.
    pub async fn run(self: Arc<Self>, metrics: Metrics, stop: CancellationToken) {
        let mut server = self.server.clone();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                changed = server.changed() => if changed.is_err() {
                    return;
                },
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
            self.check(&metrics);
        }
    }

    fn check(&self, metrics: &Metrics) {
        let server = self.server();
        for (peer, chain) in self.lock().peers.values() {
            if peer.revoked.is_cancelled() {
                continue;
            }
            if let Err(failure) = server.accepts(chain) {
                tracing::warn!(
                    address = %peer.address,
                    certificate = peer.certificate.as_ref().and_then(|of| of.as_ref().ok()).map(tracing::field::display),
                    reason = failure.label(),
                    "a connection is ended: its certificate is not accepted any more"
                );
                metrics.connections_revoked.get_or_create(&Reason { reason: failure.label() }).inc();
                peer.revoked.cancel();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entered {
    /// Who entered.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.peers.lock().peers.remove(&self.key);
    }
}

/// A certificate can expire while nothing changes.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
