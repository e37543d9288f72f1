//! Peers of a real aggregator, speaking its protocol frame by frame; and a good shipper beside them, to see that it is
//! served all the time.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};
use weir_proto::v1::ingest_client::IngestClient;
use weir_proto::v1::{AggregatorFrame, Refusal, ShipperFrame, Welcome, aggregator_frame, shipper_frame};

use crate::frames::{batch, flows, frame, hello, id};
use crate::process::{DEADLINE, Process, http_get, metric_sum, ready_file, wait_for};

/// Starts a server and a good shipper, runs `hostile`, which gives how many flows it had journaled, and checks that the
/// journal has exactly those and the good shipper's.
///
/// `program` is `CARGO_BIN_EXE_sut_aggregator`.
///
/// # Panics
/// When anything else came out.
pub fn run<F: Future<Output = u64>>(
    program: &str,
    settings: &[&str],
    hostile: impl FnOnce(Arc<Server>) -> F,
) {
    let home = TempDir::new().unwrap();
    let (mut process, server) = Server::start(program, home.path(), settings);
    let server = Arc::new(server);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let stop = Arc::new(AtomicBool::new(false));
        let shipper = tokio::spawn(good_shipper(Arc::clone(&server), Arc::clone(&stop)));
        server.progress(3).await;
        let hostile = hostile(Arc::clone(&server)).await;
        let served = server.served();
        server.progress(served + 3).await;
        stop.store(true, Ordering::SeqCst);
        let good = shipper.await.unwrap();
        let journaled = server.metric("weir_aggregator_journaled_events_total", "kind=\"flow\"");
        assert_eq!(journaled, (good * GOOD_ROWS + hostile) as f64, "{}", server.metrics());
        for gauge in ["in_flight_batches", "in_flight_events", "undecided_bytes"] {
            assert_eq!(
                server.metric(&format!("weir_aggregator_{gauge}"), ""),
                0.0,
                "{gauge}\n{}",
                server.metrics()
            );
        }
        // At rest nothing is in flight: what was received was journaled, known, or refused.
        let events = |what: &str| server.metric(&format!("weir_aggregator_{what}_events_total"), "");
        let decided = events("journaled") + events("duplicate") + events("refused");
        assert_eq!(events("received"), decided, "{}", server.metrics());
    });
    assert!(process.is_running(), "the aggregator ended; its log:\n{}", process.log_tail());
    process.terminate();
    process.wait_success();
}

/// Sends batches one after the other, each when the one before is acknowledged, until it is stopped; gives how many.
async fn good_shipper(server: Arc<Server>, stop: Arc<AtomicBool>) -> u64 {
    let mut peer = server.greeted(0xff_ffff).await;
    let mut number = 0;
    while !stop.load(Ordering::SeqCst) {
        number += 1;
        peer.send(batch(number, &flows(u32::try_from(GOOD_ROWS).unwrap()))).await;
        peer.acknowledged(number).await;
        server.good.store(number, Ordering::SeqCst);
    }
    number
}

/// A running aggregator, as its peers see it.
#[derive(Debug)]
pub struct Server {
    /// Where peers connect.
    pub grpc: SocketAddr,
    /// Where `/metrics` is.
    pub admin: SocketAddr,
    /// Batches of the good shipper that are acknowledged.
    good: AtomicU64,
}

/// An open stream.
#[derive(Debug)]
pub struct Peer {
    frames: mpsc::Sender<ShipperFrame>,
    replies: Streaming<AggregatorFrame>,
    /// What the aggregator greeted it with.
    pub welcome: Welcome,
}

impl Server {
    /// Starts an aggregator in a folder, with short times for strangers, and waits until it serves. `program` is
    /// `CARGO_BIN_EXE_sut_aggregator`.
    pub fn start(program: &str, home: &Path, settings: &[&str]) -> (Process, Self) {
        let ready = home.join("ready");
        let mut command = Command::new(program);
        command.arg("--ready-file").arg(&ready);
        let folder = |name: &str| home.join(name).display().to_string();
        let own = [
            "grpc.listen=127.0.0.1:0".to_owned(),
            "admin.listen=127.0.0.1:0".to_owned(),
            format!("journal.dir={}", folder("journal")),
            format!("parquet.dir={}", folder("data")),
            "cluster.allowed=[test]".to_owned(),
            "ingest.hello_timeout=2s".to_owned(),
            "log.level=warn".to_owned(),
        ];
        for setting in own.iter().map(String::as_str).chain(settings.iter().copied()) {
            command.arg("--set").arg(setting);
        }
        let mut process = Process::spawn(&mut command, &home.join("log"));
        let ready = ready_file(&ready, &mut process);
        let address = |name: &str| ready[name].as_str().unwrap().parse::<SocketAddr>().unwrap();
        (process, Self { grpc: address("grpc"), admin: address("admin"), good: AtomicU64::new(0) })
    }

