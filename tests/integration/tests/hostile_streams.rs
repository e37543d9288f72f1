//! Streams that break the rules of sequence and window, against a real aggregator: each is refused by name, and every event
//! counts once.

use tonic::Code;
use weir_integration_tests::frames::{batch, flows, skip};
use weir_integration_tests::peer::run;
use weir_proto::v1::refusal::Reason;

const AGGREGATOR: &str = env!("CARGO_BIN_EXE_sut_aggregator");

#[test]
fn the_sequence_rules_hold_against_replays_gaps_skips_and_second_streams() {
    run(AGGREGATOR, &[], |server| async move {
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
        AGGREGATOR,
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
