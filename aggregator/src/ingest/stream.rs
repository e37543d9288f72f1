//! One stream of one shipper: Hello and Welcome, then batches and skips in, acknowledgements out.
//!
//! Reading and acknowledging run side by side in one task; a peer that does not read its acknowledgements holds up
//! nobody but itself. However a stream ends, what was accepted from it will be journaled.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};
use weir_common::{clock, crash};
use weir_proto::v1::refusal::Reason;
use weir_proto::v1::{
    Ack, AggregatorFrame, Batch, Refusal, ShipperFrame, Skip, Welcome, aggregator_frame, shipper_frame,
};

use super::hello::Refused;
use super::peer::Peer;
use super::registry::Seat;
use super::sequence::Verdict;
use super::{IngestShared, check, decode};
use crate::accepted::{Accepted, Content, MemoryShare, Origin};
use crate::metrics::{self, Metrics};

type Outbound = mpsc::Sender<Result<AggregatorFrame, Status>>;

/// How a stream's reading ended.
enum End {
    /// The shipper has sent all that it wants to send.
    Closed,
    /// The peer is gone.
    Gone,
    Refused(Refused),
}

/// Serves a stream to its end.
pub(super) async fn serve(
    shared: &IngestShared,
    mut inbound: Streaming<ShipperFrame>,
    outbound: Outbound,
    peer: &Peer,
) {
    let greeted = tokio::select! {
        greeted = greet(shared, &mut inbound, peer) => greeted,
        () = shared.draining.cancelled() => Err(End::Refused(draining())),
        () = peer.revoked.cancelled() => Err(End::Refused(revoked())),
        () = outbound.closed() => Err(End::Gone),
    };
    let origin = match greeted {
        Ok(origin) => Arc::new(origin),
        Err(end) => {
            if let End::Refused(refused) = end {
                refuse(shared, &outbound, refused, peer).await;
            }
            return;
        }
    };
    let seat = shared.registry.seat(&origin);
    let mut journaled = seat.journaled.clone();
    let welcome = Welcome {
        journal_id: shared.journal_id().to_vec(),
        last_number: *journaled.borrow_and_update(),
        window_batches: shared.window_batches,
        window_bytes: shared.window_bytes,
        payload_bytes_max: shared.limits.payload_bytes_max,
        decoded_bytes_max: shared.limits.decoded_bytes_max,
    };
    tracing::debug!(node = origin.node, last_number = welcome.last_number, "shipper connected");
    if send(&outbound, aggregator_frame::Frame::Welcome(welcome)).await.is_err() {
        return;
    }
    let fence = seat.fence.clone();
    let again = Notify::new();
    let mut reader = Reader { shared, origin, seat, again: &again, accepted: 0, window: Window::default() };
    let end = tokio::select! {
        end = reader.read(&mut inbound) => end,
        end = acknowledge(&outbound, &mut journaled, &again, &fence) => end,
        () = fence.cancelled() => End::Refused(superseded()),
        () = shared.draining.cancelled() => End::Refused(draining()),
        () = peer.revoked.cancelled() => End::Refused(revoked()),
        () = outbound.closed() => End::Gone,
    };
    match end {
        End::Gone => {}
        End::Closed => reader.finish(&outbound, None).await,
        End::Refused(refused) => {
            let patience = match refused.reason {
                Reason::Superseded => Duration::ZERO,
                _ if peer.revoked.is_cancelled() => REFUSAL_PATIENCE,
                // The writer has a bound of its own: then the registry lets go of the seat.
                Reason::Draining => Duration::MAX,
                _ => REFUSAL_PATIENCE,
            };
            reader.finish(&outbound, Some(patience)).await;
            refuse(shared, &outbound, refused, peer).await;
        }
    }
}

