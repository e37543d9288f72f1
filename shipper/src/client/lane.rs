//! The client of one aggregator: one stream after another, as long as there is something to do there.
//!
//! Owns connecting, waiting and the answer to every way in which a stream can end ([`policy`](super::policy)). One
//! stream carries one epoch; the oldest goes first. Lanes of several aggregators run side by side and share the spool.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use weir_common::admin::Health;
use weir_common::id::{hex, uuid_text};
use weir_common::tls::client::{DialError, Dialer};
use weir_proto::v1::Welcome;

use super::backoff::Backoff;
use super::policy::{Verdict, verdict};
use super::route::Route;
use super::session::{self, Ended, SessionError};
use super::{AggregatorOptions, ClientOptions, chain};
use crate::metrics::Metrics;
use crate::spool::{Head, Id, Outbox, OutboxError};

/// A batch that was refused this often is given up, counted.
const REFUSALS_MAX: u32 = 3;

/// One aggregator's client.
#[derive(Clone, Debug)]
pub(super) struct Lane {
    pub(super) options: Arc<ClientOptions>,
    /// Of the aggregator in the options.
    pub(super) index: usize,
    pub(super) dialer: Dialer,
    pub(super) outbox: Outbox,
    pub(super) metrics: Metrics,
    pub(super) health: Health,
    pub(super) route: Arc<Route>,
}

