//! The shipper's configuration: one table of keys, and the parsed form that cannot be wrong.
//!
//! Parsing reads the file and nothing else. docs/configuration/shipper.md and deploy/config/shipper.yaml are made from
//! [`KEYS`] and checked by a test.

mod interfaces;
mod keys;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value as Json;
use weir_common::config::{ConfigErrors, LoadOptions, Values};
use weir_common::logging::Format;
use weir_common::tls::ServerName;
use weir_common::tls::config::TlsConfig;
use weir_common::tls::plaintext::is_loopback;

use crate::batch::PAYLOAD_BYTES_MAX;
use crate::client::{AggregatorOptions, ClientOptions, rendezvous};
use crate::probe::CaptureConfig;
use crate::replay::TableOptions;
use crate::spool::SpoolOptions;

pub use keys::KEYS;

/// Environment variables begin with this.
pub const ENV_PREFIX: &str = "WEIR_SHIPPER_";

/// The configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The spool.
    pub spool: SpoolOptions,
    /// The kernel's side.
    pub capture: CaptureConfig,
    /// Between two drains.
    pub interval: Duration,
    /// Whether the capture goes with the process that ends, once it is drained.
    pub unload_on_exit: bool,
    /// Flows of a replay.
    pub replay: TableOptions,
    /// The spool of a replay.
    pub replay_spool_dir: PathBuf,
    /// Metrics and health of a replay.
    pub replay_admin: Option<SocketAddr>,
    /// Where a batch is closed, bytes before compression.
    pub body_bytes: usize,
    /// The aggregators' side.
    pub client: ClientOptions,
    /// Names of the aggregators as they are listed, that of `aggregator.addresses` first.
    pub aggregators: Vec<String>,
    /// TLS towards all aggregators.
    pub tls: TlsConfig,
    /// The name in their certificates; that of the address else.
    pub server_name: Option<ServerName<'static>>,
    /// For the spool to be sent after the end of capture.
    pub drain_timeout: Duration,
    /// Metrics and health.
    pub admin: Option<SocketAddr>,
    /// Look of log lines.
    pub log_format: Format,
    /// Filter of log lines.
    pub log_level: String,
}

impl Config {
    /// Loads file, environment and flags; flags win. Reports every problem at once.
    pub fn load(file: Option<&Path>, flags: &[(String, String)]) -> Result<Self, ConfigErrors> {
        let values = Values::load(KEYS, LoadOptions { file, env_prefix: ENV_PREFIX, flags })?;
        Self::parse(&values)
    }

    /// The same for a replay, which has a spool and an address of its own: it may run beside a shipper.
    pub fn for_replay(mut self) -> Self {
        self.spool.dir.clone_from(&self.replay_spool_dir);
        self.admin = self.replay_admin;
        self
    }