async fn greet(
    shared: &IngestShared,
    inbound: &mut Streaming<ShipperFrame>,
    peer: &Peer,
) -> Result<Origin, End> {
    let refuse = |message: String| Err(End::Refused(Refused::stream(Reason::Protocol, message)));
    match timeout(shared.hello_timeout, inbound.message()).await {
        Err(_) => refuse(format!("no Hello within {} ms", shared.hello_timeout.as_millis())),
        Ok(Ok(Some(ShipperFrame { frame: Some(shipper_frame::Frame::Hello(hello)) }))) => {
            shared.hello.admit(&hello, peer.certificate.as_ref()).map_err(End::Refused)
        }
        Ok(Ok(Some(ShipperFrame { frame: None }))) => {
            refuse("a frame without content came before Hello".into())
        }
        Ok(Ok(Some(_))) => refuse("a Batch or Skip came before Hello".into()),
        Ok(Ok(None)) => Err(End::Gone),
        Ok(Err(status)) => refuse(bad_frame(&status)),
    }
}

struct Reader<'a> {
    shared: &'a IngestShared,
    origin: Arc<Origin>,
    seat: Seat,
    /// Asks for an acknowledgement although nothing new was journaled.
    again: &'a Notify,
    /// The highest number of this stream that is accepted.
    accepted: u64,
    window: Window,
}

impl Reader<'_> {
    async fn read(&mut self, inbound: &mut Streaming<ShipperFrame>) -> End {
        loop {
            let frame = match inbound.message().await {
                Ok(Some(ShipperFrame { frame: Some(frame) })) => frame,
                Ok(None) => return End::Closed,
                Ok(Some(ShipperFrame { frame: None })) => {
                    return End::Refused(Refused::stream(Reason::Protocol, "a frame has no content"));
                }
                Err(status) => {
                    return End::Refused(Refused::stream(Reason::Protocol, bad_frame(&status)));
                }
            };
            let taken = match frame {
                shipper_frame::Frame::Hello(_) => {
                    Err(Refused::stream(Reason::Protocol, "Hello came twice on one stream"))
                }
                shipper_frame::Frame::Batch(batch) => self.batch(batch).await,
                shipper_frame::Frame::Skip(skip) => self.skip(skip).await,
            };
            if let Err(refused) = taken {
                return End::Refused(refused);
            }
        }
    }

    async fn batch(&mut self, batch: Batch) -> Result<(), Refused> {
        let arrival = Arrival::new(&self.shared.metrics, batch.events.into(), batch.payload.len() as u64);
        let number = batch.number;
        let unit = self.batch_unit(batch).await;
        self.take(arrival, number, number, unit).await
    }

    /// The unit of a new batch; `None` for one that needs no decoding, because the sequence rules decide without.
    async fn batch_unit(&mut self, batch: Batch) -> Result<Option<Accepted>, Refused> {
        let number = batch.number;
        self.number(number, number)?;
        let shared = self.shared;
        self.window.send(number, batch.payload.len() as u64, *self.seat.journaled.borrow(), shared)?;
        if self.seat.judge(number, number) != Verdict::Accept {
            return Ok(None);
        }
        let bad = |error: super::error::BatchError| Refused {
            reason: error.reason(),
            message: format!("batch {number}: {error}"),
            number,
        };
        let envelope = decode::envelope(&batch, &shared.limits).map_err(bad)?;
        let bytes = shared.limits.memory_bytes(envelope.decoded_bytes, envelope.events.into());
        let permits = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX).min(shared.memory_kib);
        let memory = Arc::clone(&shared.memory).acquire_many_owned(permits).await;
        let share = MemoryShare::new(memory.map_err(|_| draining())?, &shared.metrics.undecided_bytes);
        let body = decode::body(&batch, envelope, &shared.limits).map_err(bad)?;
        crash::point("ingest.decoded");
        Ok(Some(Accepted {
            origin: Arc::clone(&self.origin),
            first_number: number,
            last_number: number,
            content: Content::Body(Box::new(body)),
            share: Some(share),
        }))
    }

    async fn skip(&mut self, skip: Skip) -> Result<(), Refused> {
        let arrival = Arrival::new(&self.shared.metrics, 1, 0);
        let (first, last) = (skip.from_number, skip.to_number);
        let unit = self.skip_unit(skip).map(Some);
        self.take(arrival, first, last, unit).await
    }

    fn skip_unit(&self, skip: Skip) -> Result<Accepted, Refused> {
        let Skip { from_number, to_number, loss } = skip;
        self.number(from_number, to_number)?;
        let bad = |message: String| Refused { reason: Reason::BadBatch, message, number: from_number };
        let loss = loss.ok_or_else(|| bad(format!("skip {from_number}..={to_number} has no loss")))?;
        check::check_loss(0, &loss)
            .map_err(|error| bad(format!("skip {from_number}..={to_number}: {error}")))?;
        Ok(Accepted {
            origin: Arc::clone(&self.origin),
            first_number: from_number,
            last_number: to_number,
            content: Content::Skip(loss),
            share: None,
        })
    }

    /// Offers a unit; `None` was judged already.
    async fn take(
        &mut self,
        arrival: Arrival<'_>,
        first: u64,
        last: u64,
        unit: Result<Option<Accepted>, Refused>,
    ) -> Result<(), Refused> {
        let verdict = match unit {
            Ok(Some(unit)) => {
                let place = self.shared.queue.reserve().await.map_err(|_| draining())?;
                let verdict = self.seat.offer(place, unit, clock::now_ns().div_euclid(1_000_000_000));
                crash::point("ingest.queued");
                verdict
            }
            Ok(None) => self.seat.judge(first, last),
            Err(refused) => {
                arrival.refused(refused.reason);
                return Err(refused);
            }
        };
        let refused = match verdict {
            Verdict::Accept | Verdict::AcceptOverlap => {
                arrival.accepted();
                self.accepted = last;
                return Ok(());
            }
            Verdict::Duplicate => {
                arrival.duplicate();
                self.accepted = self.accepted.max(last);
                self.again.notify_one();
                return Ok(());
            }
            Verdict::Gap { expected } => Refused {
                reason: Reason::Gap,
                message: format!(
                    "number {first} came where {expected} is next: a Skip must declare what is missing"
                ),
                number: first,
            },
            Verdict::UnknownEpoch => Refused {
                reason: Reason::UnknownEpoch,
                message: format!(
                    "number {first} came first, but nothing is known of epoch {}: it must begin at 1 or with a Skip from 1",
                    weir_common::id::hex(&self.origin.source.epoch)
                ),
                number: first,
            },
            Verdict::Superseded => superseded(),
            Verdict::Full => {
                Refused::stream(Reason::Identity, "no more shippers can be kept (ingest.shippers_max)")
            }
        };
        arrival.refused(refused.reason);
        Err(refused)
    }

    fn number(&self, first: u64, last: u64) -> Result<(), Refused> {
        if first >= 1 && first <= last && last <= NUMBER_MAX {
            return Ok(());
        }
        let message = format!("numbers {first}..={last}: expected 1 <= first <= last <= {NUMBER_MAX}");
        Err(Refused { reason: Reason::Protocol, message, number: first })
    }

    /// Waits until all that was accepted from this stream is journaled, at most for `patience` or until the writer has
    /// ended, and says what is.
    async fn finish(&mut self, outbound: &Outbound, patience: Option<Duration>) {
        let accepted = self.accepted;
        let journaled = async {
            let _ = self.seat.journaled.wait_for(|journaled| *journaled >= accepted).await;
        };
        tokio::select! {
            _ = timeout(patience.unwrap_or(Duration::MAX), journaled) => {}
            () = outbound.closed() => return,
        }
        let number = *self.seat.journaled.borrow();
        if number > 0 {
            // A peer that is gone does not need it.
            let _ =
                timeout(REFUSAL_PATIENCE, send(outbound, aggregator_frame::Frame::Ack(Ack { number }))).await;
        }
    }
}

