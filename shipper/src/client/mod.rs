//! The client: keeps streams to the aggregators, and sends them what the spool holds until it is acknowledged.
//!
//! Each aggregator has a lane of its own ([`lane`]); which of them gets new batches is the route's decision ([`route`]).
//! What was sent is what is sent again, byte for byte: it is read from the spool. Started by the app as one task; it
//! never ends by itself.

mod backoff;
mod lane;
mod policy;
mod reader;
mod route;
mod session;
mod window;

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use weir_common::admin::Health;
use weir_common::tls::client::Dialer;

pub use route::rendezvous;
pub use session::SessionError;

use crate::metrics::Metrics;
use crate::spool::Outbox;
use lane::Lane;
use route::Route;

/// Crash points of the client, in their order.
pub const CRASH_POINTS: &[&str] = &[
    "client.bound",
    "client.reserved",
    "client.sent",
    "client.skipped",
    "client.acked",
    "client.released",
    "client.preferred",
];

/// Until an aggregator is given up again, after the spool's state could not be written.
const RETRY: Duration = Duration::from_secs(1);

/// An aggregator as it is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AggregatorOptions {
    /// Its name: in the spool, in metrics and logs.
    pub name: String,
    /// `host:port` each, all of this aggregator; tried in turn. Not empty.
    pub addresses: Vec<String>,
}

/// Where to send, as whom, and how patiently.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// The aggregators, in this node's order. Not empty.
    pub aggregators: Vec<AggregatorOptions>,
    /// How long one may be out of reach until what was never sent to it goes to the next one.
    pub takeover_after: Duration,
    /// Name of this node.
    pub node: String,
    /// Name of its cluster.
    pub cluster: String,
    /// For TCP and HTTP/2 to be up.
    pub connect_timeout: Duration,
    /// From Hello to Welcome.
    pub hello_timeout: Duration,
    /// From the last sign of life while something is not acknowledged.
    pub ack_timeout: Duration,
    /// Between HTTP/2 pings.
    pub keepalive_interval: Duration,
    /// For the answer to a ping.
    pub keepalive_timeout: Duration,
    /// Wait before a new attempt, at first.
    pub backoff_min: Duration,
    /// And at most.
    pub backoff_max: Duration,
    /// Batches in flight at most, also if the aggregator allows more.
    pub window_batches: usize,
    /// Their bytes at most.
    pub window_bytes: u64,
}

/// The client of one spool.
#[derive(Debug)]
pub struct Client {
    /// Settings.
    pub options: ClientOptions,
    /// How aggregators are reached.
    pub dialer: Dialer,
    /// What to send.
    pub outbox: Outbox,
    /// What is counted.
    pub metrics: Metrics,
    /// Who is told when only a person can help.
    pub health: Health,
}

impl Client {
    /// Sends until stopped. Nothing is lost by stopping it at any time.
    pub async fn run(self, stop: CancellationToken) {
        let Self { options, dialer, outbox, metrics, health } = self;
        let options = Arc::new(options);
        let route = Arc::new(Route::new(options.aggregators.len(), options.takeover_after));
        release_unclaimed(&outbox, &health).await;
        let mut tasks = JoinSet::new();
        let mut lanes = Vec::new();
        for (index, aggregator) in options.aggregators.iter().enumerate() {
            let lane = Lane {
                options: Arc::clone(&options),
                index,
                dialer: dialer.clone(),
                outbox: outbox.of(&aggregator.name),
                metrics: metrics.clone(),
                health: health.clone(),
                route: Arc::clone(&route),
            };
            lanes.push(lane.clone());
            tasks.spawn(lane.run(stop.clone()));
        }
        loop {
            let index = tokio::select! {
                () = stop.cancelled() => break,
                index = route.overdue() => index,
            };
            if lanes[index].give_up().await {
                route.away(index);
            } else {
                tokio::time::sleep(RETRY).await;
            }
        }
        while tasks.join_next().await.is_some() {}
    }
}

/// Of aggregators that are not configured any more, what was never sent goes to one that is. The rest waits for them.
async fn release_unclaimed(outbox: &Outbox, health: &Health) {
    for (name, numbers) in outbox.unclaimed() {
        let of = outbox.of(&name);
        let released = tokio::task::spawn_blocking(move || of.release()).await;
        let kept = match released {
            Ok(Ok(released)) => released.kept,
            Ok(Err(error)) => {
                tracing::error!(error = chain(&error), "the spool's state could not be written");
                numbers
            }
            Err(_) => numbers,
        };
        if kept > 0 {
            let advice = "configure it again, or declare its journal lost with `weir-shipper rebind`";
            tracing::error!(
                aggregator = name,
                batches = kept,
                advice,
                "batches wait for an aggregator that is not configured"
            );
            health.unready(
                &format!("delivery to {name}"),
                format!("{kept} batches may have arrived there and it is not configured: {advice}"),
            );
        }
    }
}

/// An error and its sources in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text
}
