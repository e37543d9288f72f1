//! One stream: Hello, Welcome, then batches and skips in order, as many in flight as the window takes.
//!
//! Owns nothing that outlives the stream: what was not acknowledged is read from the spool again by the next one.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use tonic::{Status, Streaming};
use weir_common::crash;
use weir_common::id::hex;
use weir_common::tls::client::{DialError, Link};
use weir_common::tls::failure::Failure;
use weir_proto::v1::aggregator_frame::Frame as Inbound;
use weir_proto::v1::ingest_client::IngestClient;
use weir_proto::v1::refusal::Reason;
use weir_proto::v1::shipper_frame::Frame as Outbound;
use weir_proto::v1::{AggregatorFrame, Batch, Codec, Hello, LossEvent, Refusal, ShipperFrame, Skip, Welcome};
use weir_proto::{PROTOCOL_VERSION, channel};
use weir_schema::SCHEMA_VERSION;

use super::lane::Lane;
use super::reader;
use super::window::{NotSent, Window};
use crate::batch::PAYLOAD_BYTES_MAX;
use crate::spool::{Head, Id, OutboxError, Outgoing, OutgoingBatch, Tombstone, Welcomed};

/// The aggregator's frames are small; a larger one is not believed.
const FRAME_BYTES_MAX: usize = 64 * 1024;
/// What a Batch adds to its payload, at most.
const ENVELOPE_BYTES: usize = 1024;
/// Frames handed to the connection ahead of its own flow control.
const QUEUE_FRAMES: usize = 2;

/// How a stream ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Everything of a closed epoch is acknowledged: on to the next one.
    EpochDone,
    /// The spool changed its numbers, or there was nothing to send: say Hello again.
    Again,
}

