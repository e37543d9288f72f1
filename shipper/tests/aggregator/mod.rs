//! An aggregator in memory: keeps to the protocol's rules, or breaks them as told.

use std::collections::HashMap;
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};
use weir_proto::v1::aggregator_frame::Frame as Out;
use weir_proto::v1::ingest_server::{Ingest, IngestServer};
use weir_proto::v1::refusal::Reason;
use weir_proto::v1::shipper_frame::Frame as In;
use weir_proto::v1::{
    Ack, AggregatorFrame, Batch, BatchBody, Hello, LossEvent, Refusal, ShipperFrame, Skip, Welcome,
};
use weir_schema::values::LossReason;

/// How it behaves.
#[derive(Clone, Debug)]
pub(crate) struct Manner {
    /// Ends each stream after this many frames; before the acknowledgement every other time.
    pub(crate) break_after: Option<u32>,
    /// Takes nothing more after this many frames over all streams.
    pub(crate) stop_after: Option<u32>,
    pub(crate) window_batches: u32,
    /// Acknowledges when so many are unacknowledged, or 0: at once.
    pub(crate) ack_every: u64,
    /// Refuses this number whenever it comes as a batch.
    pub(crate) bad_batch: Option<u64>,
    /// Forgets the epoch once this number is journaled.
    pub(crate) forget_epoch_at: Option<u64>,
    /// Misbehaves so, on the first so many streams.
    pub(crate) hostile: Option<(Hostile, u32)>,
}

