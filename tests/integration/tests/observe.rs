//! The observe service of a real aggregator: the last events and new ones, by kind; and a viewer that does not keep up,
//! which is told how much passed it by and holds up nobody.
#![expect(clippy::unwrap_used, reason = "tests panic where they fail")]

use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::time::timeout;
use tonic::{Code, Status, Streaming};
use weir_integration_tests::frames::{batch, flows, skip};
use weir_integration_tests::peer::{Peer, Server};
use weir_integration_tests::process::{DEADLINE, Process};
use weir_proto::v1::observe_client::ObserveClient;
use weir_proto::v1::{FlowColumns, ObserveReply, ObserveRequest};

/// An aggregator, and a shipper whose events count themselves in `src_bytes`.
struct Observed {
    process: Process,
    server: Server,
    peer: Peer,
    number: u64,
    events: u64,
    _home: TempDir,
}

impl Observed {
    async fn start() -> Self {
        let home = TempDir::new().unwrap();
        let (process, server) = Server::start(env!("CARGO_BIN_EXE_sut_aggregator"), home.path(), &[]);
        let peer = server.greeted(1).await;
        Self { process, server, peer, number: 0, events: 0, _home: home }
    }

    /// Has so many flows journaled, in one record.
    async fn journal(&mut self, rows: u32) {
        let ids = self.events + 1..=self.events + u64::from(rows);
        let flows = FlowColumns { src_bytes: ids.collect(), ..flows(rows) };
        (self.number, self.events) = (self.number + 1, self.events + u64::from(rows));
        self.peer.send(batch(self.number, &flows)).await;
        self.peer.acknowledged(self.number).await;
    }

    /// Has a loss journaled.
    async fn lose(&mut self) {
        self.peer.send(skip(self.number + 1, self.number + 1)).await;
        self.number += 1;
        self.peer.acknowledged(self.number).await;
    }

    async fn observe(
        &self,
        kinds: &[&str],
        last: u32,
        follow: bool,
    ) -> Result<Streaming<ObserveReply>, Status> {
        let kinds = kinds.iter().map(|kind| (*kind).to_owned()).collect();
        let mut client = ObserveClient::new(self.server.channel().await);
        Ok(client.observe(ObserveRequest { kinds, last, follow }).await?.into_inner())
    }

    /// All events that a viewer gets who does not follow.
    async fn past(&self, kinds: &[&str], last: u32) -> Vec<(String, u64)> {
        let mut replies = self.observe(kinds, last, false).await.unwrap();
        let mut events = Vec::new();
        while let Some(reply) = next(&mut replies).await {
            assert_eq!(reply.missed, 0);
            events.extend(shown(&reply));
        }
        events
    }

    fn end(mut self) {
        self.process.terminate();
        self.process.wait_success();
    }
}

async fn next(replies: &mut Streaming<ObserveReply>) -> Option<ObserveReply> {
    timeout(DEADLINE, replies.message()).await.expect("a reply in time").unwrap()
}

/// Kind and number of each event of a reply; a loss has none.
fn shown(reply: &ObserveReply) -> Vec<(String, u64)> {
    let number = |json: &str| {
        let event: Value = serde_json::from_str(json).unwrap();
        event["src_bytes"].as_u64().unwrap_or(0)
    };
    reply.events.iter().map(|event| (event.kind.clone(), number(&event.json))).collect()
}