/// How a stream ended otherwise.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// No connection.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// TLS ended the connection, or its certificate is not accepted any more.
    #[error("TLS with the aggregator: {0}")]
    Tls(Failure),
    /// No HTTP/2 on it.
    #[error("speak HTTP/2 with aggregator {address}")]
    Channel {
        /// Where.
        address: String,
        /// What is wrong.
        source: tonic::transport::Error,
    },
    /// The stream broke.
    #[error("stream to the aggregator broke")]
    Status(#[from] Box<Status>),
    /// The other side is silent.
    #[error("no {what} from the aggregator within {after:?}")]
    Timeout {
        /// What was awaited.
        what: &'static str,
        /// How long.
        after: Duration,
    },
    /// The other side closed the stream without a word.
    #[error("the aggregator closed the stream")]
    Closed,
    /// The aggregator says why.
    #[error("the aggregator refused ({}): {message}", reason.as_str_name())]
    Refused {
        /// The reason.
        reason: Reason,
        /// Its words.
        message: String,
        /// The batch or skip meant, or 0.
        number: u64,
    },
    /// A frame that has no place here.
    #[error("the aggregator sent {what}")]
    Unexpected {
        /// What it was.
        what: &'static str,
    },
    /// It acknowledged what was not sent.
    #[error(transparent)]
    NotSent(#[from] NotSent),
    /// It is not the one that batches went to before.
    #[error("the aggregator has journal {met}, batches of this spool went to {bound}")]
    OtherJournal {
        /// Bound to.
        bound: String,
        /// Met.
        met: String,
    },
    /// It is the same as another one.
    #[error("it is the same aggregator as {aggregator}: both have journal {journal}")]
    SameAs {
        /// The other's name.
        aggregator: String,
        /// Of both.
        journal: String,
    },
    /// Its limits cannot be kept.
    #[error("the aggregator takes payloads of {payload_bytes_max} bytes, the spool has one of {needed}")]
    Limits {
        /// Its limit.
        payload_bytes_max: u64,
        /// What the spool holds.
        needed: u64,
    },
    /// The spool could not be read or marked.
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    /// The reading thread is gone.
    #[error("the spool's reader ended")]
    Reader,
}

impl From<Status> for SessionError {
    fn from(status: Status) -> Self {
        Self::Status(Box::new(status))
    }
}

/// Runs one stream. `welcomed` is set once the aggregator took this shipper in.
pub(super) async fn run(
    lane: &Lane,
    address: &str,
    head: &Head,
    welcomed: &mut bool,
) -> Result<Ended, SessionError> {
    let link = lane.dialer.dial(address, lane.options.connect_timeout).await?;
    let (server, failure) = (link.server(), link.failure());
    let ended = tokio::select! {
        ended = converse(lane, address, link, head, welcomed) => ended,
        refused = lane.dialer.refused(server.as_ref()) => Err(SessionError::Tls(refused)),
    };
    match (ended, failure.met()) {
        // What TLS said is why the rest failed.
        (Err(_), Some(failure)) => Err(SessionError::Tls(failure)),
        (ended, _) => ended,
    }
}

/// The same on a connection.
async fn converse(
    lane: &Lane,
    address: &str,
    link: Link,
    head: &Head,
    welcomed: &mut bool,
) -> Result<Ended, SessionError> {
    let (outbound, frames) = mpsc::channel(QUEUE_FRAMES);
    let mut inbound = open(lane, address, link, head, &outbound, frames).await?;
    let patience = lane.options.hello_timeout;
    let first = timeout(patience, inbound.message())
        .await
        .map_err(|_| SessionError::Timeout { what: "Welcome", after: patience })??;
    let welcome = match first.ok_or(SessionError::Closed)?.frame {
        Some(Inbound::Welcome(welcome)) => welcome,
        Some(Inbound::Refusal(refusal)) => return Err(refused(&refusal)),
        Some(Inbound::Ack(_)) => return Err(SessionError::Unexpected { what: "an Ack before Welcome" }),
        None => return Err(SessionError::Unexpected { what: "an empty or unknown frame" }),
    };
    let next = match settle(lane, head, &welcome).await? {
        Settled::From(next) => next,
        Settled::Ended(ended) => return Ok(ended),
    };
    *welcomed = true;
    lane.welcomed(address, head, &welcome).await?;
    if head.probe {
        return Ok(Ended::Again);
    }
    let batches_max = (welcome.window_batches as usize).min(lane.options.window_batches);
    let bytes_max = welcome.window_bytes.min(lane.options.window_bytes);
    let flow = Flow {
        lane,
        epoch: head.epoch,
        outbound,
        window: Window::new(batches_max, bytes_max, next - 1),
        payload_bytes_max: welcome.payload_bytes_max,
        queue: VecDeque::new(),
        ended: false,
    };
    flow.run(inbound, reader::spawn(lane.outbox.clone(), head.epoch, next)).await
}

async fn open(
    lane: &Lane,
    address: &str,
    link: Link,
    head: &Head,
    outbound: &mpsc::Sender<ShipperFrame>,
    frames: mpsc::Receiver<ShipperFrame>,
) -> Result<Streaming<AggregatorFrame>, SessionError> {
    let options = &lane.options;
    let tune = |endpoint: Endpoint| {
        endpoint
            .http2_keep_alive_interval(options.keepalive_interval)
            .keep_alive_timeout(options.keepalive_timeout)
            .keep_alive_while_idle(true)
    };
    let channel = timeout(options.connect_timeout, channel::over(link, tune))
        .await
        .map_err(|_| SessionError::Timeout { what: "connection", after: options.connect_timeout })?
        .map_err(|source| SessionError::Channel { address: address.to_owned(), source })?;
    let mut ingest = IngestClient::new(channel)
        .max_decoding_message_size(FRAME_BYTES_MAX)
        .max_encoding_message_size(PAYLOAD_BYTES_MAX + ENVELOPE_BYTES);
    let hello = Hello {
        protocol_version: PROTOCOL_VERSION,
        shipper_id: lane.outbox.shipper().to_vec(),
        epoch: head.epoch.to_vec(),
        node: options.node.clone(),
        cluster: options.cluster.clone(),
        first_number: head.first_number,
        last_number: head.last_number,
        journal_id: head.journal.map(|id| id.to_vec()).unwrap_or_default(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    send(outbound, Outbound::Hello(hello)).await?;
    let patience = options.hello_timeout;
    let response = timeout(patience, ingest.stream(ReceiverStream::new(frames)))
        .await
        .map_err(|_| SessionError::Timeout { what: "answer to Hello", after: patience })??;
    Ok(response.into_inner())
}

/// What a Welcome leads to.
enum Settled {
    From(u64),
    Ended(Ended),
}

/// Checks a Welcome.
async fn settle(lane: &Lane, head: &Head, welcome: &Welcome) -> Result<Settled, SessionError> {
    let journal = Id::try_from(welcome.journal_id.as_slice()).map_err(|_| SessionError::Unexpected {
        what: "a Welcome whose journal id does not have 16 bytes",
    })?;
    if welcome.window_batches == 0 || welcome.window_bytes == 0 {
        return Err(SessionError::Unexpected { what: "a Welcome without a window" });
    }
    let (outbox, epoch, journaled) = (lane.outbox.clone(), head.epoch, welcome.last_number);
    // It may sync the state file.
    let settled = tokio::task::spawn_blocking(move || outbox.welcome(&epoch, journal, journaled));
    match settled.await.map_err(|_| SessionError::Reader)?? {
        Welcomed::From(next) => Ok(Settled::From(next)),
        Welcomed::Renumbered => Ok(Settled::Ended(Ended::Again)),
        Welcomed::NotOurs => Ok(Settled::Ended(Ended::EpochDone)),
        Welcomed::OtherJournal { bound } => {
            Err(SessionError::OtherJournal { bound: hex(&bound), met: hex(&journal) })
        }
        Welcomed::SameAs { aggregator } => Err(SessionError::SameAs { aggregator, journal: hex(&journal) }),
    }
}

/// A stream after its Welcome.
struct Flow<'a> {
    lane: &'a Lane,
    epoch: Id,
    outbound: mpsc::Sender<ShipperFrame>,
    window: Window,
    payload_bytes_max: u64,
    /// Read and not yet sent: the rest of one record.
    queue: VecDeque<OutgoingBatch>,
    ended: bool,
}

impl Flow<'_> {
    async fn run(
        mut self,
        mut inbound: Streaming<AggregatorFrame>,
        mut reader: mpsc::Receiver<Result<Outgoing, OutboxError>>,
    ) -> Result<Ended, SessionError> {
        let patience = self.lane.options.ack_timeout;
        let mut progress = Instant::now();
        let outbound = self.outbound.clone();
        loop {
            if self.ended && self.queue.is_empty() && self.window.is_empty() {
                return Ok(Ended::EpochDone);
            }
            self.lane.unacked(self.window.len());
            let may_send =
                self.queue.front().is_some_and(|batch| self.window.takes(batch.payload.len() as u64));
            let may_read = self.queue.is_empty() && !self.ended && self.window.takes(0);
            tokio::select! {
                biased;
                frame = inbound.message() => {
                    self.take(frame?.ok_or(SessionError::Closed)?)?;
                    progress = Instant::now();
                }
                permit = outbound.reserve(), if may_send => {
                    let permit = permit.map_err(|_| SessionError::Closed)?;
                    if self.window.is_empty() {
                        progress = Instant::now();
                    }
                    if let Some(batch) = self.queue.pop_front() {
                        self.window.sent(batch.number, batch.payload.len() as u64);
                        self.lane.metrics.sent_batches.inc();
                        self.lane.metrics.sent_bytes.inc_by(batch.payload.len() as u64);
                        permit.send(frame(Outbound::Batch(to_wire(batch))));
                        crash::point("client.sent");
                    }
                }
                read = reader.recv(), if may_read => {
                    if self.window.is_empty() {
                        progress = Instant::now();
                    }
                    match read.ok_or(SessionError::Reader)?? {
                        Outgoing::Batches(batches) => self.queue(batches)?,
                        Outgoing::End => self.ended = true,
                        Outgoing::Skip(tombstone) => self.skip(&tombstone).await?,
                    }
                }
                () = tokio::time::sleep_until(progress + patience), if !self.window.is_empty() => {
                    return Err(SessionError::Timeout { what: "Ack", after: patience });
                }
            }
        }
    }

    fn take(&mut self, frame: AggregatorFrame) -> Result<(), SessionError> {
        match frame.frame {
            Some(Inbound::Ack(ack)) => {
                self.window.acked(ack.number)?;
                // Sent numbers exist, so this cannot be beyond the last.
                if self.lane.outbox.ack(&self.epoch, ack.number).is_err() {
                    return Err(SessionError::Unexpected { what: "an Ack beyond the last number" });
                }
                crash::point("client.acked");
                Ok(())
            }
            Some(Inbound::Refusal(refusal)) => Err(refused(&refusal)),
            Some(Inbound::Welcome(_)) => Err(SessionError::Unexpected { what: "a second Welcome" }),
            None => Err(SessionError::Unexpected { what: "an empty or unknown frame" }),
        }
    }

    fn queue(&mut self, batches: Vec<OutgoingBatch>) -> Result<(), SessionError> {
        let payload_bytes_max = self.payload_bytes_max;
        let needed = batches.iter().map(|batch| batch.payload.len() as u64).max().unwrap_or(0);
        if needed > payload_bytes_max {
            return Err(SessionError::Limits { payload_bytes_max, needed });
        }
        self.queue.extend(batches);
        Ok(())
    }

    async fn skip(&mut self, tombstone: &Tombstone) -> Result<(), SessionError> {
        let Tombstone { from, to, stage, reason, events, bytes, first_ns, last_ns } = *tombstone;
        let loss = LossEvent {
            stage: stage.code(),
            reason: reason.code(),
            count: events,
            bytes,
            first_time_ns: first_ns,
            last_time_ns: last_ns,
        };
        send(&self.outbound, Outbound::Skip(Skip { from_number: from, to_number: to, loss: Some(loss) }))
            .await?;
        self.window.sent(to, 0);
        self.lane.metrics.skips_sent.inc();
        crash::point("client.skipped");
        Ok(())
    }
}

fn to_wire(batch: OutgoingBatch) -> Batch {
    let OutgoingBatch { number, payload, events } = batch;
    Batch { number, schema_version: SCHEMA_VERSION, codec: Codec::Zstd.into(), payload, events }
}

async fn send(outbound: &mpsc::Sender<ShipperFrame>, outgoing: Outbound) -> Result<(), SessionError> {
    outbound.send(frame(outgoing)).await.map_err(|_| SessionError::Closed)
}

fn frame(frame: Outbound) -> ShipperFrame {
    ShipperFrame { frame: Some(frame) }
}

fn refused(refusal: &Refusal) -> SessionError {
    let reason = refusal.reason();
    let message: String = refusal.message.chars().take(1024).collect();
    SessionError::Refused { reason, message, number: refusal.number }
}
