//! Handshakes with strangers: bounded in time, in number, and in what any one address may have of them.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use weir_common::tls::CertificateDer;
use weir_common::tls::failure::Failure;

use super::peer::{Entered, Peers};
use crate::metrics::{Metrics, Reason};

/// All handshakes that are not complete.
pub struct Handshakes {
    /// Who came through.
    pub peers: Arc<Peers>,
    /// How long one may take.
    pub patience: Duration,
    /// How many there may be.
    pub handshakes_max: u32,
    /// Counters.
    pub metrics: Metrics,
    open: Mutex<Turns>,
    said: Mutex<HashMap<&'static str, Instant>>,
}

#[derive(Default)]
struct Turns {
    all: u32,
    of: HashMap<IpAddr, u32>,
}

/// One handshake's place.
pub struct Turn {
    handshakes: Arc<Handshakes>,
    address: IpAddr,
}

impl Handshakes {
    /// Of these peers.
    pub fn new(peers: Arc<Peers>, patience: Duration, handshakes_max: u32, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self {
            peers,
            patience,
            handshakes_max,
            metrics,
            open: Mutex::default(),
            said: Mutex::default(),
        })
    }

    /// A place, if there is one: one address has a quarter of them at most, so that a stranger does not take them all.
    pub fn turn(self: &Arc<Self>, address: SocketAddr) -> Option<Turn> {
        let address = address.ip().to_canonical();
        let mut open = self.lock();
        let own = open.of.get(&address).copied().unwrap_or(0);
        if open.all >= self.handshakes_max || own >= (self.handshakes_max / 4).max(1) {
            return None;
        }
        open.all += 1;
        open.of.insert(address, own + 1);
        self.metrics.tls_handshakes.inc();
        Some(Turn { handshakes: Arc::clone(self), address })
    }

    /// One handshake. A failure is counted, and said now and then.
    pub async fn shake(
        &self,
        io: TcpStream,
        address: SocketAddr,
        turn: Turn,
    ) -> Option<(TlsStream<TcpStream>, Entered)> {
        let acceptor = TlsAcceptor::from(Arc::clone(&self.peers.server().config));
        let shaken = timeout(self.patience, acceptor.accept(io).into_fallible()).await;
        let (failure, io) = match shaken {
            Err(_) => (Failure::Timeout, None),
            Ok(Err((error, io))) => (Failure::of_handshake(&error), Some(io)),
            Ok(Ok(stream)) => {
                let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
                let chain = chain.iter().cloned().map(CertificateDer::into_owned).collect();
                match self.peers.enter(address, &chain) {
                    Ok(entered) => return Some((stream, entered)),
                    Err(failure) => (failure, None),
                }
            }
        };
        self.refused(failure, address);
        if let Some(io) = io {
            linger(io).await;
        }
        drop(turn);
        None
    }

    fn refused(&self, failure: Failure, address: SocketAddr) {
        self.metrics.connections_refused.get_or_create(&Reason { reason: failure.label() }).inc();
        self.say(failure, address);
    }

    /// Each kind of failure is said once in a while: a stranger must not fill the disk with words.
    fn say(&self, failure: Failure, address: SocketAddr) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if said.get(failure.label()).is_some_and(|last| now.duration_since(*last) < SAY_AGAIN) {
            return;
        }
        said.insert(failure.label(), now);
        tracing::warn!(%address, reason = failure.label(), error = %failure, "a connection was refused");
    }

    fn lock(&self) -> MutexGuard<'_, Turns> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut open = self.handshakes.lock();
        open.all -= 1;
        if let Some(own) = open.of.get_mut(&self.address) {
            *own -= 1;
            if *own == 0 {
                open.of.remove(&self.address);
            }
        }
        self.handshakes.metrics.tls_handshakes.dec();
    }
}

/// Lets the alert arrive: closing with unread bytes would reset the connection, and the other side would never know
/// what was wrong.
async fn linger(mut io: TcpStream) {
    let _ = io.shutdown().await;
    let mut unread = 0;
    let read = async {
        let mut buffer = [0; 4096];
        while unread < LINGER_BYTES {
            match io.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(read) => unread += read,
            }
        }
    };
    let _ = timeout(LINGER, read).await;
}

const LINGER: Duration = Duration::from_millis(500);
const LINGER_BYTES: usize = 64 << 10;
const SAY_AGAIN: Duration = Duration::from_secs(10);
