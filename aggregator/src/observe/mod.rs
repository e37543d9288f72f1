//! The Observe service: a live view of what is journaled, for people and tools.
//!
//! Reads the journal as sinks do and never slows ingestion: each viewer has a small queue, and what does not fit is
//! counted as missed. Owns no events.

mod json;

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status};
use weir_common::tls::identity::Identity;
use weir_proto::v1::observe_server::Observe;
use weir_proto::v1::{ObserveReply, ObserveRequest, ObservedEvent, SinkStatus, Status as Counters};
use weir_schema::Kind;

use crate::ingest::peer::Peer;
use crate::ingest::registry::Registry;
use crate::journal::{JournalReader, JournalRecord, ReadError, SinkCursors};
use crate::metrics::{KindLabel, Metrics};

pub use json::event_json;

/// What every viewer needs.
pub struct ObserveShared {
    /// From any position.
    pub reader: JournalReader,
    /// The first position that is on disk now.
    pub cursors: SinkCursors,
    /// For the number of shippers.
    pub registry: Arc<Registry>,
    /// Counters.
    pub metrics: Metrics,
    /// Ends all viewers.
    pub draining: CancellationToken,
    /// The tasks of the viewers.
    pub tasks: TaskTracker,
}

/// The gRPC service.
#[derive(Clone)]
pub struct ObserveService(pub Arc<ObserveShared>);

#[tonic::async_trait]
impl Observe for ObserveService {
    type ObserveStream = ReceiverStream<Result<ObserveReply, Status>>;

