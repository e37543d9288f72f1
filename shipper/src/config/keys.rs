//! Every key of the shipper's configuration: kind, limits, default and meaning. `config` reads their values.

use weir_common::config::{Key, ValueKind};
use weir_common::tls::config as tls;

use crate::batch::PAYLOAD_BYTES_MAX;
use crate::spool::ONLY_AGGREGATOR;

const fn key(path: &'static str, kind: ValueKind, default: &'static str, doc: &'static str) -> Key {
    Key { path, kind, default, doc }
}

const fn span(min_ms: u64, max_ms: u64) -> ValueKind {
    ValueKind::Duration { min_ms, max_ms }
}

const fn entries() -> ValueKind {
    ValueKind::U64 { min: 64, max: 8 << 20 }
}

const HOUR_MS: u64 = 3_600_000;

/// Every key.
pub const KEYS: &[Key] = &[
    key("node", ValueKind::Text, "", "Name of this node in every event; empty takes the host's name."),
    key("cluster", ValueKind::Text, "default", "Name of the cluster, 1 to 63 of a-z, 0-9, `.` and `-`."),
    key(
        "aggregator.addresses",
        ValueKind::Structure("list of host:port"),
        "[\"127.0.0.1:9464\"]",
        "Where the aggregator listens; several addresses of the same one are tried in turn.",
    ),
    key(
        "aggregator.name",
        ValueKind::Text,
        ONLY_AGGREGATOR,
        "Its name in the spool, in metrics and logs, 1 to 63 of a-z, 0-9, `.`, `_` and `-`. It stays with the aggregator's volume.",
    ),
    key(
        "aggregator.others",
        ValueKind::Structure("list of {name, addresses}"),
        "[]",
        "Further aggregators, each with a name and its own list of host:port. Which one this node prefers is said by aggregator.order.",
    ),
    key(
        "aggregator.order",
        ValueKind::Choice(&["hash", "listed"]),
        "hash",
        "`hash`: by the names of node and aggregator, so that nodes spread evenly. `listed`: aggregator.addresses first, then the others as listed.",
    ),
    key(
        "aggregator.takeover_after",
        span(100, 24 * HOUR_MS),
        "30s",
        "How long an aggregator may be out of reach until batches that were never sent to it go to the next one.",
    ),
    tls::MODE,
    tls::CERTIFICATE,
    tls::KEY,
    tls::CA,
    tls::RELOAD_INTERVAL,
    key(
        "tls.server_name",
        ValueKind::Text,
        "",
        "Name or address that the aggregator's certificate must have; empty takes the host of the address that is dialled.",
    ),
    key("spool.dir", ValueKind::Text, "/var/lib/weir/spool", "Folder of the spool; one shipper each."),
    key(
        "spool.bytes_max",
        ValueKind::Bytes { min: 64 << 10, max: 1 << 50 },
        "1GiB",
        "What the spool may use on disk. When it is spent, the oldest events that were never sent are dropped, and counted.",
    ),
    key(
        "spool.segment_bytes",
        ValueKind::Bytes { min: 4 << 10, max: 1 << 30 },
        "16MiB",
        "Size of the spool's files: what is freed or dropped at once. At most a quarter of the budget is used.",
    ),
    key(
        "capture.interval",
        span(10, HOUR_MS),
        "10s",
        "How often flows are read from the kernel: the length of a record.",
    ),
    key(
        "capture.cgroup_root",
        ValueKind::Text,
        "",
        "cgroup v2 folder whose sockets are captured; empty is the whole node.",
    ),
    key(
        "capture.pin_dir",
        ValueKind::Text,
        "/sys/fs/bpf/weir",
        "Folder on bpffs where programs and maps stay while no shipper runs.",
    ),
    key(
        "capture.flow_entries",
        entries(),
        "131072",
        "Flows in one interval; about 230 bytes of kernel memory each, twice, taken at once. What does not fit is counted in overflow records.",
    ),
    key(
        "capture.socket_entries",
        entries(),
        "262144",
        "Sockets alive or just closed; about 250 bytes of kernel memory each, taken as they come.",
    ),
    key(
        "capture.meta_entries",
        entries(),
        "262144",
        "Flows without connection heard of lately; about 130 bytes of kernel memory each, taken as they come.",
    ),
    key(
        "capture.cgroup_entries",
        entries(),
        "16384",
        "cgroups made while no shipper runs; about 330 bytes of kernel memory each, taken as they come.",
    ),
    key(
        "capture.idle",
        span(1000, 24 * HOUR_MS),
        "120s",
        "A flow without connection that is silent for so long begins anew with its next packet.",
    ),
    key(
        "capture.unload_on_exit",
        ValueKind::Bool,
        "false",
        "On SIGTERM, drain the kernel once more and take programs and maps out of it; otherwise they stay and count on for the next shipper.",
    ),
    key(
        "capture.interfaces.enabled",
        ValueKind::Bool,
        "false",
        "Whether packets are counted at network interfaces too: forwarded traffic, scans of closed ports, what a policy drops. Their records are never added to those of sockets.",
    ),
    key(
        "capture.interfaces.links",
        ValueKind::Structure("list of texts"),
        "[\"uplink\"]",
        "Which interfaces: `uplink` (a default route goes out by it), `kind:` and a kind as `ip -d link` has it (`kind:veth`; `kind:physical` for hardware), or a name in which `*` stands for any characters.",
    ),
    key(
        "capture.interfaces.exclude",
        ValueKind::Structure("list of texts"),
        "[]",
        "Which of these not; the same forms.",
    ),
    key(
        "capture.interfaces.namespaces",
        ValueKind::Structure("list of texts"),
        "[\"self\"]",
        "In which network namespaces: `self`, or paths such as `/run/netns/blue`, with `*` in the last part for any characters.",
    ),
    key(
        "capture.interfaces.flow_entries",
        entries(),
        "65536",
        "Flows at interfaces in one interval; about 250 bytes of kernel memory each, twice, taken at once. What does not fit is counted in overflow records.",
    ),
    key(
        "capture.interfaces.meta_entries",
        entries(),
        "262144",
        "Flows at interfaces heard of lately; about 180 bytes of kernel memory each, taken as they come.",
    ),
    key(
        "capture.interfaces.vxlan_ports",
        ValueKind::Structure("list of at most 2 ports"),
        "[4789, 8472]",
        "UDP ports whose packets are VXLAN: the flow inside is counted.",
    ),
    key(
        "capture.interfaces.geneve_port",
        ValueKind::U64 { min: 0, max: 65_535 },
        "6081",
        "UDP port whose packets are Geneve; 0 for none.",
    ),
    key(
        "replay.spool_dir",
        ValueKind::Text,
        "/var/lib/weir/replay",
        "Folder of the spool of `weir-shipper replay`, which has the same budget; never that of a running shipper.",
    ),
    key(
        "replay.interval",
        span(1, 24 * HOUR_MS),
        "10s",
        "The length of a record of a replay, in the capture's own time.",
    ),
    key(
        "replay.idle",
        span(100, 24 * HOUR_MS),
        "120s",
        "In the capture's time: a flow without connection that is silent for so long begins anew; a connection that is not made failed.",
    ),
    key(
        "replay.tcp_idle",
        span(100, 168 * HOUR_MS),
        "1h",
        "In the capture's time: an established connection that is silent for so long has timed out.",
    ),
    key(
        "replay.flow_entries",
        entries(),
        "131072",
        "Flows that a replay follows at once, about 500 bytes each. Of more, those that were silent longest are forgotten: their next packet begins another flow.",
    ),
    key(
        "replay.admin_listen",
        ValueKind::Text,
        "",
        "Address of /metrics, /healthz and /readyz of a replay; empty for none.",
    ),
    key(
        "batch.bytes",
        ValueKind::Bytes { min: 4 << 10, max: PAYLOAD_BYTES_MAX as u64 / 2 },
        "1MiB",
        "Where a batch is closed, in bytes before compression.",
    ),
    key("client.connect_timeout", span(10, HOUR_MS), "5s", "For a connection to be up."),
    key("client.hello_timeout", span(10, HOUR_MS), "10s", "For the aggregator to welcome the shipper."),
    key(
        "client.ack_timeout",
        span(10, HOUR_MS),
        "60s",
        "From the last acknowledgement while batches are in flight; then the stream is opened anew.",
    ),
    key("client.keepalive_interval", span(100, HOUR_MS), "20s", "Between HTTP/2 pings."),
    key("client.keepalive_timeout", span(100, HOUR_MS), "20s", "For the answer to a ping."),
    key(
        "client.backoff_min",
        span(1, HOUR_MS),
        "200ms",
        "Wait before a new attempt, at first; it doubles, with jitter.",
    ),
    key("client.backoff_max", span(1, HOUR_MS), "30s", "Wait before a new attempt, at most."),
    key(
        "client.window_batches",
        ValueKind::U64 { min: 1, max: 65_536 },
        "256",
        "Batches in flight at most; the aggregator may allow less.",
    ),
    key(
        "client.window_bytes",
        ValueKind::Bytes { min: 64 << 10, max: 1 << 32 },
        "32MiB",
        "Bytes in flight at most; the aggregator may allow less.",
    ),
    key(
        "drain.timeout",
        span(0, HOUR_MS),
        "20s",
        "After SIGTERM: how long to send what the spool holds. The rest is sent by the next shipper.",
    ),
    key(
        "admin.listen",
        ValueKind::Text,
        "127.0.0.1:9465",
        "Address of /metrics, /healthz and /readyz; empty for none.",
    ),
    key(
        "log.format",
        ValueKind::Choice(&["human", "json"]),
        "human",
        "Log lines for people or for machines.",
    ),
    key(
        "log.level",
        ValueKind::Text,
        "info",
        "A tracing filter such as `info,weir_shipper=debug`; WEIR_LOG wins.",
    ),
];
