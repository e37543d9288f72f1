//! Accepts connections: bounded in number, and none that stays silent before its HTTP/2 preface.
//!
//! HTTP/2 pings end connections whose peer is gone (`keepalive`); before the preface there are no pings, so silence is
//! bounded here.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Sleep, sleep};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::metrics::{Metrics, Reason};

/// Accepts until `stop`, and hands out at most `connections_max` connections at a time.
pub fn accept(
    listener: TcpListener,
    connections_max: u32,
    preface_timeout: Duration,
    metrics: Metrics,
    stop: CancellationToken,
) -> ReceiverStream<io::Result<Connection>> {
    let (sender, receiver) = mpsc::channel(ACCEPT_QUEUE);
    let places = Arc::new(Semaphore::new(connections_max as usize));
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => return,
            };
            let Ok((io, _)) = accepted else {
                // Out of descriptors, most likely: let some be closed.
                metrics.connections_refused.get_or_create(&Reason { reason: "accept_failed" }).inc();
                sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                metrics.connections_refused.get_or_create(&Reason { reason: "connections_max" }).inc();
                continue;
            };
            // Without it small frames wait for the peer's delayed acknowledgement.
            let _ = io.set_nodelay(true);
            metrics.connections.inc();
            let connection = Connection {
                io,
                unheard: PREFACE_BYTES,
                patience: Box::pin(sleep(preface_timeout)),
                metrics: metrics.clone(),
                _place: place,
            };
            if sender.send(Ok(connection)).await.is_err() {
                return;
            }
        }
    });
    ReceiverStream::new(receiver)
}

/// An accepted connection, which holds its place until it is closed.
pub struct Connection {
    io: TcpStream,
    /// Bytes of the preface that have not come yet.
    unheard: usize,
    patience: Pin<Box<Sleep>>,
    metrics: Metrics,
    _place: OwnedSemaphorePermit,
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
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.io).poll_read(context, buffer);
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
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        let address = |address: io::Result<SocketAddr>| address.ok();
        TcpConnectInfo {
            local_addr: address(self.io.local_addr()),
            remote_addr: address(self.io.peer_addr()),
        }
    }
}

/// RFC 9113, section 3.4.
const PREFACE_BYTES: usize = 24;
const ACCEPT_QUEUE: usize = 64;
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