    fn parse(values: &Values) -> Result<Self, ConfigErrors> {
        let mut errors = ConfigErrors::default();
        let node = match values.text("node") {
            "" => host_name(),
            node => node.to_owned(),
        };
        if node.is_empty() || node.len() > 253 || node.contains(char::is_control) {
            errors.push("node", "node", &node, "1 to 253 characters");
        }
        let cluster = values.text("cluster").to_owned();
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-".contains(&byte);
        if cluster.is_empty() || cluster.len() > 63 || !cluster.bytes().all(allowed) {
            errors.push("cluster", "cluster", &cluster, "1 to 63 of a-z, 0-9, `.` and `-`");
        }
        let mut aggregators = aggregators(values, &mut errors);
        let names = aggregators.iter().map(|aggregator| aggregator.name.clone()).collect();
        let dialled = aggregators.iter().flat_map(|aggregator| &aggregator.addresses);
        let dialled = dialled.map(|address| ("aggregator.addresses", address.as_str(), is_loopback(address)));
        let tls = TlsConfig::parse(values, dialled, &mut errors);
        let server_name = server_name(values.text("tls.server_name"), &mut errors);
        if values.text("aggregator.order") == "hash" {
            rendezvous(&node, &mut aggregators, |aggregator| &aggregator.name);
        }
        let admin = address("admin.listen", values, &mut errors);
        let replay_admin = address("replay.admin_listen", values, &mut errors);
        let span_ns = |path| i64::try_from(values.duration(path).as_nanos()).unwrap_or(i64::MAX);
        let number = |path| u32::try_from(values.u64(path)).unwrap_or(u32::MAX);
        let config = Self {
            spool: SpoolOptions {
                dir: PathBuf::from(values.text("spool.dir")),
                bytes_max: values.bytes("spool.bytes_max"),
                segment_bytes: values.bytes("spool.segment_bytes"),
            },
            capture: CaptureConfig {
                cgroup: values.path("capture.cgroup_root"),
                pin_directory: PathBuf::from(values.text("capture.pin_dir")),
                flow_entries: number("capture.flow_entries"),
                socket_entries: number("capture.socket_entries"),
                meta_entries: number("capture.meta_entries"),
                cgroup_entries: number("capture.cgroup_entries"),
                idle: values.duration("capture.idle"),
                interfaces: interfaces::parse(values, &mut errors),
            },
            interval: values.duration("capture.interval"),
            unload_on_exit: values.bool("capture.unload_on_exit"),
            replay: TableOptions {
                interval_ns: span_ns("replay.interval"),
                idle_ns: span_ns("replay.idle"),
                tcp_idle_ns: span_ns("replay.tcp_idle"),
                entries: usize::try_from(values.u64("replay.flow_entries")).unwrap_or(usize::MAX),
            },
            replay_spool_dir: PathBuf::from(values.text("replay.spool_dir")),
            replay_admin,
            body_bytes: usize::try_from(values.bytes("batch.bytes")).unwrap_or(PAYLOAD_BYTES_MAX),
            client: ClientOptions {
                aggregators,
                takeover_after: values.duration("aggregator.takeover_after"),
                node,
                cluster,
                connect_timeout: values.duration("client.connect_timeout"),
                hello_timeout: values.duration("client.hello_timeout"),
                ack_timeout: values.duration("client.ack_timeout"),
                keepalive_interval: values.duration("client.keepalive_interval"),
                keepalive_timeout: values.duration("client.keepalive_timeout"),
                backoff_min: values.duration("client.backoff_min"),
                backoff_max: values.duration("client.backoff_max"),
                window_batches: usize::try_from(values.u64("client.window_batches")).unwrap_or(usize::MAX),
                window_bytes: values.bytes("client.window_bytes"),
            },
            aggregators: names,
            tls,
            server_name,
            drain_timeout: values.duration("drain.timeout"),
            admin,
            log_format: if values.text("log.format") == "json" { Format::Json } else { Format::Human },
            log_level: values.text("log.level").to_owned(),
        };
        for (path, dir) in [("spool.dir", &config.spool.dir), ("replay.spool_dir", &config.replay_spool_dir)]
        {
            if dir.as_os_str().is_empty() {
                errors.push(path, path, "", "a folder");
            }
        }
        if errors.is_empty() { Ok(config) } else { Err(errors) }
    }
}

fn addresses(values: &Values, errors: &mut ConfigErrors) -> Vec<String> {
    const PATH: &str = "aggregator.addresses";
    let json = values.structure(PATH);
    address_list(json).unwrap_or_else(|| {
        errors.push(PATH, PATH, &json.to_string(), "a list of 1 to 64 host:port");
        Vec::new()
    })
}

fn address_list(json: &Json) -> Option<Vec<String>> {
    let list: Option<Vec<String>> =
        json.as_array()?.iter().map(|item| item.as_str().map(str::to_owned)).collect();
    let sound = |address: &String| {
        address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
    };
    list.filter(|list| (1..=64).contains(&list.len()) && list.iter().all(sound))
}

/// All aggregators as they are listed, that of `aggregator.addresses` first.
fn aggregators(values: &Values, errors: &mut ConfigErrors) -> Vec<AggregatorOptions> {
    const OTHERS: &str = "aggregator.others";
    let name = values.text("aggregator.name").to_owned();
    if !is_name(&name) {
        errors.push("aggregator.name", "aggregator.name", &name, NAME);
    }
    let mut all = vec![AggregatorOptions { name, addresses: addresses(values, errors) }];
    let json = values.structure(OTHERS);
    let Some(others) = json.as_array().filter(|others| others.len() < AGGREGATORS_MAX) else {
        errors.push(OTHERS, OTHERS, &json.to_string(), "a list of at most 63 {name, addresses}");
        return all;
    };
    for (index, other) in others.iter().enumerate() {
        let path = format!("{OTHERS}[{index}]");
        let mut wrong =
            |value: &Json, expected: &str| errors.push(OTHERS, &path, &value.to_string(), expected);
        let Some(other) = other.as_object() else {
            wrong(other, "a map with name and addresses");
            continue;
        };
        if let Some(key) = other.keys().find(|key| !["name", "addresses"].contains(&key.as_str())) {
            wrong(&Json::from(key.as_str()), "no other keys than name and addresses");
        }
        let (name, list) = (other.get("name").unwrap_or(&Json::Null), other.get("addresses"));
        let list = list.unwrap_or(&Json::Null);
        let Some(name) = name.as_str().filter(|name| is_name(name)) else {
            wrong(name, NAME);
            continue;
        };
        if all.iter().any(|aggregator| aggregator.name == name) {
            wrong(&Json::from(name), "a name of its own");
        }
        let Some(addresses) = address_list(list) else {
            wrong(list, "addresses: a list of 1 to 64 host:port");
            continue;
        };
        all.push(AggregatorOptions { name: name.to_owned(), addresses });
    }
    all
}

