//! Strangers at the aggregator's door: plain bytes, older TLS, half a handshake, one byte at a time, many at once. They
//! get nothing but an alert, learn nothing, and shippers are served meanwhile.
#![expect(clippy::unwrap_used, reason = "tests panic where they fail")]

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use weir_integration_tests::certs::{self, Secret, valid};
use weir_integration_tests::process::{DEADLINE, Process, free_address, http_get, metric_sum, wait_for};
use weir_integration_tests::scale::scale;
use weir_integration_tests::system::{Aggregator, Generator};

const HANDSHAKES_MAX: usize = 32;

/// A ClientHello of TLS 1.2 (RFC 5246, section 7.4.1.2): no list of versions, one suite, one group, one signature.
fn client_hello_12() -> Vec<u8> {
    let extensions: &[u8] = &[
        0, 10, 0, 4, 0, 2, 0, 23, // supported_groups: secp256r1
        0, 11, 0, 2, 1, 0, // ec_point_formats: uncompressed
        0, 13, 0, 4, 0, 2, 4, 3, // signature_algorithms: ecdsa_secp256r1_sha256
    ];
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0xc0, 0x2b, 1, 0]);
    body.extend((extensions.len() as u16).to_be_bytes());
    body.extend(extensions);
    let mut handshake = vec![1, 0];
    handshake.extend((body.len() as u16).to_be_bytes());
    handshake.extend(body);
    let mut record = vec![22, 3, 1];
    record.extend((handshake.len() as u16).to_be_bytes());
    record.extend(handshake);
    record
}

fn metric(address: SocketAddr, name: &str, labels: &str) -> f64 {
    http_get(address, "/metrics").ok().and_then(|(_, text)| metric_sum(&text, name, labels)).unwrap_or(0.0)
}

/// From another address than the shippers have.
async fn stranger(address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    socket.connect(address).await.unwrap()
}

/// All that comes back, until the other side closes.
async fn answer(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    // A reset is an end too.
    let _ = timeout(DEADLINE, stream.read_to_end(&mut all)).await.expect("the connection is closed");
    all
}

/// An alert is one record of seven bytes (RFC 8446, section 6), or nothing came.
fn is_alert(bytes: &[u8]) -> bool {
    bytes.is_empty() || (bytes.len() == 7 && bytes[0] == 21 && bytes[3..6] == [0, 2, 2])
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_get_nothing_and_shippers_are_served() {
    let home = tempfile::tempdir().unwrap();
    let authority = certs::authority();
    let theirs = Secret::new(&home.path().join("server"), &certs::server(&authority, valid()), &[&authority]);
    let ours =
        Secret::new(&home.path().join("node"), &certs::node(&authority, "node-0", valid()), &[&authority]);
    let mut set = theirs.settings();
    set.push("tls.handshake_timeout=700ms".to_owned());
    set.push(format!("tls.handshakes_max={HANDSHAKES_MAX}"));
    let aggregator = Aggregator {
        program: env!("CARGO_BIN_EXE_sut_aggregator").into(),
        home: home.path().to_owned(),
        address: free_address(),
        admin: free_address(),
        set,
    };
    let mut server = aggregator.start(None);
    let up = || http_get(aggregator.admin, "/healthz").is_ok();
    wait_for("the aggregator to be up", || server.log_tail(), up);
    let refused = |reason: &str| {
        let labels = format!("reason=\"{reason}\"");
        metric(aggregator.admin, "weir_aggregator_connections_refused_total", &labels)
    };
    let address = aggregator.address;

    // Bytes of something else: HTTP/2, HTTP/1.1, noise.
    let plain: [&[u8]; 3] = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", &[0xff; 64]];
    for bytes in plain {
        let mut stream = stranger(address).await;
        stream.write_all(bytes).await.unwrap();
        let answer = answer(&mut stream).await;
        assert!(is_alert(&answer), "{answer:?}");
    }
    assert_eq!(refused("tls_not_tls"), 3.0);
    let mut old = stranger(address).await;
    old.write_all(&client_hello_12()).await.unwrap();
    // fatal, protocol_version
    let answer_old = answer(&mut old).await;
    assert_eq!(answer_old.last(), Some(&70), "{answer_old:?}");
    assert_eq!(refused("tls_version"), 1.0);

    // Half a handshake, none, and one byte at a time.
    let hello = client_hello_12();
    let mut half = stranger(address).await;
    half.write_all(&hello[..20]).await.unwrap();
    let mut silent = stranger(address).await;
    assert_eq!((answer(&mut half).await, answer(&mut silent).await), (vec![], vec![]));
    let mut slow = stranger(address).await;
    let (mut read, mut write) = slow.split();
    let writes = async {
        for byte in hello.iter().cycle() {
            if write.write_all(&[*byte & 0x16]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let mut nothing = Vec::new();
    tokio::select! {
        _ = read.read_to_end(&mut nothing) => {}
        () = writes => {}
        () = tokio::time::sleep(DEADLINE) => panic!("a slow stranger is still there"),
    }
    assert!(is_alert(&nothing), "{nothing:?}");
    assert!(refused("tls_timeout") >= 2.0);

    // Many at once, and a shipper between them.
    let crowd = tokio::spawn(async move {
        let mut streams = Vec::new();
        loop {
            let stream = stranger(address).await;
            streams.push(stream);
            if streams.len() > 2 * HANDSHAKES_MAX {
                streams.remove(0);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    let full = || refused("handshakes_max") > 0.0;
    wait_for("strangers to be turned away", || server.log_tail(), full);
    let generator = Generator {
        program: env!("CARGO_BIN_EXE_weir-gen").into(),
        home: home.path().join("generator"),
        aggregator: address,
        admin: None,
        index: 0,
        events: scale().disk_events,
        interval_events: 1000,
        rate: 0,
        stay: false,
        realistic: false,
        set: ours.settings(),
    };
    let mut shipper: Process = generator.start(None);
    let done = tokio::task::spawn_blocking(move || shipper.wait_success());
    done.await.unwrap();
    crowd.abort();
    let journaled = metric(aggregator.admin, "weir_aggregator_journaled_events_total", "kind=\"flow\"");
    assert_eq!(journaled, scale().disk_events as f64);
    let open = metric(aggregator.admin, "weir_aggregator_tls_handshakes", "");
    assert!(open <= (HANDSHAKES_MAX / 4) as f64 + 1.0, "{open}");
    let words = server.log_tail();
    assert!(words.lines().count() < 30, "strangers fill the log: {words}");
    wait_for(
        "all strangers to be gone",
        || server.log_tail(),
        || metric(aggregator.admin, "weir_aggregator_tls_handshakes", "") == 0.0,
    );
    server.terminate();
    server.wait_success();
}
