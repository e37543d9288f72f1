//! The table of keys: sample file, reference page, environment and flags all come from it.

use weir_common::config::{Key, ValueKind};
use weir_common::tls::config as tls;

/// Every key of the aggregator, in the order of the sample file.
pub const KEYS: &[Key] = &[
    text(
        "name",
        "",
        "Name of this aggregator in the loss rows that it writes itself; empty: the host's name.",
    ),
    text(
        "grpc.listen",
        "127.0.0.1:9464",
        "Address and port for shippers and `weir observe`; port 0 takes a free one.",
    ),
    tls::MODE,
    tls::CERTIFICATE,
    tls::KEY,
    tls::CA,
    tls::RELOAD_INTERVAL,
    span(
        "tls.handshake_timeout",
        10,
        600_000,
        "5s",
        "How long a TLS handshake may take; nothing is answered before it is complete.",
    ),
    count(
        "tls.handshakes_max",
        4,
        65_536,
        "256",
        "Handshakes that are not complete, at most; one address has a quarter of them at most.",
    ),
    text("admin.listen", "127.0.0.1:9466", "Address and port of /metrics, /healthz and /readyz."),
    text(
        "cluster.default",
        "local",
        "Cluster of shippers that name none, and of this aggregator's own rows; [a-z0-9.-]{1,63}.",
    ),
    text("cluster.override", "", "When set, the cluster of all shippers, whatever they say."),
    list(
        "cluster.allowed",
        "a list of names",
        "When not empty, only shippers of these clusters may connect.",
    ),
    text("journal.dir", "./data/.weir/journal", "Folder of the journal; a disk of its own in production."),
    bytes(
        "journal.bytes_max",
        16 << 20,
        1 << 44,
        "8GiB",
        "Budget of the journal on disk; when it is spent, ingestion waits for the required sinks. It must hold a segment and the largest record that the limits of ingest allow.",
    ),
    bytes("journal.segment_bytes", 64 << 10, 1 << 30, "64MiB", "Size of a file of the journal."),
    bytes(
        "journal.tail_bytes",
        0,
        1 << 36,
        "64MiB",
        "Memory for the latest records, from which sinks read without touching the disk.",
    ),
    count("journal.group_rows", 1, 1 << 20, "16384", "A group commit is closed once it has this many rows."),
    span("journal.group_linger", 0, 1000, "2ms", "How long a group commit waits for more."),
    bytes("ingest.payload_bytes_max", 64 << 10, 64 << 20, "4MiB", "Largest payload of a batch, compressed."),
    bytes("ingest.decoded_bytes_max", 64 << 10, 64 << 20, "16MiB", "Largest batch, decompressed."),
    count("ingest.rows_max", 1, 524_288, "131072", "Most rows of a batch."),
    bytes("ingest.string_bytes_max", 256, 1 << 20, "4KiB", "Longest text of an event."),
    count(
        "ingest.window_batches",
        1,
        65_536,
        "64",
        "How many batches a shipper may send beyond the last acknowledgement.",
    ),
    bytes(
        "ingest.window_bytes",
        64 << 10,
        1 << 32,
        "16MiB",
        "How many bytes of payload it may send beyond it.",
    ),
    bytes(
        "ingest.memory_bytes",
        16 << 20,
        1 << 40,
        "256MiB",
        "Memory for all batches that are received and not yet journaled.",
    ),
    count("ingest.streams_max", 1, 65_536, "1024", "Open streams of shippers; more are refused."),
    count("ingest.connections_max", 1, 1 << 20, "4096", "Open connections; more are closed at once."),
    count("ingest.shippers_max", 1, 1 << 20, "16384", "Shippers whose sequence state is kept."),
    count(
        "ingest.epochs_max",
        2,
        1024,
        "8",
        "Epochs kept of each shipper; the one silent longest is forgotten.",
    ),
    span(
        "ingest.state_age_max",
        3_600_000,
        YEARS_10,
        "90d",
        "Epochs silent for longer than this are forgotten.",
    ),
    span(
        "ingest.hello_timeout",
        10,
        600_000,
        "10s",
        "How long a connection may take for its preface, and a stream for its Hello.",
    ),
    span(
        "ingest.keepalive_interval",
        100,
        3_600_000,
        "20s",
        "How often an idle connection is pinged (HTTP/2).",
    ),
    span(
        "ingest.keepalive_timeout",
        100,
        3_600_000,
        "10s",
        "How long the answer to a ping may take before the connection is closed.",
    ),
    span(
        "ingest.ahead_max",
        1000,
        YEARS_10,
        "10m",
        "A flow that ends later than this after its receipt is marked skewed.",
    ),
    list(
        "networks",
        "a list of {name, cidrs, identity}",
        "Named networks; the longest prefix counts. `identity` (pod, service, node, external, masked, unknown) may be left out.",
    ),
    Key {
        path: "default_identity",
        kind: ValueKind::Choice(IDENTITIES),
        default: "unknown",
        doc: "What an address is that no network, node or pool holds; `external` where those are complete.",
    },
    list(
        "enrolment.nodes",
        "a list of {name, cidrs}",
        "Nodes with a shipper and their own addresses: their own reports of connections they open count.",
    ),
    list("enrolment.pools", "a list of prefixes", "Prefixes of the pods on those nodes."),
    Key {
        path: "parquet.enabled",
        kind: ValueKind::Bool,
        default: "true",
        doc: "Write Parquet files; a required sink.",
    },
    text(
        "parquet.dir",
        "./data",
        "Root of the Parquet files; with `parquet.url` the folder in which they wait for their publication, on a disk that survives a restart.",
    ),
    text(
        "parquet.url",
        "",
        "Store of objects for the Parquet files: s3://bucket/prefix, gs://bucket/prefix or az://container/prefix; empty: the folder.",
    ),
    Key {
        path: "parquet.options",
        kind: ValueKind::Structure("a map of names to texts"),
        default: "{}",
        doc: "Options of that store by the names that the crate object_store gives them (endpoint, region, allow_http, …), over those of the environment (AWS_*, GOOGLE_*, AZURE_*), where credentials belong.",
    },
    span(
        "parquet.roll_age",
        100,
        86_400_000,
        "60s",
        "Files are published when their oldest row has waited this long.",
    ),
    bytes(
        "parquet.roll_bytes",
        64 << 10,
        1 << 40,
        "128MiB",
        "Files are published when one has this many bytes.",
    ),
    count(
        "parquet.partitions_max",
        1,
        100_000,
        "64",
        "Files are published when this many partitions are open.",
    ),
    bytes(
        "parquet.buffer_bytes_max",
        1 << 20,
        1 << 40,
        "256MiB",
        "Memory for rows that wait for their row group.",
    ),
    age("parquet.retention.flow.age", "Flow files are deleted when they are older; 0s: never."),
    size("parquet.retention.flow.bytes", "The oldest flow files beyond this size are deleted; 0: never."),
    age("parquet.retention.dns.age", "The same for kind=dns."),
    size("parquet.retention.dns.bytes", "The same for kind=dns."),
    age("parquet.retention.anomaly.age", "The same for kind=anomaly."),
    size("parquet.retention.anomaly.bytes", "The same for kind=anomaly."),
    age("parquet.retention.loss.age", "The same for kind=loss."),
    size("parquet.retention.loss.bytes", "The same for kind=loss."),
    Key {
        path: "log.format",
        kind: ValueKind::Choice(&["human", "json"]),
        default: "human",
        doc: "How log lines look.",
    },
    text(
        "log.level",
        "info",
        "Least level of log lines: error, warn, info, debug, trace, or a filter by module.",
    ),
    span(
        "drain.timeout",
        100,
        3_600_000,
        "30s",
        "How long SIGTERM waits for batches in flight and for the sinks.",
    ),
];

