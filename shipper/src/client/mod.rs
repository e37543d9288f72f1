//! The client: keeps a stream to the aggregator, and sends it what the spool holds until it is acknowledged.
//!
//! Owns connecting, waiting and the answer to every way in which a stream can end ([`policy`]). One stream carries one
//! epoch; the oldest goes first. What was sent is what is sent again, byte for byte: it is read from the spool.
//! Started by the app as one task; it never ends by itself.

mod backoff;
mod policy;
mod reader;
mod session;
mod window;

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use weir_common::admin::Health;
use weir_common::id::{hex, uuid_text};
use weir_proto::v1::Welcome;

pub use session::SessionError;

use crate::metrics::Metrics;
use crate::spool::{Head, Id, Outbox};
use backoff::Backoff;
use policy::{Verdict, verdict};
use session::Ended;

/// Crash points of the client, in their order.
pub const CRASH_POINTS: &[&str] =
    &["client.bound", "client.reserved", "client.sent", "client.skipped", "client.acked"];

/// A batch that was refused this often is given up, counted.
const REFUSALS_MAX: u32 = 3;
/// The subject of readiness that the client speaks for.
const SUBJECT: &str = "delivery";

/// Where to send, as whom, and how patiently.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// `host:port` each, of the same aggregator; tried in turn. Not empty.
    pub addresses: Vec<String>,
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
        let mut backoff = Backoff::new(self.options.backoff_min, self.options.backoff_max);
        let mut refused = Refused::default();
        let mut epoch = Id::default();
        for address in self.options.addresses.iter().cycle() {
            let mut welcomed = false;
            let ended = tokio::select! {
                () = stop.cancelled() => break,
                ended = session::run(&self, address, &mut welcomed, &mut epoch) => ended,
            };
            self.metrics.connected.set(0);
            self.metrics.unacked_batches.set(0);
            if welcomed {
                backoff.reset();
            }
            let delay = match ended {
                Ok(Ended::EpochDone) => continue,
                // Once is enough; a second time in a row would be an aggregator that counts wrongly.
                Ok(Ended::Renumbered) => backoff.delay(),
                Err(error) => self.answer(address, &error, epoch, &mut refused, &mut backoff).await,
            };
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(delay) => {}
            }
        }
        self.metrics.connected.set(0);
    }

    async fn answer(
        &self,
        address: &str,
        error: &SessionError,
        epoch: Id,
        refused: &mut Refused,
        backoff: &mut Backoff,
    ) -> Duration {
        self.metrics.disconnects.get_or_create(&[("reason", label(error))]).inc();
        match verdict(error) {
            Verdict::Retry => {
                let delay = backoff.delay();
                tracing::warn!(address, error = chain(error), ?delay, "not connected to the aggregator");
                delay
            }
            Verdict::Hold(advice) => {
                tracing::error!(address, error = chain(error), advice, "the aggregator cannot be used");
                self.health.unready(SUBJECT, format!("{}: {advice}", chain(error)));
                backoff.longest()
            }
            Verdict::NewEpoch => {
                self.mark(move |outbox| outbox.renumber(&epoch, "unknown_epoch")).await;
                backoff.delay()
            }
            Verdict::Rejected(number) => {
                let times = refused.again(epoch, number);
                tracing::error!(address, number, times, error = chain(error), "a batch was refused");
                if times >= REFUSALS_MAX {
                    self.mark(move |outbox| outbox.reject(&epoch, number)).await;
                }
                backoff.delay()
            }
        }
    }

    /// Changes the spool on a thread that may block.
    async fn mark(
        &self,
        change: impl FnOnce(&Outbox) -> Result<(), crate::spool::OutboxError> + Send + 'static,
    ) {
        let outbox = self.outbox.clone();
        let done = tokio::task::spawn_blocking(move || change(&outbox)).await;
        match done {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(error = chain(&error), "the spool's state could not be written");
            }
            Err(error) => {
                tracing::error!(%error, "the spool's state could not be written");
            }
        }
    }

    fn welcomed(&self, address: &str, head: &Head, welcome: &Welcome) {
        self.metrics.connects.inc();
        self.metrics.connected.set(1);
        self.health.ready(SUBJECT);
        let journal = Id::try_from(welcome.journal_id.as_slice()).unwrap_or_default();
        tracing::info!(
            address,
            journal = uuid_text(&journal),
            epoch = hex(&head.epoch),
            journaled = welcome.last_number,
            last = head.last_number,
            "connected to the aggregator"
        );
    }
}

/// How often the same batch was refused in a row.
#[derive(Debug, Default)]
struct Refused {
    of: Option<(Id, u64)>,
    times: u32,
}

impl Refused {
    fn again(&mut self, epoch: Id, number: u64) -> u32 {
        if self.of != Some((epoch, number)) {
            *self = Self { of: Some((epoch, number)), times: 0 };
        }
        self.times += 1;
        self.times
    }
}

/// The metric's label: the variant, and the aggregator's own reason.
fn label(error: &SessionError) -> &'static str {
    match error {
        SessionError::Refused { reason, .. } => reason.as_str_name(),
        SessionError::Address { .. } => "address",
        SessionError::Connect { .. } => "connect",
        SessionError::Status(_) => "stream",
        SessionError::Timeout { .. } => "timeout",
        SessionError::Closed => "closed",
        SessionError::Unexpected { .. } | SessionError::NotSent(_) => "protocol",
        SessionError::OtherJournal { .. } => "other_journal",
        SessionError::Limits { .. } => "limits",
        SessionError::Outbox(_) | SessionError::Reader => "spool",
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