/// Sends an acknowledgement whenever more is journaled, or one is asked for.
async fn acknowledge(
    outbound: &Outbound,
    journaled: &mut tokio::sync::watch::Receiver<u64>,
    again: &Notify,
    fence: &CancellationToken,
) -> End {
    loop {
        tokio::select! {
            changed = journaled.changed() => if changed.is_err() {
                // The registry let go of the seat: a newer stream took over, or the writer has ended.
                return End::Refused(if fence.is_cancelled() { superseded() } else { draining() });
            },
            () = again.notified() => {}
        }
        let number = *journaled.borrow_and_update();
        if number > 0 {
            if send(outbound, aggregator_frame::Frame::Ack(Ack { number })).await.is_err() {
                return End::Gone;
            }
            crash::point("ack.sent");
        }
    }
}

/// What was sent beyond the last journaled number; a batch more than the window is borne, because a shipper may count
/// the one that it is sending otherwise.
#[derive(Default)]
struct Window {
    sent: VecDeque<(u64, u64)>,
    bytes: u64,
}

impl Window {
    fn send(
        &mut self,
        number: u64,
        bytes: u64,
        journaled: u64,
        shared: &IngestShared,
    ) -> Result<(), Refused> {
        while self.sent.front().is_some_and(|(number, _)| *number <= journaled) {
            if let Some((_, bytes)) = self.sent.pop_front() {
                self.bytes -= bytes;
            }
        }
        self.sent.push_back((number, bytes));
        self.bytes += bytes;
        let batches_max = shared.window_batches as usize + 1;
        let bytes_max = shared.window_bytes + shared.limits.payload_bytes_max;
        if self.sent.len() <= batches_max && self.bytes <= bytes_max {
            return Ok(());
        }
        let message = format!(
            "{} batches of {} bytes are sent beyond {journaled}, the last one journaled; the window is {} batches and {} bytes",
            self.sent.len(),
            self.bytes,
            shared.window_batches,
            shared.window_bytes
        );
        Err(Refused { reason: Reason::Protocol, message, number })
    }
}

