//! The admin server of every process: `/metrics` (OpenMetrics text), `/healthz`, `/readyz`.
//!
//! Health is set by the owners of what it depends on, through [`Health`]; the server only reads it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

/// What keeps the process from being ready, by subject; shared by all who know.
#[derive(Clone, Debug, Default)]
pub struct Health {
    problems: Arc<Mutex<BTreeMap<String, String>>>,
}

impl Health {
    /// States that a subject is not ready, and why, in words for a person.
    pub fn unready(&self, subject: &str, why: impl Into<String>) {
        self.lock().insert(subject.to_owned(), why.into());
    }

    /// States that a subject is ready.
    pub fn ready(&self, subject: &str) {
        self.lock().remove(subject);
    }

    /// Whether nothing is in the way.
    pub fn is_ready(&self) -> bool {
        self.lock().is_empty()
    }

    /// A line a problem.
    pub fn problems(&self) -> String {
        self.lock().iter().map(|(subject, why)| format!("{subject}: {why}\n")).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, String>> {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A bound admin server.
#[derive(Debug)]
pub struct Admin {
    listener: TcpListener,
    address: SocketAddr,
}

/// Why the admin server could not start.
#[derive(Debug, thiserror::Error)]
#[error("listen on {address} for metrics and health")]
pub struct AdminError {
    /// The address.
    pub address: SocketAddr,
    /// The system's words.
    pub source: std::io::Error,
}

impl Admin {
    /// Binds; port 0 takes a free one.
    pub async fn bind(address: SocketAddr) -> Result<Self, AdminError> {
        let fail = |source| AdminError { address, source };
        let listener = TcpListener::bind(address).await.map_err(fail)?;
        let address = listener.local_addr().map_err(fail)?;
        Ok(Self { listener, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the future is dropped.
    pub async fn serve(self, registry: Arc<Registry>, health: Health) -> std::io::Result<()> {
        let router = Router::new()
            .route("/metrics", get(metrics))
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/readyz", get(readyz))
            .with_state((registry, health));
        axum::serve(self.listener, router).await
    }
}

type Shared = (Arc<Registry>, Health);

async fn metrics(State((registry, _)): State<Shared>) -> Response {
    let mut body = String::new();
    match prometheus_client::encoding::text::encode(&mut body, &registry) {
        Ok(()) => {
            let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, content_type)], body).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn readyz(State((_, health)): State<Shared>) -> Response {
    if health.is_ready() {
        "ok\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, health.problems()).into_response()
    }
}
