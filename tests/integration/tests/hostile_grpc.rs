//! Strangers, liars and slow peers against a real aggregator: each gets a clear error, and a good shipper beside them is
//! served all the time, with every event counted once.

#![expect(clippy::unwrap_used, reason = "tests panic with what failed")]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use prost::Message as _;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};
use weir_integration_tests::process::{DEADLINE, Process, http_get, metric_sum, ready_file, wait_for};
use weir_integration_tests::scale::scale;
use weir_proto::v1::ingest_client::IngestClient;
use weir_proto::v1::refusal::Reason;
use weir_proto::v1::{
    AggregatorFrame, Batch, BatchBody, DnsEvent, FlowColumns, Hello, LossEvent, ObserveRequest, Refusal,
    ShipperFrame, Skip, Welcome, aggregator_frame, shipper_frame,
};

#[test]
fn every_lie_has_its_own_words_and_nothing_of_it_is_journaled() {
    run(&[], |server| async move {
        for (index, case) in lies().into_iter().enumerate() {
            let Case { name, frames, reason, words } = case;
            let refusal = server.refused(index as u64, frames).await;
            assert_eq!(refusal.reason(), reason, "{name}: {}", refusal.message);
            assert!(refusal.message.contains(words), "{name}: {:?} does not say {words:?}", refusal.message);
        }
        0
    });
}

#[test]
fn the_sequence_rules_hold_against_replays_gaps_skips_and_second_streams() {
    run(&[], |server| async move {
        // A replay is acknowledged again; a gap is refused by name; a skip fills it; the epoch goes on from there.
        let mut peer = server.greeted(1).await;
        peer.send(batch(1, &flows(2))).await;
        peer.acknowledged(1).await;
        peer.send(batch(1, &flows(2))).await;
        peer.acknowledged(1).await;
        peer.send(batch(3, &flows(2))).await;
        let refusal = peer.refusal().await;
        assert_eq!((refusal.reason(), refusal.number), (Reason::Gap, 3), "{}", refusal.message);
        assert!(refusal.message.contains("2 is next"), "{}", refusal.message);

        let mut peer = server.greeted(1).await;
        assert_eq!(peer.welcome.last_number, 1);
        peer.send(skip(2, 9)).await;
        peer.send(batch(10, &flows(2))).await;
        peer.acknowledged(10).await;

        // The older of two streams of one shipper is told so, and its batches are not taken.
        let newer = server.greeted(1).await;
        assert_eq!(newer.welcome.last_number, 10);
        assert_eq!(peer.refusal().await.reason(), Reason::Superseded);

        // A stream that dies with batches in the queue: what it sent is there once, whatever is sent again.
        let dying = server.greeted(2).await;
        for number in 1..=50 {
            dying.send(batch(number, &flows(2))).await;
        }
        drop(dying);
        let mut again = server.greeted(2).await;
        for number in again.welcome.last_number + 1..=50 {
            again.send(batch(number, &flows(2))).await;
        }
        again.acknowledged(50).await;

        // An epoch that nobody knows begins at 1 or with a skip from 1.
        let mut peer = server.greeted(3).await;
        peer.send(skip(1, 4)).await;
        peer.send(batch(5, &flows(2))).await;
        peer.acknowledged(5).await;
        2 * 2 + 50 * 2 + 2
    });
}

#[test]
fn windows_and_stream_limits_are_kept() {
    run(
        &["ingest.window_batches=2", "ingest.streams_max=8", "journal.group_linger=1s"],
        |server| async move {
            let mut peer = server.greeted(1).await;
            assert_eq!(peer.welcome.window_batches, 2);
            for number in 1..=4 {
                peer.send(batch(number, &flows(1))).await;
            }
            let refusal = peer.refusal().await;
            assert_eq!(refusal.reason(), Reason::Protocol, "{}", refusal.message);
            assert!(refusal.message.contains("the window is 2 batches"), "{}", refusal.message);

            let mut seated = Vec::new();
            let status = loop {
                match server.open().await {
                    Ok(peer) => seated.push(peer),
                    Err(status) => break status,
                }
                assert!(seated.len() <= 8, "more streams than ingest.streams_max");
            };
            assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
            assert!(status.message().contains("ingest.streams_max"), "{status}");
            // Those 8 never say Hello; their places are free again after the time for it, for the good shipper too.
            drop(seated);
            3
        },
    );
}

