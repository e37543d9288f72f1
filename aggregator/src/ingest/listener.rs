//! Accepts connections: bounded in number, with TLS if it is set up, and none that stays silent before its HTTP/2
//! preface.
//!
//! With TLS nothing is said before the handshake is complete, and a connection takes one of `ingest.connections_max`
//! places only then. HTTP/2 pings end connections whose peer is gone (`keepalive`); before the preface there are no
//! pings, so silence is bounded here.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Sleep, sleep};
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use super::handshake::Handshakes;
use super::peer::{Entered, Peer};
use crate::metrics::{Metrics, Reason};

/// What is asked of a connection.
pub struct Door {
    /// Open ones, at most.
    pub connections_max: u32,
    /// From the connection, or the end of its handshake, to the preface.
    pub preface_timeout: Duration,
    /// TLS, if it is set up.
    pub tls: Option<Arc<Handshakes>>,
    /// Counters.
    pub metrics: Metrics,
}

/// Accepts until `stop`, and hands out at most so many connections at a time as the door has places.
pub fn accept(
    listener: TcpListener,
    door: Door,
    stop: CancellationToken,
) -> ReceiverStream<io::Result<Connection>> {
    let (sender, receiver) = mpsc::channel(ACCEPT_QUEUE);
    let places = Arc::new(Semaphore::new(door.connections_max as usize));
    let entry =
        Arc::new(Entry { places, sender, preface_timeout: door.preface_timeout, metrics: door.metrics });
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => return,
            };
            let Ok((io, address)) = accepted else {
                // Out of descriptors, most likely: let some be closed.
                entry.refused("accept_failed");
                sleep(ACCEPT_PAUSE).await;
                continue;
            };
            // Without it small frames wait for the peer's delayed acknowledgement.
            let _ = io.set_nodelay(true);
            let Some(tls) = &door.tls else {
                if entry.admit(Io::Plain(io), Peer::plain(address), None).await.is_err() {
                    return;
                }
                continue;
            };
            let Some(turn) = tls.turn(address) else {
                entry.refused("handshakes_max");
                continue;
            };
            let (tls, entry, stop) = (Arc::clone(tls), Arc::clone(&entry), stop.clone());
            tokio::spawn(async move {
                let shaken = tokio::select! {
                    shaken = tls.shake(io, address, turn) => shaken,
                    () = stop.cancelled() => return,
                };
                if let Some((stream, entered)) = shaken {
                    // An error is the server's end.
                    let peer = entered.peer().clone();
                    let _ = entry.admit(Io::Tls(Box::new(stream)), peer, Some(entered)).await;
                }
            });
        }
    });
    ReceiverStream::new(receiver)
}

/// The way in, after the handshake.
struct Entry {
    places: Arc<Semaphore>,
    sender: mpsc::Sender<io::Result<Connection>>,
    preface_timeout: Duration,
    metrics: Metrics,
}

impl Entry {
    fn refused(&self, reason: &'static str) {
        self.metrics.connections_refused.get_or_create(&Reason { reason }).inc();
    }

    async fn admit(&self, io: Io, peer: Peer, entered: Option<Entered>) -> Result<(), ()> {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            self.refused("connections_max");
            return Ok(());
        };
        self.metrics.connections.inc();
        let connection = Connection {
            io,
            unheard: PREFACE_BYTES,
            patience: Box::pin(sleep(self.preface_timeout)),
            revoked: Box::pin(peer.revoked.clone().cancelled_owned()),
            end: None,
            peer,
            metrics: self.metrics.clone(),
            _entered: entered,
            _place: place,
        };
        self.sender.send(Ok(connection)).await.map_err(|_| ())
    }
}

/// An accepted connection, which holds its place until it is closed.
pub struct Connection {
    io: Io,
    peer: Peer,
    /// Bytes of the preface that have not come yet.
    unheard: usize,
    patience: Pin<Box<Sleep>>,
    revoked: Pin<Box<WaitForCancellationFutureOwned>>,
    /// When a connection whose certificate is not accepted any more is cut, if its streams have not ended it.
    end: Option<Pin<Box<Sleep>>>,
    metrics: Metrics,
    _entered: Option<Entered>,
    _place: OwnedSemaphorePermit,
}

enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connection {
    /// Whether its certificate was given up so long ago that it is cut.
    fn is_over(&mut self, context: &mut Context<'_>) -> bool {
        if self.end.is_none() && self.revoked.as_mut().poll(context).is_ready() {
            self.end = Some(Box::pin(sleep(REVOKED_PATIENCE)));
        }
        self.end.as_mut().is_some_and(|end| end.as_mut().poll(context).is_ready())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.metrics.connections.dec();
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.unheard > 0 && self.patience.as_mut().poll(context).is_ready() {
            self.unheard = 0;
            self.metrics.connections_refused.get_or_create(&Reason { reason: "silent" }).inc();
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "no HTTP/2 preface in time")));
        }
        if self.is_over(context) {
            let words = "the certificate is not accepted any more";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, words)));
        }
        let before = buffer.filled().len();
        let result = match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_read(context, buffer),
            Io::Tls(io) => Pin::new(io).poll_read(context, buffer),
        };
        self.unheard = self.unheard.saturating_sub(buffer.filled().len() - before);
        result
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_write(context, bytes),
            Io::Tls(io) => Pin::new(io).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_write_vectored(context, slices),
            Io::Tls(io) => Pin::new(io).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(io) => io.is_write_vectored(),
            Io::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_flush(context),
            Io::Tls(io) => Pin::new(io).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_shutdown(context),
            Io::Tls(io) => Pin::new(io).poll_shutdown(context),
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.peer.clone()
    }
}

/// RFC 9113, section 3.4.
const PREFACE_BYTES: usize = 24;
const ACCEPT_QUEUE: usize = 64;
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// For the streams of a connection whose certificate is not accepted any more: their last acknowledgements.
const REVOKED_PATIENCE: Duration = Duration::from_secs(5);
