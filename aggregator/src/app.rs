//! Wires the aggregator: journal, sinks, writer, gRPC and admin servers; and ends them in the order of the data.
//!
//! To drain, streams stop reading and acknowledge what they have taken, the writer empties its queue, the sinks take
//! what is journaled and cut, the rest ends. What was not acknowledged is with the shippers.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use prometheus_client::registry::Registry as MetricsRegistry;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Server;
use weir_common::admin::{Admin, AdminError, Health};
use weir_common::clock;
use weir_common::file::{FileError, atomic_write};
use weir_common::log::Recovery;
use weir_common::tls::config::TlsConfig;
use weir_common::tls::files::FilesError;
use weir_common::tls::reload;
use weir_common::tls::server::TlsServer;
use weir_proto::v1::ingest_server::IngestServer;
use weir_proto::v1::observe_server::ObserveServer;

use crate::accepted::Accepted;
use crate::config::{Config, IngestConfig};
use crate::enrich::Snapshot;
use crate::ingest::handshake::Handshakes;
use crate::ingest::hello::HelloRules;
use crate::ingest::listener::{self, Door};
use crate::ingest::peer::Peers;
use crate::ingest::registry::Registry;
use crate::ingest::{IngestService, IngestShared};
use crate::journal::damage::LossReporter;
use crate::journal::writer::{Writer, WriterError};
use crate::journal::{FORGET_NOTHING, Journal, JournalError, Opened, SinkCursors};
use crate::metrics::{Metrics, ResultLabel};
use crate::observe::{ObserveService, ObserveShared};
use crate::sink::parquet::{self, ParquetConfig, ParquetMetrics, ParquetSink, SinkError, TaskError};
use crate::sink::{PARQUET, SinkSpec};

/// What is needed to run.
#[derive(Debug)]
pub struct Run {
    /// The configuration.
    pub config: Config,
    /// Written once everything is up: `{"grpc": "address:port", "admin": "address:port"}`.
    pub ready_file: Option<PathBuf>,
    /// Cancelled to drain and end.
    pub shutdown: CancellationToken,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All that was acknowledged is in the sinks.
    Drained,
    /// The time for draining was over; the rest is in the journal.
    DrainTimedOut,
}

