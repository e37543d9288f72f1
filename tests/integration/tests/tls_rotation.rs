//! Certificates are rotated under load, authorities too: nothing is lost or doubled, and what was replaced is refused
//! afterwards.
#![expect(clippy::unwrap_used, reason = "tests panic where they fail")]

use std::net::SocketAddr;
use std::time::Duration;

use weir::certs::Pair;
use weir_common::tls::client::Dialer;
use weir_common::tls::config::TlsConfig;
use weir_common::tls::failure::Failure;
use weir_integration_tests::certs::{self, Secret, valid};
use weir_integration_tests::duckdb::{DuckDb, number};
use weir_integration_tests::process::{free_address, http_get, metric_sum, wait_for};
use weir_integration_tests::scale::scale;
use weir_integration_tests::system::{Aggregator, Generator};

const INTERVAL_EVENTS: u64 = 100;

fn metric(address: SocketAddr, name: &str, labels: &str) -> f64 {
    http_get(address, "/metrics").ok().and_then(|(_, text)| metric_sum(&text, name, labels)).unwrap_or(0.0)
}

fn text(pair: &Pair) -> Pair {
    pair.clone()
}

#[test]
fn nothing_is_lost_while_certificates_and_authorities_change() {
    let Some(duckdb) = DuckDb::find() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (certs::authority(), certs::authority());
    let first = certs::node(&old, "node-0", valid());
    let mut theirs = Secret::new(&dir.path().join("server"), &certs::server(&old, valid()), &[&old]);
    let mut ours = Secret::new(&dir.path().join("node"), &first, &[&old]);
    let aggregator = Aggregator {
        program: env!("CARGO_BIN_EXE_sut_aggregator").into(),
        home: dir.path().to_owned(),
        address: free_address(),
        admin: free_address(),
        set: theirs.settings(),
    };
    let mut set = ours.settings();
    set.push("drain.timeout=20m".to_owned());
    let admin = free_address();
    let generator = Generator {
        program: env!("CARGO_BIN_EXE_weir-gen").into(),
        home: dir.path().join("generator"),
        aggregator: aggregator.address,
        admin: Some(admin),
        index: 0,
        events: 1 << 40,
        interval_events: INTERVAL_EVENTS,
        rate: scale().kill_rate,
        stay: true,
        realistic: false,
        set,
    };
    let mut server = aggregator.start(None);
    let mut shipper = generator.start(None);
    let logs = || format!("{}\n{}", server.log_tail(), shipper.log_tail());
    let journaled = || metric(aggregator.admin, "weir_aggregator_journaled_events_total", "kind=\"flow\"");
    let goes_on = |what: &str| {
        let before = journaled();
        wait_for(what, logs, || journaled() > before);
    };
    let used = |of: &str| {
        let (address, name) = match of {
            "shipper" => (admin, "weir_shipper_tls_reloads_total"),
            _ => (aggregator.admin, "weir_aggregator_tls_reloads_total"),
        };
        metric(address, name, "result=\"used\"")
    };
    let mut reloads = (0.0, 0.0);
    let mut both = |what: &str, server: bool, shipper: bool| {
        reloads = (reloads.0 + f64::from(u8::from(server)), reloads.1 + f64::from(u8::from(shipper)));
        wait_for(what, logs, || (used("aggregator"), used("shipper")) == reloads);
        goes_on(what);
    };
    goes_on("the first events");

    // New certificates of the same authority.
    for _ in 0..scale().kill_random {
        theirs.put(&certs::server(&old, valid()), &[&old]);
        ours.put(&certs::node(&old, "node-0", valid()), &[&old]);
        both("renewed certificates to be used", true, true);
    }
    // A new authority: first both believe it, then both are signed by it, then the old one goes.
    let (server_pair, node_pair) = (certs::server(&new, valid()), certs::node(&new, "node-0", valid()));
    let last_old = certs::node(&old, "node-0", valid());
    theirs.put(&certs::server(&old, valid()), &[&old, &new]);
    ours.put(&last_old, &[&old, &new]);
    both("both authorities to be believed", true, true);
    theirs.put(&server_pair, &[&old, &new]);
    ours.put(&node_pair, &[&old, &new]);
    both("certificates of the new authority to be used", true, true);
    // The stream was opened with a certificate of the old one: it ends, and comes back with the new one.
    theirs.put(&server_pair, &[&new]);
    both("the old authority to be forgotten", true, false);
    let revoked = || metric(aggregator.admin, "weir_aggregator_connections_revoked_total", "tls_unknown_ca");
    wait_for("the old connection to end", logs, || revoked() == 1.0);
    goes_on("events on a new connection");
    ours.put(&node_pair, &[&new]);
    both("the shipper to forget it as well", false, true);

    // Half a pair changes nothing.
    ours.put_raw(&node_pair.certificate, &first.key, new.certificate());
    let failed = || metric(admin, "weir_shipper_tls_reloads_total", "result=\"failed\"");
    wait_for("the wrong key to be noticed", logs, || failed() == 1.0);
    assert!(shipper.log_tail().contains("does not belong to the certificate"), "{}", shipper.log_tail());
    goes_on("events with the last good files");
    ours.put(&node_pair, &[&new]);
    both("the right key", false, true);

    for (pair, ca, expected) in [
        (text(&first), &new, Failure::PeerUnknownCa),
        (text(&last_old), &new, Failure::PeerUnknownCa),
        (text(&node_pair), &old, Failure::UnknownCa),
    ] {
        let home = tempfile::tempdir().unwrap();
        let secret = Secret::new(&home.path().join("old"), &pair, &[ca]);
        assert_eq!(refusal(&secret, aggregator.address), Some(expected));
    }

    shipper.terminate();
    let status = shipper.wait_within(Duration::from_secs(600));
    assert!(status.success(), "the generator ended with {status}:\n{}", shipper.log_tail());
    server.terminate();
    server.wait_success();
    let sent = i128::from(generator.intervals_released() * INTERVAL_EVENTS);
    let row = &duckdb.query(&format!(
        "SELECT count(*) AS rows, count(DISTINCT src_bytes) AS ids FROM {}",
        aggregator.table("flow")
    ))[0];
    println!("SOAK rotation: {sent} sent, {row:?}");
    assert_eq!((number(&row["rows"]), number(&row["ids"])), (sent, sent));
    assert!(!aggregator.has("loss"), "something was declared lost");
}

/// Why a connection with these files ends; `None` if it is served.
fn refusal(secret: &Secret, address: SocketAddr) -> Option<Failure> {
    use tokio::io::AsyncReadExt as _;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let config = TlsConfig::Files { files: secret.files(), reload_interval: Duration::from_secs(60) };
        let dialer = Dialer::open(&config, None, |_| {}).unwrap();
        match dialer.dial(&address.to_string(), Duration::from_secs(10)).await {
            Err(weir_common::tls::client::DialError::Tls { failure, .. }) => Some(failure),
            Err(error) => panic!("{error}"),
            Ok(mut link) => {
                // A server that accepts speaks first: its SETTINGS.
                let failure = link.failure();
                let read = link.read_u8().await;
                assert_eq!(read.is_err(), failure.met().is_some(), "{read:?}");
                failure.met()
            }
        }
    })
}