fn is_name(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
    (1..=63).contains(&text.len()) && text.bytes().all(good)
}

const NAME: &str = "a name, 1 to 63 of a-z, 0-9, `.`, `_` and `-`";
/// Each has a lane, and labels in metrics.
const AGGREGATORS_MAX: usize = 64;

fn address(path: &'static str, values: &Values, errors: &mut ConfigErrors) -> Option<SocketAddr> {
    let text = values.text(path);
    if text.is_empty() {
        return None;
    }
    let parsed = text.parse().ok();
    if parsed.is_none() {
        errors.push(path, path, text, "address:port, such as 127.0.0.1:9465");
    }
    parsed
}

fn server_name(text: &str, errors: &mut ConfigErrors) -> Option<ServerName<'static>> {
    const PATH: &str = "tls.server_name";
    if text.is_empty() {
        return None;
    }
    let name = ServerName::try_from(text.to_owned()).ok();
    if name.is_none() {
        errors.push(PATH, PATH, text, "a DNS name or an IP address");
    }
    name
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flag(key: &str, value: &str) -> (String, String) {
        (key.to_owned(), value.to_owned())
    }

    #[test]
    fn the_defaults_are_a_configuration() {
        let config = Config::load(None, &[]).unwrap();
        let addresses = vec!["127.0.0.1:9464".to_owned()];
        assert_eq!(config.client.aggregators, [AggregatorOptions { name: "default".into(), addresses }]);
        assert_eq!(config.client.node, host_name());
        assert_eq!(config.spool.bytes_max, 1 << 30);
        assert_eq!(config.capture, CaptureConfig::default());
    }

    #[test]
    fn aggregators_have_an_order() {
        let others = r#"[{"name": "b", "addresses": ["b:1", "b:2"]}, {"name": "c", "addresses": ["c:1"]}]"#;
        let load = |node: &str, order: &str| {
            let flags = [
                flag("node", node),
                flag("aggregator.name", "a"),
                flag("aggregator.others", others),
                flag("aggregator.order", order),
                flag("tls.mode", "insecure-plaintext"),
            ];
            let config = Config::load(None, &flags).unwrap();
            assert_eq!(config.aggregators, ["a", "b", "c"]);
            config.client.aggregators.into_iter().map(|aggregator| aggregator.name).collect::<Vec<_>>()
        };
        assert_eq!(load("n", "listed"), ["a", "b", "c"]);
        let away = Config::load(None, &[flag("aggregator.others", others)]).unwrap_err();
        assert_eq!(away.iter().filter(|error| error.key == "aggregator.addresses").count(), 3, "{away}");
        let first: std::collections::BTreeSet<_> =
            (0..50).map(|node| load(&format!("n{node}"), "hash").swap_remove(0)).collect();
        assert_eq!(first.len(), 3, "{first:?}");
        let bad = r#"[{"name": "default", "addresses": ["b:1"]}, {"name": "B", "addresses": ["b:1"]},
                      {"name": "c", "addresses": []}, 7, {"name": "d", "addresses": ["d:1"], "port": 1}]"#;
        let errors =
            Config::load(None, &[flag("aggregator.others", bad), flag("tls.mode", "insecure-plaintext")]);
        let errors = errors.unwrap_err();
        let keys: Vec<_> = errors.iter().map(|error| error.key.as_str()).collect();
        let expected: Vec<_> = (0..5).map(|index| format!("aggregator.others[{index}]")).collect();
        assert_eq!(keys, expected, "{errors}");
    }

    #[test]
    fn every_problem_is_said() {
        let flags = [
            flag("cluster", "No Spaces"),
            flag("aggregator.addresses", "[\"nowhere\"]"),
            flag("admin.listen", "here"),
        ];
        let errors = Config::load(None, &flags).unwrap_err();
        let keys: Vec<_> = errors.iter().map(|error| error.key.as_str()).collect();
        assert_eq!(keys, ["cluster", "aggregator.addresses", "admin.listen"], "{errors}");
        let errors =
            Config::load(None, &[flag("spool.bytes_max", "1KiB"), flag("spool.byte_max", "1")]).unwrap_err();
        assert_eq!(errors.iter().count(), 2, "{errors}");
    }
}