/// Values of `default_identity` and of a network's `identity`.
pub(super) const IDENTITIES: &[&str] = &["pod", "service", "node", "external", "masked", "unknown"];

const YEARS_10: u64 = 10 * 365 * 86_400_000;

const fn text(path: &'static str, default: &'static str, doc: &'static str) -> Key {
    Key { path, kind: ValueKind::Text, default, doc }
}

const fn list(path: &'static str, form: &'static str, doc: &'static str) -> Key {
    Key { path, kind: ValueKind::Structure(form), default: "[]", doc }
}

const fn count(path: &'static str, min: u64, max: u64, default: &'static str, doc: &'static str) -> Key {
    Key { path, kind: ValueKind::U64 { min, max }, default, doc }
}

const fn bytes(path: &'static str, min: u64, max: u64, default: &'static str, doc: &'static str) -> Key {
    Key { path, kind: ValueKind::Bytes { min, max }, default, doc }
}

const fn span(path: &'static str, min_ms: u64, max_ms: u64, default: &'static str, doc: &'static str) -> Key {
    Key { path, kind: ValueKind::Duration { min_ms, max_ms }, default, doc }
}

const fn age(path: &'static str, doc: &'static str) -> Key {
    span(path, 0, YEARS_10, "0s", doc)
}

const fn size(path: &'static str, doc: &'static str) -> Key {
    bytes(path, 0, 1 << 50, "0", doc)
}