    async fn observe(
        &self,
        request: Request<ObserveRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let peer = peer.ok_or_else(|| Status::internal("the connection is not known"))?;
        match &peer.certificate {
            None | Some(Ok(Identity::Observer { .. })) => {}
            Some(Ok(Identity::Node { .. })) => {
                return Err(Status::permission_denied(
                    "the certificate is a node's: it may send, not watch; an observer's is needed",
                ));
            }
            Some(Err(none)) => return Err(Status::permission_denied(none.to_string())),
        }
        let ObserveRequest { kinds, last, follow } = request.into_inner();
        let kinds = parse_kinds(&kinds)?;
        if last > LAST_MAX {
            return Err(Status::invalid_argument(format!("last is {last}, expected at most {LAST_MAX}")));
        }
        let shared = Arc::clone(&self.0);
        if shared.metrics.observe_viewers.get() >= VIEWERS_MAX {
            return Err(Status::resource_exhausted(format!("{VIEWERS_MAX} viewers are watching already")));
        }
        let (replies, stream) = mpsc::channel(REPLIES);
        let tasks = shared.tasks.clone();
        tasks.spawn(async move {
            let viewers = shared.metrics.observe_viewers.clone();
            viewers.inc();
            let mut viewer = Viewer { kinds, missed: 0, replies, shared: &shared };
            tokio::select! {
                () = viewer.serve(last as usize, follow) => {}
                () = shared.draining.cancelled() => {}
                () = peer.revoked.cancelled() => {}
            }
            viewers.dec();
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

fn parse_kinds(names: &[String]) -> Result<Vec<Kind>, Status> {
    if names.is_empty() {
        return Ok(Kind::ALL.to_vec());
    }
    let kind = |name: &String| {
        let known = || Kind::ALL.map(Kind::as_str).join(", ");
        Kind::from_name(name)
            .ok_or_else(|| Status::invalid_argument(format!("kind {name:?}, expected one of {}", known())))
    };
    names.iter().take(Kind::ALL.len() * 2).map(kind).collect()
}

struct Viewer<'a> {
    kinds: Vec<Kind>,
    /// Events not shown since the last reply.
    missed: u64,
    replies: mpsc::Sender<Result<ObserveReply, Status>>,
    shared: &'a ObserveShared,
}

impl Viewer<'_> {
    async fn serve(&mut self, last: usize, follow: bool) {
        let mut reader = self.shared.reader.clone();
        let end = reader.durable_position();
        let history = self.history(&mut reader, end, last).await;
        // The history waits for its viewer: it is bounded, and what a viewer asked for it gets.
        if self.send_all(history).await.is_err() || !follow {
            return;
        }
        let mut position = end;
        loop {
            let replies = self.replies.clone();
            let record = tokio::select! {
                record = reader.next(position) => record,
                // What passed is told once there is room for it, also when nothing comes after.
                place = replies.reserve(), if self.missed > 0 => {
                    let Ok(place) = place else { return };
                    place.send(Ok(self.reply(Vec::new())));
                    continue;
                }
                () = self.replies.closed() => return,
            };
            match record {
                Ok(Some(record)) => {
                    position = record.position + 1;
                    self.offer(&record);
                }
                Ok(None) => return,
                Err(ReadError::Damaged { resume_at: next, .. } | ReadError::Removed { first: next, .. })
                    if next > position =>
                {
                    position = next;
                }
                Err(error) => {
                    let _ = self.replies.send(Err(Status::internal(error.to_string()))).await;
                    return;
                }
            }
        }
    }

    /// The last `count` events before `end`, oldest first. Holds one record at a time, and looks only so far back.
    async fn history(&self, reader: &mut JournalReader, end: u64, count: usize) -> Vec<ObservedEvent> {
        // Newest record first, each with its own rows in order.
        let mut found: Vec<Vec<ObservedEvent>> = Vec::new();
        let (mut missing, mut bytes) = (count, 0);
        for position in (1..end).rev().take(HISTORY_RECORDS_MAX) {
            if missing == 0 || bytes >= HISTORY_BYTES_MAX {
                break;
            }
            let record = tokio::select! {
                record = reader.next(position) => record,
                () = self.replies.closed() => break,
            };
            // What is damaged or removed is not there to be shown.
            let Ok(Some(record)) = record else { break };
            bytes += record.memory_bytes();
            let wanted = self.wanted(&record);
            let shown = wanted.min(missing);
            if shown > 0 {
                found.push(self.events(&record, wanted - shown, shown));
                missing -= shown;
            }
        }
        found.into_iter().rev().flatten().collect()
    }

    fn wanted(&self, record: &JournalRecord) -> usize {
        let wanted = record.batches.iter().filter(|(kind, _)| self.kinds.contains(kind));
        wanted.map(|(_, batch)| batch.num_rows()).sum()
    }

    /// The wanted events of a record, at most `max` after the first `skip`.
    fn events(&self, record: &JournalRecord, skip: usize, max: usize) -> Vec<ObservedEvent> {
        let wanted = record.batches.iter().filter(|(kind, _)| self.kinds.contains(kind));
        let rows = wanted.flat_map(|(kind, batch)| (0..batch.num_rows()).map(move |row| (*kind, batch, row)));
        rows.skip(skip)
            .take(max)
            .map(|(kind, batch, row)| ObservedEvent {
                kind: kind.as_str().to_owned(),
                journal_position: record.position,
                json: event_json(kind, batch, row),
            })
            .collect()
    }

    async fn send_all(&mut self, mut events: Vec<ObservedEvent>) -> Result<(), ()> {
        loop {
            let rest = events.split_off(events.len().min(REPLY_EVENTS_MAX));
            let reply = self.reply(events);
            self.replies.send(Ok(reply)).await.map_err(|_| ())?;
            if rest.is_empty() {
                return Ok(());
            }
            events = rest;
        }
    }

    /// Shows what a record has if the viewer keeps up, and else counts it.
    fn offer(&mut self, record: &JournalRecord) {
        let wanted = self.wanted(record) as u64;
        let Ok(place) = self.replies.clone().try_reserve_owned() else {
            self.miss(wanted);
            return;
        };
        if wanted == 0 && self.missed == 0 {
            return;
        }
        let events = self.events(record, 0, REPLY_EVENTS_MAX);
        self.miss(wanted - events.len() as u64);
        place.send(Ok(self.reply(events)));
    }

    fn miss(&mut self, events: u64) {
        self.missed += events;
        self.shared.metrics.observe_missed_events.inc_by(events);
    }

    fn reply(&mut self, events: Vec<ObservedEvent>) -> ObserveReply {
        let ObserveShared { cursors, registry, metrics, .. } = self.shared;
        let journaled =
            |kind: Kind| metrics.journaled_events.get_or_create(&KindLabel { kind: kind.as_str() }).get();
        let sinks = cursors.status().into_iter().map(|sink| SinkStatus {
            sink: sink.spec.name.to_owned(),
            lag_records: sink.lag_records,
            lag_events: sink.lag_events,
        });
        let status = Counters {
            journaled_events: Kind::ALL.into_iter().map(journaled).sum(),
            journaled_bytes: metrics.journaled_bytes.get(),
            lost_events: metrics.lost_total(),
            shippers_connected: registry.connected() as u64,
            sinks: sinks.collect(),
        };
        ObserveReply { events, missed: std::mem::take(&mut self.missed), status: Some(status) }
    }
}

/// The most events of the past that can be asked for.
const LAST_MAX: u32 = 10_000;
/// How far back they are looked for.
const HISTORY_RECORDS_MAX: usize = 10_000;
/// The same in bytes of decoded records: a kind that is rare is not looked for in all of the journal.
const HISTORY_BYTES_MAX: usize = 512 << 20;
/// Viewers at a time.
const VIEWERS_MAX: i64 = 64;
/// Replies waiting for a viewer.
const REPLIES: usize = 16;
/// Events of one reply: about 1 MiB of JSON.
const REPLY_EVENTS_MAX: usize = 1024;