impl Lane {
    /// Sends until stopped.
    pub(super) async fn run(self, stop: CancellationToken) {
        let mut backoff = Backoff::new(self.options.backoff_min, self.options.backoff_max);
        let mut refused = Refused::default();
        self.connected(false);
        for address in self.aggregator().addresses.iter().cycle() {
            let head = tokio::select! {
                () = stop.cancelled() => break,
                head = self.work() => head,
            };
            self.route.sought(self.index, Instant::now());
            let mut welcomed = false;
            let ended = tokio::select! {
                () = stop.cancelled() => break,
                ended = session::run(&self, address, &head, &mut welcomed) => ended,
            };
            self.connected(false);
            self.unacked(0);
            if welcomed {
                backoff.reset();
            }
            let delay = match ended {
                Ok(Ended::EpochDone) => continue,
                // Once is enough; a second time in a row would be an aggregator that counts wrongly.
                Ok(Ended::Again) => backoff.delay(),
                Err(error) => {
                    self.route.sought(self.index, Instant::now());
                    self.answer(address, &error, head.epoch, &mut refused, &mut backoff).await
                }
            };
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(delay) => {}
                // Most likely it is what was waited for.
                () = self.dialer.changed() => {}
            }
        }
        self.connected(false);
    }

    /// Waits until there is something to do here, if only to see whether the aggregator is back.
    async fn work(&self) -> Head {
        let (mut standing, mut waiting) = (self.route.watch(), self.outbox.waiting());
        loop {
            // First seen, then looked at: a change between the two is not missed.
            standing.borrow_and_update();
            waiting.borrow_and_update();
            self.show_chosen();
            if let Some(head) = self.outbox.head_for(self.route.role(self.index)) {
                return head;
            }
            self.route.idle(self.index);
            tokio::select! {
                // Both senders live as long as this.
                _ = standing.changed() => {}
                _ = waiting.changed() => {}
            }
        }
    }

    /// The aggregator is out of reach for too long: what was never sent to it may go elsewhere. Returns whether it may.
    pub(super) async fn give_up(&self) -> bool {
        let outbox = self.outbox.clone();
        let released = match tokio::task::spawn_blocking(move || outbox.release()).await {
            Ok(Ok(released)) => released,
            Ok(Err(error)) => {
                tracing::error!(error = chain(&error), "the spool's state could not be written");
                return false;
            }
            Err(_) => return false,
        };
        self.metrics.takeovers.get_or_create(&self.label()).inc();
        tracing::warn!(
            aggregator = self.name(),
            after = ?self.options.takeover_after,
            released = released.released,
            kept = released.kept,
            "the aggregator is out of reach: batches that were never sent go to another one, the rest waits for it"
        );
        true
    }

    async fn answer(
        &self,
        address: &str,
        error: &SessionError,
        epoch: Id,
        refused: &mut Refused,
        backoff: &mut Backoff,
    ) -> Duration {
        let aggregator = self.name();
        self.metrics.disconnects.get_or_create(&[("reason", label(error))]).inc();
        match verdict(error) {
            Verdict::Retry => {
                let delay = backoff.delay();
                tracing::warn!(
                    aggregator,
                    address,
                    error = chain(error),
                    ?delay,
                    "not connected to the aggregator"
                );
                delay
            }
            Verdict::Hold(advice) => {
                tracing::error!(
                    aggregator,
                    address,
                    error = chain(error),
                    advice,
                    "the aggregator cannot be used"
                );
                self.health.unready(&self.subject(), format!("{}: {advice}", chain(error)));
                backoff.longest()
            }
            Verdict::NewEpoch => {
                self.mark(move |outbox| outbox.renumber(&epoch, "unknown_epoch")).await;
                backoff.delay()
            }
            Verdict::Rejected(number) => {
                let times = refused.again(epoch, number);
                tracing::error!(
                    aggregator,
                    address,
                    number,
                    times,
                    error = chain(error),
                    "a batch was refused"
                );
                if times >= REFUSALS_MAX {
                    self.mark(move |outbox| outbox.reject(&epoch, number)).await;
                }
                backoff.delay()
            }
        }
    }

    /// Changes the spool on a thread that may block.
    async fn mark(&self, change: impl FnOnce(&Outbox) -> Result<(), OutboxError> + Send + 'static) {
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

    pub(super) async fn welcomed(
        &self,
        address: &str,
        head: &Head,
        welcome: &Welcome,
    ) -> Result<(), SessionError> {
        self.metrics.connects.inc();
        self.connected(true);
        self.health.ready(&self.subject());
        let journal = Id::try_from(welcome.journal_id.as_slice()).unwrap_or_default();
        tracing::info!(
            aggregator = self.name(),
            address,
            journal = uuid_text(&journal),
            epoch = hex(&head.epoch),
            journaled = welcome.last_number,
            last = head.last_number,
            "connected to the aggregator"
        );
        self.route.well(self.index);
        self.show_chosen();
        if self.route.chosen() == self.index {
            let outbox = self.outbox.clone();
            tokio::task::spawn_blocking(move || outbox.prefer())
                .await
                .map_err(|_| SessionError::Reader)??;
        }
        Ok(())
    }

    /// How many batches are under way.
    pub(super) fn unacked(&self, batches: usize) {
        self.metrics.unacked_batches.get_or_create(&self.label()).set(batches as u64);
    }

    fn show_chosen(&self) {
        let chosen = self.route.chosen();
        for (index, AggregatorOptions { name, .. }) in self.options.aggregators.iter().enumerate() {
            let gauge = self.metrics.chosen.get_or_create(&[("aggregator", name.clone())]);
            gauge.set(u64::from(index == chosen));
        }
    }

    fn connected(&self, connected: bool) {
        self.metrics.connected.get_or_create(&self.label()).set(u64::from(connected));
    }

    fn aggregator(&self) -> &AggregatorOptions {
        // The route has a place for each.
        &self.options.aggregators[self.index]
    }

    fn name(&self) -> &str {
        &self.aggregator().name
    }

    fn label(&self) -> [(&'static str, String); 1] {
        [("aggregator", self.name().to_owned())]
    }

    /// The subject of readiness that the lane speaks for.
    fn subject(&self) -> String {
        format!("delivery to {}", self.name())
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
        SessionError::Dial(DialError::Address { .. } | DialError::NotLoopback { .. }) => "address",
        SessionError::Dial(DialError::Connect { .. }) | SessionError::Channel { .. } => "connect",
        SessionError::Dial(DialError::Tls { failure, .. }) | SessionError::Tls(failure) => failure.label(),
        SessionError::Status(_) => "stream",
        SessionError::Dial(DialError::Timeout { .. }) | SessionError::Timeout { .. } => "timeout",
        SessionError::Closed => "closed",
        SessionError::Unexpected { .. } | SessionError::NotSent(_) => "protocol",
        SessionError::OtherJournal { .. } => "other_journal",
        SessionError::SameAs { .. } => "same_aggregator",
        SessionError::Limits { .. } => "limits",
        SessionError::Outbox(_) | SessionError::Reader => "spool",
    }
}