    /// Batches of the good shipper that are acknowledged.
    pub fn served(&self) -> u64 {
        self.good.load(Ordering::SeqCst)
    }

    /// A connection.
    pub async fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.grpc)).unwrap().connect().await.unwrap()
    }

    /// A stream that has not said Hello.
    pub async fn open(&self) -> Result<Peer, Status> {
        let (frames, outbound) = mpsc::channel(64);
        let mut client = IngestClient::new(self.channel().await);
        let replies = client.stream(ReceiverStream::new(outbound)).await?.into_inner();
        Ok(Peer { frames, replies, welcome: Welcome::default() })
    }

    /// A stream that was welcomed; places that others gave up may take a moment to be free.
    pub async fn greeted(&self, shipper: u64) -> Peer {
        let mut peer = self.open().await.unwrap();
        peer.send(frame(shipper_frame::Frame::Hello(hello(shipper)))).await;
        match peer.next().await {
            aggregator_frame::Frame::Welcome(welcome) => Peer { welcome, ..peer },
            other => panic!("shipper {shipper}: expected Welcome, got {other:?}"),
        }
    }

    /// What `frames` are answered with in the end.
    pub async fn refused(&self, shipper: u64, frames: Vec<ShipperFrame>) -> Refusal {
        let mut peer = self.open().await.unwrap();
        for frame in frames {
            let mut frame = frame;
            if let Some(shipper_frame::Frame::Hello(hello)) = &mut frame.frame
                && hello.shipper_id.len() == 16
            {
                hello.shipper_id = id(shipper);
            }
            // The refusal may come before the last frame is sent.
            let _ = peer.frames.send(frame).await;
        }
        peer.refusal().await
    }

    /// Waits until the good shipper has `batches` acknowledged.
    pub async fn progress(&self, batches: u64) {
        let reached = async {
            while self.served() < batches {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if timeout(DEADLINE, reached).await.is_err() {
            panic!("the good shipper was not served to batch {batches}\n{}", self.metrics());
        }
    }

    /// Waits until so many flows beside the good shipper's are journaled.
    pub async fn journaled_at_least(&self, flows: u64) {
        let metrics = || self.metrics();
        tokio::task::block_in_place(|| {
            wait_for("the journal", metrics, || {
                let good = (self.served() * GOOD_ROWS) as f64;
                self.metric("weir_aggregator_journaled_events_total", "kind=\"flow\"") >= good + flows as f64
                    && self.metric("weir_aggregator_streams", "") <= 1.0
            });
        });
    }

    /// Its `/metrics`.
    pub fn metrics(&self) -> String {
        http_get(self.admin, "/metrics").unwrap().1
    }

    /// The sum of a metric's samples, 0 without any.
    pub fn metric(&self, name: &str, labels: &str) -> f64 {
        metric_sum(&self.metrics(), name, labels).unwrap_or(0.0)
    }
}

impl Peer {
    /// Sends a frame, as soon as there is room for it.
    pub async fn send(&self, frame: ShipperFrame) {
        timeout(DEADLINE, self.frames.send(frame)).await.unwrap().unwrap();
    }

    /// The next frame.
    pub async fn next(&mut self) -> aggregator_frame::Frame {
        let reply = timeout(DEADLINE, self.replies.message()).await.expect("a reply in time");
        reply.unwrap().expect("a frame before the end").frame.unwrap()
    }

    /// Waits until this number is acknowledged.
    pub async fn acknowledged(&mut self, number: u64) {
        loop {
            match self.next().await {
                aggregator_frame::Frame::Ack(ack) if ack.number >= number => return,
                aggregator_frame::Frame::Ack(_) => {}
                other => panic!("expected Ack {number}, got {other:?}"),
            }
        }
    }

    /// The refusal that ends the stream.
    pub async fn refusal(&mut self) -> Refusal {
        loop {
            if let aggregator_frame::Frame::Refusal(refusal) = self.next().await {
                return refusal;
            }
        }
    }
}

/// Rows of a batch of the good shipper.
const GOOD_ROWS: u64 = 10;