/// Why a run could not begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The journal can't be opened.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The journal can't be written.
    #[error(transparent)]
    Writer(#[from] WriterError),
    /// The Parquet files can't be opened.
    #[error("open the Parquet sink")]
    Parquet(#[source] SinkError),
    /// The Parquet sink needs a person.
    #[error("run the Parquet sink")]
    ParquetTask(#[source] TaskError),
    /// The gRPC address is taken, or not ours.
    #[error("listen on {address} for gRPC (grpc.listen)")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's words.
        #[source]
        source: std::io::Error,
    },
    /// The files of TLS can't be used.
    #[error("set up TLS")]
    Tls(#[from] FilesError),
    /// The gRPC server ended.
    #[error("serve gRPC")]
    Serve(#[source] tonic::transport::Error),
    /// The admin server.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The ready file.
    #[error(transparent)]
    Ready(#[from] FileError),
    /// A thread could not be started.
    #[error("start a thread")]
    Thread(#[source] std::io::Error),
    /// A thread or task panicked: a defect.
    #[error("{0} ended unexpectedly")]
    Ended(&'static str),
}

impl Run {
    /// Runs until told to end, or until something fails for good.
    pub async fn run(self) -> Result<Outcome, RunError> {
        let Self { config, ready_file, shutdown } = self;
        let running = Running::start(config, shutdown).await?;
        if let Some(path) = ready_file {
            let ready = serde_json::json!({ "grpc": running.grpc, "admin": running.admin });
            atomic_write(&path, format!("{ready}\n").as_bytes())?;
        }
        running.ended().await
    }
}

/// A running aggregator.
pub struct Running {
    /// Where shippers and viewers connect.
    pub grpc: SocketAddr,
    /// Where metrics and health are.
    pub admin: SocketAddr,
    config: Config,
    shutdown: CancellationToken,
    draining: CancellationToken,
    streams_ended: CancellationToken,
    give_up: CancellationToken,
    sinks_end: CancellationToken,
    tasks: TaskTracker,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
    background: Vec<JoinHandle<()>>,
    writer: oneshot::Receiver<Result<(), WriterError>>,
    sink: Option<oneshot::Receiver<Result<(), TaskError>>>,
}

impl Running {
    /// Opens everything and begins to serve.
    pub async fn start(config: Config, shutdown: CancellationToken) -> Result<Self, RunError> {
        raise_descriptor_limit();
        let stores = tokio::task::spawn_blocking({
            let (config, shutdown) = (config.clone(), shutdown.clone());
            move || Stores::open(&config, &shutdown)
        });
        let Stores { journal, registry, cursors, parquet, recovery } =
            stores.await.map_err(|_| RunError::Ended("opening"))??;

        let mut metrics_registry = MetricsRegistry::default();
        let metrics = Metrics::new(&mut metrics_registry, &cursors);
        metrics.journal_cut_bytes.inc_by(recovery.cut.as_ref().map_or(0, |cut| cut.bytes_lost));
        metrics.journal_damaged_ranges.inc_by(recovery.damaged.len() as u64);
        let parquet = parquet.map(|sink| (sink, ParquetMetrics::register(&mut metrics_registry)));
        let health = Health::default();
        let (draining, sinks_end) = (CancellationToken::new(), CancellationToken::new());
        let (streams_ended, give_up) = (CancellationToken::new(), CancellationToken::new());
        let tasks = TaskTracker::new();

        let address = config.grpc_listen;
        let listen = |source| RunError::Listen { address, source };
        let grpc_listener = TcpListener::bind(address).await.map_err(listen)?;
        let grpc = grpc_listener.local_addr().map_err(listen)?;
        let admin_server = Admin::bind(config.admin_listen).await?;
        let admin = admin_server.address();

        let reported = config.journal.dir.join("damage-reported");
        let name = if config.name.is_empty() { host_name() } else { config.name.clone() };
        let (reporter, own) = LossReporter::new(journal.id(), &config.cluster_default, &name, reported);
        let reader = journal.reader();
        let (queue, queued) = mpsc::channel(QUEUE_UNITS);
        let service = ingest_service(&config, &journal, &registry, queue, &metrics, &draining, &tasks);
        let observe = ObserveService(Arc::new(ObserveShared {
            reader: reader.clone(),
            cursors: cursors.clone(),
            registry: Arc::clone(&registry),
            metrics: metrics.clone(),
            draining: draining.clone(),
            tasks: tasks.clone(),
        }));
        let writer = Writer {
            journal,
            queue: queued,
            own,
            reporter: reporter.clone(),
            registry,
            enricher: Arc::new(ArcSwap::from_pointee(Snapshot::new(config.sources.clone()))),
            group: config.group,
            metrics: metrics.clone(),
            health: health.clone(),
            streams_ended: streams_ended.clone(),
            give_up: give_up.clone(),
        };
        let runtime = tokio::runtime::Handle::current();
        let writer = thread("journal", move || writer.run(&runtime))?;
        let mut background = Vec::new();
        let sink = match parquet {
            None => None,
            Some((sink, sink_metrics)) => {
                let (trouble, troubled) = watch::channel(None);
                background.push(tokio::spawn(tell_trouble(troubled, health.clone())));
                let (reader, end) = (reader.reporting_to(reporter), sinks_end.clone());
                Some(thread(parquet::NAME, move || {
                    parquet::run(sink, reader, cursors, sink_metrics, trouble, end)
                })?)
            }
        };
        let handshakes = handshakes(&config, &metrics, &draining)?;
        let server =
            serve(&config.ingest, grpc_listener, handshakes, service, observe, metrics, draining.clone());
        background.push(tokio::spawn(async move {
            if let Err(error) = admin_server.serve(Arc::new(metrics_registry), health).await {
                tracing::error!(%error, "the admin server ended");
            }
        }));
        tracing::info!(%grpc, %admin, "aggregator is up");
        Ok(Self {
            grpc,
            admin,
            config,
            shutdown,
            draining,
            streams_ended,
            give_up,
            sinks_end,
            tasks,
            server,
            background,
            writer,
            sink,
        })
    }

    /// Waits for the order to end and drains, or for something that ends it.
    pub async fn ended(mut self) -> Result<Outcome, RunError> {
        tokio::select! {
            () = self.shutdown.cancelled() => {}
            result = &mut self.writer => {
                result.map_err(|_| RunError::Ended("the journal's thread"))??;
                return Err(RunError::Ended("the journal's thread"));
            }
            result = sink_end(&mut self.sink) => {
                result?;
                return Err(RunError::Ended("the Parquet sink"));
            }
            result = &mut self.server => {
                result.map_err(|_| RunError::Ended("the gRPC server"))?.map_err(RunError::Serve)?;
                return Err(RunError::Ended("the gRPC server"));
            }
        }
        tracing::info!("draining");
        let timeout = self.config.drain_timeout;
        match tokio::time::timeout(timeout, self.drain()).await {
            Ok(result) => result.map(|()| Outcome::Drained),
            Err(_) => {
                tracing::warn!(
                    ?timeout,
                    "draining took too long; what is not in the sinks is in the journal"
                );
                Ok(Outcome::DrainTimedOut)
            }
        }
    }

    async fn drain(&mut self) -> Result<(), RunError> {
        self.draining.cancel();
        // A paused writer waits for half of the time; the other half is for the sinks' last cut.
        let (give_up, patience) = (self.give_up.clone(), self.config.drain_timeout / 2);
        self.background.push(tokio::spawn(async move {
            tokio::time::sleep(patience).await;
            give_up.cancel();
        }));
        self.tasks.close();
        self.tasks.wait().await;
        // Connections hold senders of the queue for as long as their peers like: the writer closes it by itself.
        self.streams_ended.cancel();
        (&mut self.writer).await.map_err(|_| RunError::Ended("the journal's thread"))??;
        self.sinks_end.cancel();
        if self.sink.is_some() {
            sink_end(&mut self.sink).await?;
        }
        // A peer that keeps its connection open for nothing is not waited for; streams have ended above.
        if tokio::time::timeout(GOAWAY_PATIENCE, &mut self.server).await.is_err() {
            self.server.abort();
            let _ = (&mut self.server).await;
        }
        tracing::info!("drained");
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.draining.cancel();
        self.streams_ended.cancel();
        self.give_up.cancel();
        self.sinks_end.cancel();
        self.server.abort();
        self.background.iter().for_each(JoinHandle::abort);
    }
}

/// What is on disk, opened and recovered.
struct Stores {
    journal: Journal,
    registry: Arc<Registry>,
    cursors: SinkCursors,
    parquet: Option<ParquetSink>,
    recovery: Recovery,
}

impl Stores {
    fn open(config: &Config, shutdown: &CancellationToken) -> Result<Self, RunError> {
        let cursors = SinkCursors::default();
        let sinks: [(SinkSpec, bool); 1] = [(PARQUET, config.parquet.is_some())];
        for (spec, _) in sinks.into_iter().filter(|(_, enabled)| *enabled) {
            cursors.register(spec);
        }
        let now_s = clock::now_ns().div_euclid(1_000_000_000);
        let Opened { mut journal, sequences, recovery } =
            Journal::open(&config.journal, cursors.clone(), now_s)?;
        log_recovery(&recovery);
        let open = |config: &ParquetConfig| parquet::open(config, journal.id(), shutdown);
        let parquet = config.parquet.as_ref().map(open).transpose().map_err(RunError::Parquet)?;
        let parquet = parquet.map(|(sink, report)| {
            parquet::log_recovery(&report);
            sink
        });
        let registry = Registry::new(sequences);
        if let Some(reached) = parquet.as_ref().map(ParquetSink::next_position) {
            let next_position = journal.next_position();
            if reached > next_position {
                tracing::error!(
                    next_position,
                    reached,
                    "the journal lost records that Parquet has; it goes on after them"
                );
                journal.advance_to(reached, registry.checkpoint(FORGET_NOTHING))?;
            }
        }
        Ok(Self { journal, registry, cursors, parquet, recovery })
    }
}

fn log_recovery(recovery: &Recovery) {
    if let Some(cut) = &recovery.cut {
        let path = cut.path.display();
        tracing::warn!(%path, cut.offset, cut.bytes_lost, cut.reason, "cut a torn tail off the journal");
    }
    for damage in &recovery.damaged {
        tracing::error!(
            path = %damage.path.display(),
            offset = damage.offset,
            first_position = damage.first_position,
            last_position = damage.last_position,
            reason = damage.reason,
            "journal records are damaged"
        );
    }
}

fn ingest_service(
    config: &Config,
    journal: &Journal,
    registry: &Arc<Registry>,
    queue: mpsc::Sender<Accepted>,
    metrics: &Metrics,
    draining: &CancellationToken,
    tasks: &TaskTracker,
) -> IngestService {
    let ingest = &config.ingest;
    let memory_kib = u32::try_from(ingest.memory_bytes / 1024).unwrap_or(u32::MAX);
    IngestService(Arc::new(IngestShared {
        limits: ingest.limits,
        window_batches: ingest.window_batches,
        window_bytes: ingest.window_bytes,
        hello: HelloRules {
            journal_id: journal.id(),
            cluster_default: config.cluster_default.clone(),
            cluster_override: config.cluster_override.clone(),
            clusters_allowed: config.clusters_allowed.clone(),
        },
        hello_timeout: ingest.hello_timeout,
        streams_max: ingest.streams_max,
        streams: Arc::new(Semaphore::new(ingest.streams_max as usize)),
        memory: Arc::new(Semaphore::new(memory_kib as usize)),
        memory_kib,
        registry: Arc::clone(registry),
        queue,
        metrics: metrics.clone(),
        draining: draining.clone(),
        tasks: tasks.clone(),
    }))
}

/// TLS, if it is set up; its files are watched until `stop`.
fn handshakes(
    config: &Config,
    metrics: &Metrics,
    stop: &CancellationToken,
) -> Result<Option<Arc<Handshakes>>, RunError> {
    let TlsConfig::Files { files, reload_interval } = &config.tls else { return Ok(None) };
    let reloads = metrics.tls_reloads.clone();
    let reloaded = move |used| {
        let result = if used { "used" } else { "failed" };
        reloads.get_or_create(&ResultLabel { result }).inc();
    };
    let server = reload::watch(files.clone(), *reload_interval, TlsServer::new, reloaded)?;
    let peers = Peers::new(server);
    tokio::spawn(Arc::clone(&peers).run(metrics.clone(), stop.clone()));
    let (patience, most) = (config.handshake_timeout, config.handshakes_max);
    Ok(Some(Handshakes::new(peers, patience, most, metrics.clone())))
}

fn serve(
    ingest: &IngestConfig,
    listener: TcpListener,
    tls: Option<Arc<Handshakes>>,
    service: IngestService,
    observe: ObserveService,
    metrics: Metrics,
    draining: CancellationToken,
) -> JoinHandle<Result<(), tonic::transport::Error>> {
    let (connections_max, preface_timeout) = (ingest.connections_max, ingest.hello_timeout);
    let door = Door { connections_max, preface_timeout, tls, metrics };
    let incoming = listener::accept(listener, door, draining.clone());
    let message_max = usize::try_from(ingest.limits.payload_bytes_max).unwrap_or(usize::MAX);
    let service = IngestServer::new(service)
        .max_decoding_message_size(message_max.saturating_add(ENVELOPE_BYTES_MAX))
        .max_encoding_message_size(ENVELOPE_BYTES_MAX);
    let observe = ObserveServer::new(observe).max_decoding_message_size(ENVELOPE_BYTES_MAX);
    let server = Server::builder()
        .http2_keepalive_interval(Some(ingest.keepalive_interval))
        .http2_keepalive_timeout(Some(ingest.keepalive_timeout))
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .add_service(service)
        .add_service(observe);
    tokio::spawn(server.serve_with_incoming_shutdown(incoming, draining.cancelled_owned()))
}

/// Tells readiness what keeps a sink from working.
async fn tell_trouble(mut trouble: watch::Receiver<Option<String>>, health: Health) {
    while trouble.changed().await.is_ok() {
        match &*trouble.borrow_and_update() {
            Some(words) => health.unready("parquet", words.clone()),
            None => health.ready("parquet"),
        }
    }
}

async fn sink_end(sink: &mut Option<oneshot::Receiver<Result<(), TaskError>>>) -> Result<(), RunError> {
    match sink {
        None => std::future::pending().await,
        Some(sink) => {
            sink.await.map_err(|_| RunError::Ended("the Parquet sink"))?.map_err(RunError::ParquetTask)
        }
    }
}

/// Runs `work` on a thread; a panic there closes the channel without a result.
fn thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<oneshot::Receiver<T>, RunError> {
    let (sender, receiver) = oneshot::channel();
    let run = move || {
        // Nobody waits any more when draining timed out.
        let _ = sender.send(work());
    };
    std::thread::Builder::new().name(name.to_owned()).spawn(run).map_err(RunError::Thread)?;
    Ok(receiver)
}

/// Connections are bounded by configuration, not by the shell's limit.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // The limit stays as it is where this is not allowed.
    let _ = setrlimit(Resource::Nofile, limit);
}

fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if name.is_empty() { "aggregator".to_owned() } else { name }
}

/// Units between the streams and the writer; their memory is bounded by `ingest.memory_bytes`.
const QUEUE_UNITS: usize = 1024;
/// What a frame takes besides a payload: ids, names, versions.
const ENVELOPE_BYTES_MAX: usize = 64 << 10;
/// A shipper needs one, a viewer one.
const STREAMS_PER_CONNECTION: u32 = 16;
/// Received and not yet read bytes of a stream, at most.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 2 << 20;
const HEADER_BYTES_MAX: u32 = 16 << 10;
/// How long a drain waits for peers to close their connections.
const GOAWAY_PATIENCE: std::time::Duration = std::time::Duration::from_secs(1);