impl Default for Manner {
    fn default() -> Self {
        Self {
            break_after: None,
            stop_after: None,
            window_batches: 16,
            ack_every: 0,
            bad_batch: None,
            forget_epoch_at: None,
            hostile: None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hostile {
    AckBeyondSent,
    ShortJournalId,
    NoWindow,
    EmptyFrame,
    SecondWelcome,
    AckFirst,
    Silence,
}

#[derive(Debug, Default)]
struct Journal {
    id: Vec<u8>,
    last: HashMap<(Vec<u8>, Vec<u8>), u64>,
    ids: Vec<u64>,
    losses: Vec<LossEvent>,
    streams: u32,
    frames: u32,
    in_flight_max: u64,
    forgotten: bool,
}

pub(crate) struct Aggregator {
    pub(crate) address: String,
    journal: Arc<Mutex<Journal>>,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Aggregator {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Aggregator {
    pub(crate) async fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let journal = Journal { id: weir_common::id::random_id().to_vec(), ..Journal::default() };
        let journal = Arc::new(Mutex::new(journal));
        let service = Service { manner, journal: Arc::clone(&journal) };
        let service = IngestServer::new(service).max_decoding_message_size(8 << 20);
        let server = tonic::transport::Server::builder().add_service(service);
        let server = tokio::spawn(async move {
            let _ = server.serve_with_incoming(TcpListenerStream::new(listener)).await;
        });
        Self { address, journal, server }
    }

    pub(crate) fn ids(&self) -> Vec<u64> {
        let mut ids = self.journal.lock().unwrap().ids.clone();
        ids.sort_unstable();
        ids
    }

    pub(crate) fn has_exactly(&self, range: Range<u64>) {
        let ids = self.ids();
        assert!(ids.iter().copied().eq(range.clone()), "{} ids for {range:?}", ids.len());
    }

    pub(crate) fn lost(&self, reason: LossReason) -> u64 {
        let journal = self.journal.lock().unwrap();
        let of = journal.losses.iter().filter(|loss| loss.reason == reason.code());
        of.map(|loss| loss.count.expect("a known count")).sum()
    }

    pub(crate) fn in_flight_max(&self) -> u64 {
        self.journal.lock().unwrap().in_flight_max
    }
}

struct Service {
    manner: Manner,
    journal: Arc<Mutex<Journal>>,
}

#[tonic::async_trait]
impl Ingest for Service {
    type StreamStream = Pin<Box<dyn Stream<Item = Result<AggregatorFrame, Status>> + Send>>;

    async fn stream(
        &self,
        request: Request<Streaming<ShipperFrame>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let (frames, out) = mpsc::channel(64);
        let stream = OneStream {
            manner: self.manner.clone(),
            journal: Arc::clone(&self.journal),
            frames,
            key: Default::default(),
            acked: 0,
            number: 0,
        };
        tokio::spawn(async move {
            let _ = stream.run(request.into_inner()).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(out))))
    }
}

struct OneStream {
    manner: Manner,
    journal: Arc<Mutex<Journal>>,
    frames: mpsc::Sender<Result<AggregatorFrame, Status>>,
    key: (Vec<u8>, Vec<u8>),
    acked: u64,
    number: u32,
}

impl OneStream {
    async fn run(mut self, mut inbound: Streaming<ShipperFrame>) -> Option<()> {
        let Some(In::Hello(hello)) = inbound.message().await.ok()??.frame else {
            panic!("Hello comes first")
        };
        self.number = {
            let mut journal = self.journal.lock().unwrap();
            journal.streams += 1;
            journal.streams
        };
        let hostile =
            self.manner.hostile.filter(|(_, streams)| self.number <= *streams).map(|(hostile, _)| hostile);
        self.hello(&hello, hostile).await?;
        let mut taken = 0;
        while let Some(frame) = inbound.message().await.ok()? {
            taken += 1;
            let stop = {
                let mut journal = self.journal.lock().unwrap();
                journal.frames += 1;
                self.manner.stop_after.is_some_and(|after| journal.frames > after)
            };
            if stop {
                return None;
            }
            let last = match frame.frame? {
                In::Batch(batch) => self.batch(&batch).await?,
                In::Skip(skip) => self.skip(&skip),
                In::Hello(_) => panic!("a second Hello"),
            };
            let breaks = self.manner.break_after.is_some_and(|after| taken >= after);
            if breaks && self.number.is_multiple_of(2) {
                return None;
            }
            match hostile {
                Some(Hostile::Silence) => continue,
                Some(Hostile::AckBeyondSent) => self.send(Out::Ack(Ack { number: last + 1_000_000 })).await?,
                Some(Hostile::EmptyFrame) => {
                    self.frames.send(Ok(AggregatorFrame { frame: None })).await.ok()?;
                }
                Some(Hostile::SecondWelcome) => self.send(Out::Welcome(Welcome::default())).await?,
                _ => {}
            }
            if last - self.acked >= self.manner.ack_every {
                self.acked = last;
                self.send(Out::Ack(Ack { number: last })).await?;
            }
            if breaks {
                return None;
            }
        }
        Some(())
    }

    async fn hello(&mut self, hello: &Hello, hostile: Option<Hostile>) -> Option<()> {
        self.key = (hello.shipper_id.clone(), hello.epoch.clone());
        let (id, known) = {
            let journal = self.journal.lock().unwrap();
            (journal.id.clone(), journal.last.get(&self.key).copied())
        };
        if known.is_none() && hello.first_number > 1 {
            return self.refuse(Reason::UnknownEpoch, 0).await;
        }
        self.acked = known.unwrap_or(0);
        let mut welcome = Welcome {
            journal_id: id,
            last_number: self.acked,
            window_batches: self.manner.window_batches,
            window_bytes: 1 << 20,
            payload_bytes_max: 4 << 20,
            decoded_bytes_max: 16 << 20,
        };
        match hostile {
            Some(Hostile::ShortJournalId) => welcome.journal_id.truncate(5),
            Some(Hostile::NoWindow) => welcome.window_batches = 0,
            Some(Hostile::AckFirst) => self.send(Out::Ack(Ack { number: 1 })).await?,
            _ => {}
        }
        self.send(Out::Welcome(welcome)).await
    }

    async fn batch(&mut self, batch: &Batch) -> Option<u64> {
        if self.manner.bad_batch == Some(batch.number) {
            self.refuse(Reason::BadBatch, batch.number).await?;
        }
        let body = zstd::bulk::decompress(&batch.payload, 16 << 20).unwrap();
        let flows = BatchBody::decode(body.as_slice()).unwrap().flows.unwrap();
        assert_eq!(flows.rows, batch.events);
        if self.journal(batch, &flows.flow_id_low) {
            self.send(Out::Ack(Ack { number: batch.number })).await?;
            return None;
        }
        Some(batch.number)
    }

    /// Returns whether the epoch was forgotten.
    fn journal(&self, batch: &Batch, ids: &[u64]) -> bool {
        let mut journal = self.journal.lock().unwrap();
        let in_flight = batch.number.saturating_sub(self.acked);
        journal.in_flight_max = journal.in_flight_max.max(in_flight);
        let last = journal.last.entry(self.key.clone()).or_default();
        if batch.number > *last {
            assert_eq!(batch.number, *last + 1, "a gap without a skip");
            *last = batch.number;
            // The column is left out when the only id is 0.
            journal.ids.extend(if ids.is_empty() { &[0] } else { ids });
        }
        let forgets = self.manner.forget_epoch_at == Some(batch.number) && !journal.forgotten;
        if forgets {
            journal.forgotten = true;
            journal.last.remove(&self.key);
        }
        forgets
    }

    fn skip(&mut self, skip: &Skip) -> u64 {
        let mut journal = self.journal.lock().unwrap();
        let last = journal.last.entry(self.key.clone()).or_default();
        if skip.to_number > *last {
            assert_eq!(skip.from_number, *last + 1, "a skip out of order");
            *last = skip.to_number;
            journal.losses.push(skip.loss.expect("a loss"));
        }
        skip.to_number
    }

    async fn refuse(&self, reason: Reason, number: u64) -> Option<()> {
        let message = "as the test says".to_owned();
        self.send(Out::Refusal(Refusal { reason: reason.into(), message, number })).await?;
        None
    }

    async fn send(&self, frame: Out) -> Option<()> {
        self.frames.send(Ok(AggregatorFrame { frame: Some(frame) })).await.ok()
    }
}
