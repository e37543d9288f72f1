//! Capture files through the whole path, by the commands that a user types: `weir up --pcap` to DuckDB's sums, and
//! `weir-shipper replay` to a running aggregator, killed at every point.
#![expect(clippy::unwrap_used, reason = "tests panic where they fail")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use weir_integration_tests::duckdb::{DuckDb, number, read_all};
use weir_integration_tests::process::{Process, free_address, wait_for};
use weir_integration_tests::system::Aggregator;

/// Packets of one exchange, and their IP bytes.
const PACKETS: i128 = 3;
const BYTES: i128 = 28 + 5 + 28 + 7 + 28 + 1;

/// A pcap file with so many exchanges of datagrams between hosts of 10.0.0.0/8 and 10.255.0.1, port 53, a millisecond
/// apart.
fn capture(path: &Path, exchanges: u32) {
    let mut file = Vec::new();
    for word in [0xa1b2_c3d4, 4 << 16 | 2, 0, 0, 65_535, 101] {
        file.extend(u32::to_le_bytes(word));
    }
    for exchange in 0..exchanges {
        let [_, a, b, c] = (exchange / 50_000 + 1).to_be_bytes();
        let port = (exchange % 50_000 + 1024) as u16;
        let client = [10, a, b, c];
        let server = [10, 255, 0, 1];
        for (packet, payload) in [&b"query"[..], b"answer!", b"x"].iter().enumerate() {
            let (src, dst, ports) =
                if packet == 1 { (server, client, (53, port)) } else { (client, server, (port, 53)) };
            let length = 28 + payload.len();
            let mut data = vec![0x45, 0];
            data.extend((length as u16).to_be_bytes());
            data.extend([0, 0, 0, 0, 64, 17, 0, 0]);
            data.extend(src);
            data.extend(dst);
            data.extend(u16::to_be_bytes(ports.0));
            data.extend(u16::to_be_bytes(ports.1));
            data.extend((length as u16 - 20).to_be_bytes());
            data.extend([0, 0]);
            data.extend(*payload);
            let (seconds, millis) = (exchange / 1000, exchange % 1000);
            for word in [1_600_000_000 + seconds, millis * 1000 + packet as u32, length as u32, length as u32]
            {
                file.extend(u32::to_le_bytes(word));
            }
            file.extend(data);
        }
    }
    std::fs::write(path, file).unwrap();
}