#[test]
fn strangers_are_closed_and_slow_peers_hold_up_nobody() {
    run(&[], |server| async move {
        // Bytes that are no HTTP/2, and silence.
        for bytes in [
            &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..],
            &[0xff; 4096],
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff",
            b"",
        ] {
            let mut stream = TcpStream::connect(server.grpc).unwrap();
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            let _ = stream.write_all(bytes);
            let mut rest = Vec::new();
            // Closed or reset, both will do; a time-out is neither.
            if let Err(error) = stream.read_to_end(&mut rest) {
                assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "still open after {bytes:?}");
            }
        }
        // Peers that send and never read, and one that stalls in the middle of a call.
        let mut slow = Vec::new();
        for shipper in 100..140 {
            let peer = server.greeted(shipper).await;
            for number in 1..=20 {
                peer.send(batch(number, &flows(1))).await;
            }
            slow.push(peer);
        }
        let stalled = server.open().await.unwrap();
        let served = server.good.load(Ordering::SeqCst);
        server.progress(served + 20).await;
        drop((slow, stalled));
        let journaled = 40 * 20;
        server.journaled_at_least(journaled).await;
        journaled
    });
}

#[test]
fn thousands_of_connections_leave_the_service_as_it_was() {
    let count = scale().hostile_connections;
    raise_descriptor_limit();
    run(&["ingest.connections_max=256"], |server| async move {
        let address = server.grpc;
        let strangers = tokio::task::spawn_blocking(move || {
            (0..count)
                .map(|index| {
                    let mut stream = TcpStream::connect(address).unwrap();
                    stream.set_read_timeout(Some(DEADLINE)).unwrap();
                    if index % 2 == 0 {
                        // The server may have closed it by now.
                        let _ = stream.write_all(&index.to_le_bytes());
                    }
                    stream
                })
                .collect::<Vec<TcpStream>>()
        });
        let strangers = strangers.await.unwrap();
        let served = server.good.load(Ordering::SeqCst);
        server.progress(served + 20).await;
        // Every one is closed: for the limit, for its bytes, or for its silence.
        let closed = tokio::task::spawn_blocking(move || {
            let mut open = 0;
            for mut stream in strangers {
                let mut rest = Vec::new();
                if let Err(error) = stream.read_to_end(&mut rest) {
                    open += u64::from(error.kind() == std::io::ErrorKind::WouldBlock);
                }
            }
            open
        });
        assert_eq!(closed.await.unwrap(), 0, "connections that were left open");
        let refused = server.metric("weir_aggregator_connections_refused_total", "");
        assert!(refused > 0.0, "of {count} connections none was refused");
        // A new shipper finds a place.
        let mut peer = server.greeted(7).await;
        peer.send(batch(1, &flows(2))).await;
        peer.acknowledged(1).await;
        2
    });
}

