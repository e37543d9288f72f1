//! Strangers, slow peers and crowds of connections, against a real aggregator: the service goes on.

#![expect(clippy::unwrap_used, reason = "tests panic with what failed")]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use tokio::time::timeout;
use weir_integration_tests::frames::{batch, flows};
use weir_integration_tests::peer::run;
use weir_integration_tests::process::DEADLINE;
use weir_integration_tests::scale::scale;
use weir_proto::v1::refusal::Reason;
use weir_proto::v1::{AggregatorFrame, ObserveRequest, aggregator_frame};

const AGGREGATOR: &str = env!("CARGO_BIN_EXE_sut_aggregator");

#[test]
fn strangers_are_closed_and_slow_peers_hold_up_nobody() {
    run(AGGREGATOR, &[], |server| async move {
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
        let served = server.served();
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
    run(AGGREGATOR, &["ingest.connections_max=256"], |server| async move {
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
        let served = server.served();
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

#[test]
fn frames_that_are_no_frames_are_named() {
    run(AGGREGATOR, &[], |server| async move {
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