fn up(data: &Path, files: &[&Path], input: Option<&Path>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sut_weir"));
    command.arg("up").arg("--data").arg(data).arg("--pcap").args(files);
    if let Some(input) = input {
        command.stdin(File::open(input).unwrap());
    }
    command.output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[track_caller]
fn sums(duckdb: &DuckDb, table: &str, condition: &str) -> (i128, i128, i128, i128) {
    let rows = duckdb.query(&format!(
        "SELECT count(*) AS rows, count(DISTINCT event_id) AS ids, sum(src_packets + dst_packets)::BIGINT AS packets, \
         sum(src_bytes + dst_bytes)::BIGINT AS bytes FROM {table} WHERE {condition}"
    ));
    let value = |name: &str| number(&rows[0][name]);
    (value("rows"), value("ids"), value("packets"), value("bytes"))
}

#[test]
fn weir_up_reads_captures_into_parquet_and_sums_them_up() {
    let Some(duckdb) = DuckDb::find() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (data, file) = (dir.path().join("data"), dir.path().join("a.pcap"));
    capture(&file, 500);
    let second = dir.path().join("b.pcap");
    capture(&second, 20);

    let output = up(&data, &[&file], None);
    let text = said(&output);
    assert!(output.status.success(), "{text}");
    for words in [
        "1,500 packets",
        "500 flows replayed",
        "500 events journaled, 0 lost",
        "What was replayed",
        "Top talkers",
        "10.255.0.1",
        "Bytes by protocol",
        "time_quality = 'replayed'",
    ] {
        assert!(text.contains(words), "no '{words}' in:\n{text}");
    }
    let replayed = "kind = 'flow' AND time_quality = 'replayed' AND NOT \"primary\" AND vantage = 'interface' AND reporter = 'transit'";
    let all = read_all(&data);
    assert_eq!(sums(&duckdb, &all, replayed), (500, 500, 500 * PACKETS, 500 * BYTES));
    // Under the capture's own day, and in each column what the packets said.
    let partition = data.join("kind=flow/cluster=local/date=2020-09-13/hour=12");
    assert!(partition.is_dir(), "{}", partition.display());
    let one =
        format!("{replayed} AND src_ip = '10.0.0.1' AND src_port = 1024 AND dst_port = 53 AND opened = 1");
    let times = "start_time = TIMESTAMPTZ '2020-09-13 12:26:40Z' AND end_time = TIMESTAMPTZ '2020-09-13 12:26:40.000002Z'";
    assert_eq!(sums(&duckdb, &all, &format!("{one} AND {times}")), (1, 1, PACKETS, BYTES));

    // From standard input, with another file: another replay, whose summary is its own.
    let output = up(&data, &[Path::new("-"), &second], Some(&second));
    let text = said(&output);
    assert!(output.status.success() && text.contains("120 packets"), "{text}");
    assert_eq!(sums(&duckdb, &all, replayed).2, 520 * PACKETS + 20 * PACKETS);
    let script = std::fs::read_to_string(data.join(".weir/summary.sql")).unwrap();
    let prefix = script.split("starts_with(flow_id::VARCHAR, '").nth(1).unwrap().split('\'').next().unwrap();
    let own = format!("{replayed} AND starts_with(flow_id::VARCHAR, '{prefix}')");
    assert_eq!(sums(&duckdb, &all, &own).2, 40 * PACKETS);
}

#[test]
fn what_cannot_be_read_is_said_and_the_rest_is_kept() {
    let Some(duckdb) = DuckDb::find() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (data, whole, cut) =
        (dir.path().join("data"), dir.path().join("whole.pcap"), dir.path().join("cut.pcap"));
    capture(&whole, 10);
    let mut bytes = std::fs::read(&whole).unwrap();
    bytes.truncate(bytes.len() - 3);
    std::fs::write(&cut, bytes).unwrap();

    let output = up(&data, &[&cut, &whole], None);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(65), "{text}");
    assert!(text.contains("cut.pcap is cut off at byte 1"), "{text}");
    assert_eq!(sums(&duckdb, &read_all(&data), "kind = 'flow'").2, 20 * PACKETS - 1);

    for (name, content, code, words) in [
        ("missing.pcap", None, 66, "open the capture file"),
        ("text.pcap", Some("no packets here"), 65, "is not a capture file: it begins with 6e6f2070"),
    ] {
        let path = dir.path().join(name);
        if let Some(content) = content {
            std::fs::write(&path, content).unwrap();
        }
        let output = up(&dir.path().join("nothing"), &[&whole, &path], None);
        let text = said(&output);
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(text.contains(words) && text.contains(name), "{text}");
        assert!(!dir.path().join("nothing/kind=flow").exists(), "something was begun");
    }
}

/// `weir-shipper replay` with a spool of its own.
struct Replayer {
    home: PathBuf,
    aggregator: Aggregator,
}

impl Replayer {
    fn new(home: &Path) -> Self {
        let aggregator = Aggregator {
            program: env!("CARGO_BIN_EXE_sut_aggregator").into(),
            home: home.to_owned(),
            address: free_address(),
            admin: free_address(),
            set: Vec::new(),
        };
        Self { home: home.to_owned(), aggregator }
    }

