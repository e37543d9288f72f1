//! Ingest: shippers' streams, from the socket to the queue of the journal's writer.
//!
//! Owns limits, checks, sequence rules and acknowledgements. Writes nothing itself: a unit is acknowledged when the
//! registry is told that the writer has synced it.

pub mod check;
pub mod decode;
pub mod error;
pub mod handshake;
pub mod hello;
pub mod limits;
pub mod listener;
pub mod peer;
pub mod registry;
mod scan;
pub mod sequence;
mod stream;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};
use weir_proto::v1::ingest_server::Ingest;
use weir_proto::v1::{AggregatorFrame, ShipperFrame};

use crate::accepted::{Accepted, Id};
use crate::metrics::{Metrics, Reason};
use hello::HelloRules;
use limits::Limits;
use peer::Peer;
use registry::Registry;

/// What every stream needs.
pub struct IngestShared {
    /// Of one batch.
    pub limits: Limits,
    /// How many batches may be sent beyond the last acknowledgement.
    pub window_batches: u32,
    /// How many bytes of payload may be.
    pub window_bytes: u64,
    /// Who may speak.
    pub hello: HelloRules,
    /// How long a stream may take for its Hello.
    pub hello_timeout: Duration,
    /// Open streams, at most.
    pub streams_max: u32,
    /// A permit a stream.
    pub streams: Arc<Semaphore>,
    /// A permit a KiB of undecided units.
    pub memory: Arc<Semaphore>,
    /// All of those permits.
    pub memory_kib: u32,
    /// Sequence rules and acknowledgements.
    pub registry: Arc<Registry>,
    /// To the writer.
    pub queue: mpsc::Sender<Accepted>,
    /// Counters.
    pub metrics: Metrics,
    /// No more is read once this is cancelled.
    pub draining: CancellationToken,
    /// The tasks of the streams.
    pub tasks: TaskTracker,
}

impl IngestShared {
    /// The journal that batches go to.
    pub fn journal_id(&self) -> Id {
        self.hello.journal_id
    }
}

/// The gRPC service.
#[derive(Clone)]
pub struct IngestService(pub Arc<IngestShared>);

#[tonic::async_trait]
impl Ingest for IngestService {
    type StreamStream = ReceiverStream<Result<AggregatorFrame, Status>>;

    async fn stream(
        &self,
        request: Request<Streaming<ShipperFrame>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let shared = Arc::clone(&self.0);
        if shared.draining.is_cancelled() {
            return Err(Status::unavailable("the aggregator is draining; come back"));
        }
        let Ok(place) = Arc::clone(&shared.streams).try_acquire_owned() else {
            shared.metrics.streams_refused.get_or_create(&Reason { reason: "streams_max" }).inc();
            return Err(Status::resource_exhausted(format!(
                "all {} streams are taken (ingest.streams_max); try again later, or another aggregator",
                shared.streams_max
            )));
        };
        let peer = request.extensions().get::<Peer>().cloned();
        let peer = peer.ok_or_else(|| Status::internal("the connection is not known"))?;
        let (outbound, frames) = mpsc::channel(OUTBOUND_FRAMES);
        let tasks = shared.tasks.clone();
        tasks.spawn(async move {
            let open = shared.metrics.streams.clone();
            open.inc();
            stream::serve(&shared, request.into_inner(), outbound, &peer).await;
            open.dec();
            drop(place);
        });
        Ok(Response::new(ReceiverStream::new(frames)))
    }
}

/// Frames waiting for a peer that does not read; acknowledgements are cumulative, so few are enough.
const OUTBOUND_FRAMES: usize = 4;