fn flows_of(numbers: impl Iterator<Item = u64>) -> Vec<(String, u64)> {
    numbers.map(|number| ("flow".to_owned(), number)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_events_and_new_ones_by_kind() {
    let mut observed = Observed::start().await;
    for _ in 0..3 {
        observed.journal(10).await;
    }
    observed.lose().await;
    let loss = ("loss".to_owned(), 0);

    // The newest of all kinds, oldest first; more than there are are all there are.
    assert_eq!(observed.past(&[], 4).await, [&flows_of(28..=30)[..], std::slice::from_ref(&loss)].concat());
    assert_eq!(observed.past(&["flow"], 15).await, flows_of(16..=30));
    assert_eq!(
        observed.past(&["loss", "flow"], 10_000).await,
        [&flows_of(1..=30)[..], std::slice::from_ref(&loss)].concat()
    );
    assert_eq!(observed.past(&["loss"], 5).await, [loss]);
    assert_eq!(observed.past(&["dns", "anomaly"], 5).await, []);

    // From the last two on, with what comes; the counters stand beside them.
    let mut replies = observed.observe(&["flow"], 2, true).await.unwrap();
    let reply = next(&mut replies).await.unwrap();
    assert_eq!(shown(&reply), flows_of(29..=30));
    let status = reply.status.unwrap();
    assert_eq!((status.journaled_events, status.shippers_connected, status.lost_events), (31, 1, 1));
    observed.lose().await;
    observed.journal(5).await;
    assert_eq!(shown(&next(&mut replies).await.unwrap()), flows_of(31..=35), "the loss is not asked for");

    let refused = observed.observe(&["flows"], 1, false).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("\"flows\", expected one of flow, dns"), "{refused}");
    let refused = observed.observe(&[], 10_001, false).await.unwrap_err();
    assert!(refused.message().contains("last is 10001, expected at most 10000"), "{refused}");

    // The same by the command, a JSON object each line.
    let output = Command::new(env!("CARGO_BIN_EXE_sut_weir"))
        .args(["observe", "--aggregator", &observed.server.grpc.to_string()])
        .args(["--last", "3", "--kind", "flow", "-o", "json"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let numbers: Vec<_> =
        lines.iter().map(|line| (line["kind"].as_str(), line["src_bytes"].as_u64())).collect();
    assert_eq!(numbers, [33, 34, 35].map(|number| (Some("flow"), Some(number))));
    // A viewer that follows is told of the end.
    observed.end();
    while let Ok(Some(_)) = timeout(DEADLINE, replies.message()).await.expect("an end in time") {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_viewer_that_does_not_read_is_told_what_passed_and_holds_up_nobody() {
    const ROWS: u32 = 1000;
    const RECORDS: u64 = 60;
    let mut observed = Observed::start().await;
    let mut slow = observed.observe(&[], 0, true).await.unwrap();
    let mut quick = observed.observe(&[], 0, true).await.unwrap();
    // Both are watching once the first event is there.
    observed.journal(1).await;
    let reading = tokio::spawn(async move {
        let total = 1 + RECORDS * u64::from(ROWS);
        let (mut events, mut missed) = (0, 0);
        while events + missed < total {
            let reply = next(&mut quick).await.expect("it follows");
            (events, missed) = (events + reply.events.len() as u64, missed + reply.missed);
        }
        (events, missed)
    });
    // Each is journaled and acknowledged, though one viewer reads nothing: 24 MB of it do not fit on its way.
    for _ in 0..RECORDS {
        observed.journal(ROWS).await;
    }
    let passed = observed.server.metric("weir_aggregator_observe_missed_events_total", "");
    assert!(passed > 0.0, "a viewer that does not read missed nothing\n{}", observed.server.metrics());
    // The quick one may miss some on a busy machine, and is told how many, though nothing comes after.
    let (events, missed) = reading.await.unwrap();
    assert!(events > 0 && events + missed == 1 + RECORDS * u64::from(ROWS), "{events} and {missed} missed");

    // Once it reads: what was on its way, and with the next reply how much was not.
    let (mut events, mut missed, mut newest) = (0, 0, 0);
    while events + missed < observed.events {
        assert!(observed.events < RECORDS * u64::from(ROWS) + 100, "{events} shown, {missed} missed");
        let reply = match timeout(Duration::from_millis(200), slow.message()).await {
            Ok(reply) => reply.unwrap().expect("it follows"),
            // It waits for news to be told.
            Err(_) => {
                observed.journal(1).await;
                continue;
            }
        };
        assert!(reply.events.is_empty() || shown(&reply)[0].1 > newest, "events come in their order");
        newest = shown(&reply).last().map_or(newest, |(_, number)| *number);
        (events, missed) = (events + reply.events.len() as u64, missed + reply.missed);
    }
    assert_eq!(events + missed, observed.events);
    assert!(missed > 0, "{events} shown");
    observed.end();
}