    fn start(&self, words: &[&Path], set: &[&str], crash: Option<&str>) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sut_shipper"));
        command.args(["replay", "--node", "n1", "--aggregator", &self.aggregator.address.to_string()]);
        command.arg("--set").arg(format!("replay.spool_dir={}", self.home.join("replay").display()));
        command.args(["--set", "client.backoff_max=300ms"]);
        set.iter().for_each(|setting| {
            command.args(["--set", setting]);
        });
        command.args(words);
        match crash {
            Some(crash) => command.env("WEIR_CRASH_AT", crash),
            None => command.env_remove("WEIR_CRASH_AT"),
        };
        Process::spawn(&mut command, &self.log())
    }

    fn log(&self) -> PathBuf {
        self.home.join("replay.log")
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }
}

#[test]
fn a_replay_that_is_killed_goes_on_and_each_record_arrives_once() {
    const EXCHANGES: u32 = 40_000;
    let Some(duckdb) = DuckDb::find() else { return };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.pcap");
    capture(&file, EXCHANGES);
    let replayer = Replayer::new(dir.path());
    let mut aggregator = replayer.aggregator.start(None);
    for point in [
        "spool.before_append:2",
        "spool.appended:1",
        "spool.synced:1",
        "client.reserved:1",
        "client.sent:1",
        "spool.released:2",
        "client.acked:1",
    ] {
        replayer.start(&[&file], &[], Some(point)).wait_killed();
    }
    // Another one into the same spool would lose sight of this one.
    let other = dir.path().join("b.pcap");
    capture(&other, 10);
    for (words, reason) in [
        (&[other.as_path()][..], "this is another one"),
        (&[Path::new("--set=replay.interval=3s"), &file][..], "its options were others"),
    ] {
        let mut refused = replayer.start(words, &[], None);
        assert_eq!(refused.wait().code(), Some(1), "{}", refused.log_tail());
        assert!(replayer.said().contains(reason), "{}", refused.log_tail());
    }
    replayer.start(&[&file], &[], None).wait_success();
    let wanted = (i128::from(EXCHANGES), i128::from(EXCHANGES));
    let expected = (wanted.0, wanted.1, wanted.0 * PACKETS, wanted.0 * BYTES);
    let table = replayer.aggregator.table("flow");
    let arrived = || sums(&duckdb, &table, "true");
    wait_for(
        "all records",
        || format!("{:?}", arrived()),
        || replayer.aggregator.has("flow") && arrived().0 >= wanted.0,
    );
    assert_eq!(arrived(), expected);
    assert!(!replayer.aggregator.has("loss"));

    // What is through is another replay when it is asked for again.
    replayer.start(&[&file], &[], None).wait_success();
    let twice = (2 * expected.0, 2 * expected.1, 2 * expected.2, 2 * expected.3);
    wait_for("all records again", || format!("{:?}", arrived()), || arrived().0 >= twice.0);
    assert_eq!(arrived(), twice);
    assert_eq!(
        number(&duckdb.value(&format!("SELECT count(DISTINCT left(flow_id::VARCHAR, 13)) FROM {table}"))),
        2
    );
    aggregator.terminate();
    aggregator.wait_success();
}

#[test]
fn a_replay_waits_for_room_where_a_capture_would_drop() {
    const EXCHANGES: u32 = 100_000;
    let Some(duckdb) = DuckDb::find() else { return };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.pcap");
    capture(&file, EXCHANGES);
    let replayer = Replayer::new(dir.path());
    let mut replay = replayer.start(&[&file], &["spool.bytes_max=512KiB"], None);
    wait_for("a full spool", || replayer.said(), || replayer.said().contains("the spool is full"));
    let mut aggregator = replayer.aggregator.start(None);
    replay.wait_success();
    let table = replayer.aggregator.table("flow");
    let arrived = || sums(&duckdb, &table, "true");
    wait_for(
        "all records",
        || format!("{:?}", arrived()),
        || replayer.aggregator.has("flow") && arrived().0 >= i128::from(EXCHANGES),
    );
    assert_eq!(arrived().2, i128::from(EXCHANGES) * PACKETS);
    assert!(!replayer.aggregator.has("loss"));
    aggregator.terminate();
    aggregator.wait_success();
}