/// Starts a server and a good shipper, runs `hostile`, which gives how many flows it had journaled, and checks that the
/// journal has exactly those and the good shipper's.
fn run<F: Future<Output = u64>>(settings: &[&str], hostile: impl FnOnce(Arc<Server>) -> F) {
    let home = TempDir::new().unwrap();
    let mut process = start(&home, settings);
    let ready = ready_file(&home.path().join("ready"), &mut process);
    let address = |name: &str| ready[name].as_str().unwrap().parse::<SocketAddr>().unwrap();
    let good = Arc::new(AtomicU64::new(0));
    let server = Arc::new(Server { grpc: address("grpc"), admin: address("admin"), good: Arc::clone(&good) });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let stop = Arc::new(AtomicBool::new(false));
        let shipper = tokio::spawn(good_shipper(Arc::clone(&server), Arc::clone(&stop)));
        server.progress(3).await;
        let hostile = hostile(Arc::clone(&server)).await;
        let served = good.load(Ordering::SeqCst);
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

fn start(home: &TempDir, settings: &[&str]) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sut_aggregator"));
    command.arg("--ready-file").arg(home.path().join("ready"));
    let folder = |name: &str| home.path().join(name).display().to_string();
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
    Process::spawn(&mut command, &home.path().join("log"))
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

struct Server {
    grpc: SocketAddr,
    admin: SocketAddr,
    /// Batches of the good shipper that are acknowledged.
    good: Arc<AtomicU64>,
}

/// An open stream.
struct Peer {
    frames: mpsc::Sender<ShipperFrame>,
    replies: Streaming<AggregatorFrame>,
    welcome: Welcome,
}

impl Server {
    async fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.grpc)).unwrap().connect().await.unwrap()
    }

    /// A stream that has not said Hello.
    async fn open(&self) -> Result<Peer, Status> {
        let (frames, outbound) = mpsc::channel(64);
        let mut client = IngestClient::new(self.channel().await);
        let replies = client.stream(ReceiverStream::new(outbound)).await?.into_inner();
        Ok(Peer { frames, replies, welcome: Welcome::default() })
    }

    /// A stream that was welcomed; places that others gave up may take a moment to be free.
    async fn greeted(&self, shipper: u64) -> Peer {
        let mut peer = self.open().await.unwrap();
        peer.send(frame(shipper_frame::Frame::Hello(hello(shipper)))).await;
        match peer.next().await {
            aggregator_frame::Frame::Welcome(welcome) => Peer { welcome, ..peer },
            other => panic!("shipper {shipper}: expected Welcome, got {other:?}"),
        }
    }

    /// What `frames` are answered with in the end.
    async fn refused(&self, shipper: u64, frames: Vec<ShipperFrame>) -> Refusal {
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
    async fn progress(&self, batches: u64) {
        let reached = async {
            while self.good.load(Ordering::SeqCst) < batches {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if timeout(DEADLINE, reached).await.is_err() {
            panic!("the good shipper was not served to batch {batches}\n{}", self.metrics());
        }
    }

    /// Waits until so many flows beside the good shipper's are journaled.
    async fn journaled_at_least(&self, flows: u64) {
        let metrics = || self.metrics();
        tokio::task::block_in_place(|| {
            wait_for("the journal", metrics, || {
                let good = (self.good.load(Ordering::SeqCst) * GOOD_ROWS) as f64;
                self.metric("weir_aggregator_journaled_events_total", "kind=\"flow\"") >= good + flows as f64
                    && self.metric("weir_aggregator_streams", "") <= 1.0
            });
        });
    }

    fn metrics(&self) -> String {
        http_get(self.admin, "/metrics").unwrap().1
    }

    fn metric(&self, name: &str, labels: &str) -> f64 {
        metric_sum(&self.metrics(), name, labels).unwrap_or(0.0)
    }
}

impl Peer {
    async fn send(&self, frame: ShipperFrame) {
        timeout(DEADLINE, self.frames.send(frame)).await.unwrap().unwrap();
    }

    async fn next(&mut self) -> aggregator_frame::Frame {
        let reply = timeout(DEADLINE, self.replies.message()).await.expect("a reply in time");
        reply.unwrap().expect("a frame before the end").frame.unwrap()
    }

    async fn acknowledged(&mut self, number: u64) {
        loop {
            match self.next().await {
                aggregator_frame::Frame::Ack(ack) if ack.number >= number => return,
                aggregator_frame::Frame::Ack(_) => {}
                other => panic!("expected Ack {number}, got {other:?}"),
            }
        }
    }

    /// The refusal that ends the stream.
    async fn refusal(&mut self) -> Refusal {
        loop {
            if let aggregator_frame::Frame::Refusal(refusal) = self.next().await {
                return refusal;
            }
        }
    }
}

struct Case {
    name: String,
    frames: Vec<ShipperFrame>,
    reason: Reason,
    words: &'static str,
}

/// Every way to break the rules with frames that are well-formed gRPC.
fn lies() -> Vec<Case> {
    let welcome = || frame(shipper_frame::Frame::Hello(hello(0)));
    let case = |name: &str, frames: Vec<ShipperFrame>, reason, words| Case {
        name: name.to_owned(),
        frames,
        reason,
        words,
    };
    let mut cases = vec![
        case("silence", vec![], Reason::Protocol, "no Hello within 2000 ms"),
        case("batch first", vec![batch(1, &flows(1))], Reason::Protocol, "before Hello"),
        case("empty frame", vec![ShipperFrame { frame: None }], Reason::Protocol, "without content"),
        case("Hello twice", vec![welcome(), welcome()], Reason::Protocol, "Hello came twice"),
        case("unknown epoch", vec![welcome(), batch(2, &flows(1))], Reason::UnknownEpoch, "must begin at 1"),
        case("number 0", vec![welcome(), batch(0, &flows(1))], Reason::Protocol, "1 <= first"),
        case("number too high", vec![welcome(), batch(1 << 42, &flows(1))], Reason::Protocol, "1 <= first"),
        case("skip backwards", vec![welcome(), skip(5, 4)], Reason::Protocol, "5..=4"),
    ];
    let hellos: [Spoiled<Hello>; 6] = [
        (
            "newer protocol",
            |hello| hello.protocol_version = 99,
            Reason::ProtocolVersion,
            "protocol_version 99",
        ),
        ("short id", |hello| hello.shipper_id = vec![1], Reason::Protocol, "shipper_id has 1 bytes"),
        ("no node", |hello| hello.node.clear(), Reason::Identity, "Hello.node"),
        ("path as cluster", |hello| hello.cluster = "../../etc".into(), Reason::Identity, "does not match"),
        ("other cluster", |hello| hello.cluster = "prod".into(), Reason::Identity, "cluster.allowed"),
        ("other journal", |hello| hello.journal_id = vec![9; 16], Reason::OtherJournal, "rebind"),
    ];
    for (name, lie, reason, words) in hellos {
        let mut hello = hello(0);
        lie(&mut hello);
        cases.push(case(name, vec![frame(shipper_frame::Frame::Hello(hello))], reason, words));
    }
    let batches: [Spoiled<Batch>; 12] = [
        (
            "newer schema",
            |batch| batch.schema_version = 2,
            Reason::SchemaVersion,
            "schema_version 2 is newer",
        ),
        ("no schema", |batch| batch.schema_version = 0, Reason::SchemaVersion, "schema_version 0"),
        ("unknown codec", |batch| batch.codec = 7, Reason::BadBatch, "codec 7"),
        ("no payload", |batch| batch.payload.clear(), Reason::BadBatch, "frame"),
        ("garbage", |batch| batch.payload = vec![0xa5; 500].into(), Reason::BadBatch, "frame"),
        (
            "truncated",
            |batch| batch.payload.truncate(batch.payload.len() - 1),
            Reason::BadBatch,
            "cut or damaged",
        ),
        (
            "trailing bytes",
            |batch| batch.payload = [&batch.payload[..], b"x"].concat().into(),
            Reason::BadBatch,
            "bytes after",
        ),
        ("a bomb", |batch| batch.payload = bomb().into(), Reason::BadBatch, "decoded bytes: 1073741824"),
        ("no size", |batch| batch.payload = without_size().into(), Reason::BadBatch, "no content size"),
        ("not protobuf", |batch| batch.payload = pack(&[0xff; 64]).into(), Reason::BadBatch, "no protobuf"),
        ("too many events", |batch| batch.events = u32::MAX, Reason::BadBatch, "events: 4294967295"),
        ("miscounted", |batch| batch.events += 1, Reason::BadBatch, "events says 3"),
    ];
    for (name, lie, reason, words) in batches {
        let mut frame = batch(1, &flows(2));
        let Some(shipper_frame::Frame::Batch(inner)) = &mut frame.frame else { unreachable!() };
        lie(inner);
        cases.push(case(name, vec![welcome(), frame], reason, words));
    }
    let mut large = batch(1, &flows(1));
    if let Some(shipper_frame::Frame::Batch(inner)) = &mut large.frame {
        inner.payload = vec![0; 5 << 20].into();
    }
    cases.push(case("oversized", vec![welcome(), large], Reason::Protocol, "too large"));
    for (name, lie, words) in columns() {
        let mut flows = flows(2);
        lie(&mut flows);
        cases.push(case(name, vec![welcome(), batch(1, &flows)], Reason::BadBatch, words));
    }
    let other = |body: BatchBody| vec![welcome(), frame_of(1, &body)];
    let dns = DnsEvent { reporter: 1, transport: 99, ..DnsEvent::default() };
    cases.push(case(
        "dns",
        other(BatchBody { dns: vec![dns], ..BatchBody::default() }),
        Reason::BadBatch,
        "transport is 99",
    ));
    let loss = LossEvent { stage: 77, reason: 1, ..LossEvent::default() };
    cases.push(case(
        "loss",
        other(BatchBody { losses: vec![loss], ..BatchBody::default() }),
        Reason::BadBatch,
        "stage is 77",
    ));
    let crowd = BatchBody { losses: vec![LossEvent::default(); 200_000], ..BatchBody::default() };
    cases.push(case("a crowd of rows", other(crowd), Reason::BadBatch, "events: 200000"));
    cases
}

/// What is wrong, how it is made so, the refusal's reason and a part of its words.
type Spoiled<T> = (&'static str, fn(&mut T), Reason, &'static str);

type Lie = (&'static str, fn(&mut FlowColumns), &'static str);

/// A lie in each column, with the words that name it.
fn columns() -> Vec<Lie> {
    vec![
        ("rows", |f| f.rows = 1, "has 2 values for 1 rows"),
        ("strings", |f| f.strings = vec!["x".into()], "begin with the empty text"),
        ("many strings", |f| f.strings = vec![String::new(); 50], "flows.strings: 50, at most 11"),
        (
            "long string",
            |f| f.strings = vec![String::new(), "x".repeat(5000)],
            "flows.strings (bytes of one): 5000",
        ),
        ("addresses", |f| f.addresses.truncate(17), "flows.addresses is 17"),
        ("flow_id_high", |f| f.flow_id_high.truncate(1), "flow_id_high has 1 values for 2 rows"),
        ("flow_id_low", |f| f.flow_id_low.truncate(1), "flow_id_low has 1 values for 2 rows"),
        ("record_seq", |f| f.record_seq = vec![1], "record_seq has 1 values for 2 rows"),
        ("too long", |f| f.record_seq = vec![1; 3], "elements of a column: 3"),
        ("opened", |f| f.opened = vec![1], "opened has 1 values for 2 rows"),
        ("reporter", |f| f.reporter = vec![1, 9], "reporter is 9 in row 1"),
        ("no reporter", |f| f.reporter.clear(), "reporter is 0 in row 0"),
        ("vantage", |f| f.vantage = vec![0, 1], "vantage is 0 in row 0"),
        ("orientation", |f| f.orientation = vec![1, 5], "orientation is 5 in row 1"),
        ("time_quality", |f| f.time_quality = vec![4, 0], "time_quality is 4 in row 0"),
        (
            "end_delta_ns",
            |f| f.end_delta_ns = vec![0, i64::MAX],
            "end_delta_ns leaves the range of time in row 1",
        ),
        (
            "duration_ns",
            |f| f.duration_ns = vec![u64::MAX, 0],
            "duration_ns leaves the range of time in row 0",
        ),
        ("src_ip", |f| f.src_ip = vec![0, 2], "src_ip is 2 in row 1, expected an index into a table of 2"),
        ("dst_ip", |f| f.dst_ip = vec![u32::MAX, 0], "dst_ip is 4294967295 in row 0"),
        (
            "no addresses",
            |f| f.addresses.clear(),
            "src_ip is 0 in row 0, expected an index into a table of 0",
        ),
        ("src_port", |f| f.src_port = vec![65_536, 0], "src_port is 65536 in row 0"),
        ("dst_port", |f| f.dst_port = vec![0, 65_536], "dst_port is 65536 in row 1"),
        ("protocol", |f| f.protocol = vec![256, 0], "protocol is 256 in row 0"),
        ("src_bytes", |f| f.src_bytes = vec![1], "src_bytes has 1 values"),
        ("dst_bytes", |f| f.dst_bytes = vec![1], "dst_bytes has 1 values"),
        ("src_packets", |f| f.src_packets = vec![1], "src_packets has 1 values"),
        ("dst_packets", |f| f.dst_packets = vec![1], "dst_packets has 1 values"),
        ("tcp_flags_src", |f| f.tcp_flags_src = vec![256, 0], "tcp_flags_src is 256"),
        ("tcp_flags_dst", |f| f.tcp_flags_dst = vec![256, 0], "tcp_flags_dst is 256"),
        ("tcp_state", |f| f.tcp_state = vec![12, 0], "tcp_state is 12"),
        ("end_reason", |f| f.end_reason = vec![7, 0], "end_reason is 7"),
        ("connect_error", |f| f.connect_error = vec![6, 0], "connect_error is 6"),
        ("handshake_us", |f| f.handshake_us = vec![1], "handshake_us has 1 values"),
        ("rtt_us", |f| f.rtt_us = vec![1], "rtt_us has 1 values"),
        ("rtt_min_us", |f| f.rtt_min_us = vec![1], "rtt_min_us has 1 values"),
        ("rtt_max_us", |f| f.rtt_max_us = vec![1], "rtt_max_us has 1 values"),
        ("src_retransmits", |f| f.src_retransmits = vec![1], "src_retransmits has 1 values"),
        ("dst_retransmits", |f| f.dst_retransmits = vec![1], "dst_retransmits has 1 values"),
        ("local_process", |f| f.local_process = vec![2, 0], "local_process is 2 in row 0"),
        ("local_pid", |f| f.local_pid = vec![1], "local_pid has 1 values"),
        ("local_cgroup", |f| f.local_cgroup = vec![2, 0], "local_cgroup is 2 in row 0"),
        ("local_container_id", |f| f.local_container_id = vec![0, 9], "local_container_id is 9 in row 1"),
        ("local_pod_uid", |f| f.local_pod_uid = vec![0, 9], "local_pod_uid is 9 in row 1"),
        ("nat_src_ip", |f| f.nat_src_ip = vec![3, 0], "nat_src_ip is 3 in row 0"),
        ("nat_src_port", |f| f.nat_src_port = vec![65_536, 0], "nat_src_port is 65536"),
        ("nat_dst_ip", |f| f.nat_dst_ip = vec![3, 0], "nat_dst_ip is 3 in row 0"),
        ("nat_dst_port", |f| f.nat_dst_port = vec![65_536, 0], "nat_dst_port is 65536"),
    ]
}

fn frame(frame: shipper_frame::Frame) -> ShipperFrame {
    ShipperFrame { frame: Some(frame) }
}

fn id(shipper: u64) -> Vec<u8> {
    [&b"hostile!"[..], &shipper.to_be_bytes()].concat()
}

fn hello(shipper: u64) -> Hello {
    Hello {
        protocol_version: 1,
        shipper_id: id(shipper),
        epoch: vec![3; 16],
        node: "n".into(),
        cluster: "test".into(),
        first_number: 1,
        last_number: 0,
        journal_id: Vec::new(),
        version: "test".into(),
    }
}

/// Flows in which every column is right.
fn flows(rows: u32) -> FlowColumns {
    let all = |value: u32| vec![value; rows as usize];
    FlowColumns {
        rows,
        strings: vec![String::new(), "curl".into()],
        addresses: [[1; 16], [2; 16]].concat(),
        base_time_ns: 1_700_000_000_000_000_000,
        flow_id_high: vec![1; rows as usize],
        flow_id_low: vec![2; rows as usize],
        reporter: all(1),
        vantage: all(1),
        orientation: all(1),
        src_ip: all(0),
        dst_ip: all(1),
        protocol: all(6),
        local_process: all(1),
        ..FlowColumns::default()
    }
}

fn batch(number: u64, flows: &FlowColumns) -> ShipperFrame {
    let mut frame = frame_of(number, &BatchBody { flows: Some(flows.clone()), ..BatchBody::default() });
    if let Some(shipper_frame::Frame::Batch(batch)) = &mut frame.frame {
        // What a lie about the rows is held against.
        batch.events = u32::try_from(flows.reporter.len().max(flows.vantage.len())).unwrap();
    }
    frame
}

fn frame_of(number: u64, body: &BatchBody) -> ShipperFrame {
    let BatchBody { flows, dns, anomalies, losses } = body;
    let rows =
        flows.as_ref().map_or(0, |flows| flows.rows as usize) + dns.len() + anomalies.len() + losses.len();
    let payload = pack(&body.encode_to_vec()).into();
    let events = u32::try_from(rows).unwrap();
    frame(shipper_frame::Frame::Batch(Batch { number, schema_version: 1, codec: 1, payload, events }))
}

fn skip(from_number: u64, to_number: u64) -> ShipperFrame {
    let loss = LossEvent { stage: 2, reason: 1, count: Some(1), ..LossEvent::default() };
    frame(shipper_frame::Frame::Skip(Skip { from_number, to_number, loss: Some(loss) }))
}

fn pack(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(bytes, 1).unwrap()
}

/// A gibibyte of zeros in a few KiB.
fn bomb() -> Vec<u8> {
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
    encoder.set_pledged_src_size(Some(1 << 30)).unwrap();
    encoder.include_contentsize(true).unwrap();
    std::io::copy(&mut std::io::repeat(0).take(1 << 30), &mut encoder).unwrap();
    encoder.finish().unwrap()
}

/// A frame that does not state its content's size.
fn without_size() -> Vec<u8> {
    zstd::stream::encode_all(&[0; 64][..], 1).unwrap()
}

#[test]
fn frames_that_are_no_frames_are_named() {
    run(&[], |server| async move {
        // `kinds` of ObserveRequest has the place of `hello`, and its text is no Hello.
        let mut client = tonic::client::Grpc::new(server.channel().await);
        client.ready().await.unwrap();
        let request = ObserveRequest { kinds: vec!["\u{1}\u{2}\u{3}".into()], ..ObserveRequest::default() };
        let path = tonic::codegen::http::uri::PathAndQuery::from_static("/weir.v1.Ingest/Stream");
        let codec = tonic_prost::ProstCodec::<ObserveRequest, AggregatorFrame>::default();
        let request = tonic::Request::new(tokio_stream::iter([request]));
        let mut replies = client.streaming(request, path, codec).await.unwrap().into_inner();
        let reply = timeout(DEADLINE, replies.message()).await.unwrap().unwrap().unwrap();
        let Some(aggregator_frame::Frame::Refusal(refusal)) = reply.frame else { panic!("{reply:?}") };
        assert_eq!(refusal.reason(), Reason::Protocol);
        assert!(refusal.message.contains("can't be read"), "{}", refusal.message);
        0
    });
}

/// The test holds as many descriptors as it opens connections.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    let needed = scale().hostile_connections + 100;
    assert!(
        limit.maximum.is_none_or(|max| max >= needed),
        "ulimit -n is {:?}, {needed} are needed",
        limit.maximum
    );
}

/// Rows of a batch of the good shipper.
const GOOD_ROWS: u64 = 10;
