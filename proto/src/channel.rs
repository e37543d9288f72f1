//! A gRPC channel over a connection that somebody else has made.
//!
//! Who dials decides on TLS and knows why it failed; the channel only speaks HTTP/2. It does not connect again: when
//! the connection ends, so does the channel.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint, Error};

/// Speaks HTTP/2 over `link`. `tune` sets the channel's options.
pub async fn over<L>(link: L, tune: impl FnOnce(Endpoint) -> Endpoint) -> Result<Channel, Error>
where
    L: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let link = Arc::new(Mutex::new(Some(TokioIo::new(link))));
    let connector = tower::service_fn(move |_: Uri| {
        let link = link.lock().unwrap_or_else(PoisonError::into_inner).take();
        async move { link.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
    });
    // Nobody resolves this name: it stands in `:authority`.
    tune(Endpoint::from_static("http://weir-aggregator")).connect_with_connector(connector).await
}