/// A unit that was received and is not decided yet; dropped undecided it counts as refused, so the balance holds.
struct Arrival<'a> {
    metrics: Option<&'a Metrics>,
    events: u64,
}

impl<'a> Arrival<'a> {
    fn new(metrics: &'a Metrics, events: u64, bytes: u64) -> Self {
        metrics.received(events, bytes);
        Self { metrics: Some(metrics), events }
    }

    /// The writer will count it.
    fn accepted(mut self) {
        self.metrics = None;
    }

    fn duplicate(mut self) {
        if let Some(metrics) = self.metrics.take() {
            metrics.duplicate(self.events);
        }
    }

    fn refused(mut self, reason: Reason) {
        if let Some(metrics) = self.metrics.take() {
            metrics.refused(reason_label(reason), self.events);
        }
    }
}

impl Drop for Arrival<'_> {
    fn drop(&mut self) {
        if let Some(metrics) = self.metrics {
            metrics.refused("stream_ended", self.events);
        }
    }
}

async fn refuse(shared: &IngestShared, outbound: &Outbound, refused: Refused, peer: &Peer) {
    let Refused { reason, message, number } = refused;
    let label = metrics::Reason { reason: reason_label(reason) };
    shared.metrics.streams_refused.get_or_create(&label).inc();
    tracing::info!(reason = label.reason, number, message, peer = %peer.address, "stream refused");
    let frame = aggregator_frame::Frame::Refusal(Refusal { reason: reason.into(), message, number });
    // A peer that does not read its refusal does without.
    let _ = timeout(REFUSAL_PATIENCE, send(outbound, frame)).await;
}

async fn send(outbound: &Outbound, frame: aggregator_frame::Frame) -> Result<(), ()> {
    outbound.send(Ok(AggregatorFrame { frame: Some(frame) })).await.map_err(|_| ())
}

fn bad_frame(status: &Status) -> String {
    format!("the frame can't be read: {}", status.message())
}

fn draining() -> Refused {
    Refused::stream(Reason::Draining, "the aggregator is draining; come back")
}

fn revoked() -> Refused {
    Refused::stream(Reason::Draining, "the certificate is not accepted any more; come back with a new one")
}

fn superseded() -> Refused {
    Refused::stream(Reason::Superseded, "a newer stream of the same shipper took over")
}

/// The metric's label of a wire reason.
fn reason_label(reason: Reason) -> &'static str {
    match reason {
        Reason::Unspecified => "unspecified",
        Reason::Protocol => "protocol",
        Reason::ProtocolVersion => "protocol_version",
        Reason::SchemaVersion => "schema_version",
        Reason::Gap => "gap",
        Reason::UnknownEpoch => "unknown_epoch",
        Reason::OtherJournal => "other_journal",
        Reason::BadBatch => "bad_batch",
        Reason::Superseded => "superseded",
        Reason::Identity => "identity",
        Reason::Draining => "draining",
    }
}

/// `event_id` has 42 bits for the number.
const NUMBER_MAX: u64 = (1 << 42) - 1;
/// How long a stream that is refused waits for the acknowledgement of what it sent before, and for its peer.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(2);
