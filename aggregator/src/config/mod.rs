//! Configuration: values of the table of keys become a [`Config`] that can't be wrong.
//!
//! Parsing does no IO. What the table can't express (addresses, prefixes, limits that depend on each other) is checked
//! here, and all problems are reported together.

mod keys;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value as Json;
use weir_common::config::{ConfigErrors, LoadOptions, Values};
use weir_common::logging::Format;
use weir_common::tls::config::TlsConfig;
use weir_common::tls::plaintext::is_loopback_ip;
use weir_schema::Kind;
use weir_schema::values::Identity;

use crate::enrich::{EnrolledNode, Network, Sources};
use crate::ingest::hello::is_cluster;
use crate::ingest::limits::Limits;
use crate::ingest::sequence::Bounds;
use crate::journal::JournalOptions;
use crate::journal::writer::GroupOptions;
use crate::sink::parquet::{Keep, ParquetConfig, Retention, StoreUrl};

pub use keys::KEYS;

/// Before the path of a key in an environment variable.
pub const ENV_PREFIX: &str = "WEIR_AGGREGATOR_";

/// Everything the aggregator is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Of this aggregator, in its own loss rows; empty: the host's name.
    pub name: String,
    /// For shippers and viewers.
    pub grpc_listen: SocketAddr,
    /// TLS of shippers and viewers.
    pub tls: TlsConfig,
    /// Of one handshake.
    pub handshake_timeout: Duration,
    /// Handshakes that are not complete.
    pub handshakes_max: u32,
    /// For metrics and health.
    pub admin_listen: SocketAddr,
    /// Of shippers that name none.
    pub cluster_default: String,
    /// Of all shippers, when set.
    pub cluster_override: String,
    /// The only ones that may connect, when not empty.
    pub clusters_allowed: Vec<String>,
    /// The journal.
    pub journal: JournalOptions,
    /// Its groups.
    pub group: GroupOptions,
    /// Ingest.
    pub ingest: IngestConfig,
    /// What enrichment knows.
    pub sources: Sources,
    /// The Parquet sink; none when it is off.
    pub parquet: Option<ParquetConfig>,
    /// How log lines look.
    pub log_format: Format,
    /// Filter of log lines.
    pub log_level: String,
    /// Bound of draining.
    pub drain_timeout: Duration,
}

/// Limits of ingest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IngestConfig {
    /// Of one batch.
    pub limits: Limits,
    /// Batches beyond the last acknowledgement.
    pub window_batches: u32,
    /// Bytes beyond it.
    pub window_bytes: u64,
    /// Memory for undecided batches, bytes.
    pub memory_bytes: u64,
    /// Open streams.
    pub streams_max: u32,
    /// Open connections.
    pub connections_max: u32,
    /// For preface and Hello.
    pub hello_timeout: Duration,
    /// Between pings.
    pub keepalive_interval: Duration,
    /// For the answer to one.
    pub keepalive_timeout: Duration,
}

impl Config {
    /// Loads defaults, file, environment and flags.
    pub fn load(options: LoadOptions<'_>) -> Result<Self, ConfigErrors> {
        let options = LoadOptions { env_prefix: ENV_PREFIX, ..options };
        Self::parse(&Values::load(KEYS, options)?)
    }

    /// Parses loaded values.
    pub fn parse(values: &Values) -> Result<Self, ConfigErrors> {
        let mut parser = Parser { values, errors: ConfigErrors::default() };
        let config = parser.config();
        if parser.errors.is_empty() { Ok(config) } else { Err(parser.errors) }
    }
}

struct Parser<'a> {
    values: &'a Values,
    errors: ConfigErrors,
}

impl Parser<'_> {
    fn config(&mut self) -> Config {
        let values = self.values;
        let limits = Limits {
            payload_bytes_max: values.bytes("ingest.payload_bytes_max"),
            decoded_bytes_max: values.bytes("ingest.decoded_bytes_max"),
            rows_max: values.u64("ingest.rows_max"),
            string_bytes_max: values.bytes("ingest.string_bytes_max"),
        };
        let bounds = Bounds {
            shippers_max: size(values.u64("ingest.shippers_max")),
            epochs_max: size(values.u64("ingest.epochs_max")),
            age_s_max: i64::try_from(values.duration("ingest.state_age_max").as_secs()).unwrap_or(i64::MAX),
        };
        let grpc_listen = self.address("grpc.listen");
        let own = is_loopback_ip(grpc_listen.ip());
        let config = Config {
            name: values.text("name").to_owned(),
            grpc_listen,
            tls: TlsConfig::parse(
                values,
                [("grpc.listen", values.text("grpc.listen"), own)],
                &mut self.errors,
            ),
            handshake_timeout: values.duration("tls.handshake_timeout"),
            handshakes_max: narrow(values.u64("tls.handshakes_max")),
            admin_listen: self.address("admin.listen"),
            cluster_default: self.cluster("cluster.default", false),
            cluster_override: self.cluster("cluster.override", true),
            clusters_allowed: self.list("cluster.allowed", |text: String| {
                if is_cluster(&text) { Ok(text) } else { Err("names that match [a-z0-9.-]{1,63}".to_owned()) }
            }),
            journal: JournalOptions {
                dir: self.folder("journal.dir"),
                budget_bytes: values.bytes("journal.bytes_max"),
                segment_bytes: values.bytes("journal.segment_bytes"),
                tail_bytes: size(values.bytes("journal.tail_bytes")),
                bounds,
            },
            group: GroupOptions {
                rows: values.u64("journal.group_rows"),
                bytes: GroupOptions::bytes(&limits),
                linger: values.duration("journal.group_linger"),
            },
            ingest: IngestConfig {
                limits,
                window_batches: narrow(values.u64("ingest.window_batches")),
                window_bytes: values.bytes("ingest.window_bytes"),
                memory_bytes: values.bytes("ingest.memory_bytes"),
                streams_max: narrow(values.u64("ingest.streams_max")),
                connections_max: narrow(values.u64("ingest.connections_max")),
                hello_timeout: values.duration("ingest.hello_timeout"),
                keepalive_interval: values.duration("ingest.keepalive_interval"),
                keepalive_timeout: values.duration("ingest.keepalive_timeout"),
            },
            sources: self.sources(),
            parquet: values.bool("parquet.enabled").then(|| self.parquet()),
            log_format: if values.text("log.format") == "json" { Format::Json } else { Format::Human },
            log_level: values.text("log.level").to_owned(),
            drain_timeout: values.duration("drain.timeout"),
        };
        self.relations(&config);
        config
    }

    fn relations(&mut self, config: &Config) {
        let Limits { payload_bytes_max, .. } = config.ingest.limits;
        if config.ingest.window_bytes < payload_bytes_max {
            let expected = format!("at least ingest.payload_bytes_max ({payload_bytes_max})");
            self.wrong("ingest.window_bytes", &config.ingest.window_bytes, &expected);
        }
        // A record that never fits would pause ingestion for good: no sink could make room for it.
        let record = config.group.record_bytes_max(&config.ingest.limits);
        let needed = record.max(config.journal.segment_bytes).saturating_add(config.journal.segment_bytes);
        if config.journal.budget_bytes < needed {
            let expected = format!(
                "at least {needed}: journal.segment_bytes twice, or once and the largest record that ingest.decoded_bytes_max, \
                 ingest.rows_max and journal.group_rows allow ({record})"
            );
            self.wrong("journal.bytes_max", &config.journal.budget_bytes, &expected);
        }
        if let Some(parquet) = config.parquet.as_ref().filter(|parquet| parquet.dir == config.journal.dir) {
            self.wrong("parquet.dir", &parquet.dir.display(), "another folder than journal.dir");
        }
    }

    fn sources(&mut self) -> Sources {
        let networks = self.list("networks", |raw: RawNetwork| {
            let identity = match raw.identity.as_deref() {
                None => None,
                Some(text) => Some(identity(text).ok_or_else(|| {
                    format!(
                        "identity one of {}; network {} has {text:?}",
                        keys::IDENTITIES.join(", "),
                        raw.name
                    )
                })?),
            };
            Ok(Network { cidrs: cidrs(&raw.name, &raw.cidrs)?, name: named(raw.name)?, identity })
        });
        let nodes = self.list("enrolment.nodes", |raw: RawNode| {
            Ok(EnrolledNode { cidrs: cidrs(&raw.name, &raw.cidrs)?, name: named(raw.name)? })
        });
        let pools = self.list("enrolment.pools", |text: String| cidr(&text));
        let ahead = self.values.duration("ingest.ahead_max").as_nanos();
        Sources {
            networks,
            nodes,
            pools,
            default_identity: identity(self.values.text("default_identity")).unwrap_or(Identity::Unknown),
            ahead_ns_max: i64::try_from(ahead).unwrap_or(i64::MAX),
            behind_ns_max: Some(self.values.duration("parquet.retention.flow.age"))
                .filter(|age| !age.is_zero() && self.values.bool("parquet.enabled"))
                .map(|age| i64::try_from(age.as_nanos()).unwrap_or(i64::MAX)),
        }
    }

    fn parquet(&mut self) -> ParquetConfig {
        let values = self.values;
        let keep = Kind::ALL.map(|kind| {
            let key = |what: &str| format!("parquet.retention.{}.{what}", kind.as_str());
            Keep {
                age: Some(values.duration(&key("age"))).filter(|age| !age.is_zero()),
                bytes: Some(values.bytes(&key("bytes"))).filter(|bytes| *bytes > 0),
            }
        });
        ParquetConfig {
            dir: self.folder("parquet.dir"),
            store: self.store(),
            roll_bytes: values.bytes("parquet.roll_bytes"),
            roll_age: values.duration("parquet.roll_age"),
            partitions_max: size(values.u64("parquet.partitions_max")),
            buffer_bytes_max: size(values.bytes("parquet.buffer_bytes_max")),
            retention: Retention(keep),
        }
    }

    fn store(&mut self) -> Option<StoreUrl> {
        let (url, options) = (self.values.text("parquet.url"), self.values.structure("parquet.options"));
        // Numbers and booleans mean what they look like. No value is ever told back: it may be a secret.
        let text = |(name, value): (&String, &Json)| {
            let value = match value {
                Json::String(text) => text.clone(),
                Json::Number(_) | Json::Bool(_) => value.to_string(),
                Json::Null | Json::Array(_) | Json::Object(_) => return None,
            };
            Some((name.to_ascii_lowercase(), value))
        };
        let options: Option<BTreeMap<String, String>> = match options {
            Json::Object(options) => options.iter().map(text).collect(),
            _ => None,
        };
        let Some(options) = options else {
            self.wrong("parquet.options", &"…", "a map of names to texts, such as {region: eu-west-1}");
            return None;
        };
        if url.is_empty() {
            if !options.is_empty() {
                self.wrong("parquet.options", &"…", "nothing where parquet.url is empty");
            }
            return None;
        }
        StoreUrl::parse(url, options).map_err(|expected| self.wrong("parquet.url", &url, &expected)).ok()
    }

    fn address(&mut self, key: &str) -> SocketAddr {
        let text = self.values.text(key);
        text.parse().unwrap_or_else(|_| {
            self.wrong(key, &text, "an address and a port, such as 127.0.0.1:9464 or [::1]:9464");
            SocketAddr::from(([127, 0, 0, 1], 0))
        })
    }

    fn folder(&mut self, key: &str) -> PathBuf {
        let path = self.values.path(key);
        if path.is_none() {
            self.wrong(key, &"", "a folder");
        }
        path.unwrap_or_default()
    }

    fn cluster(&mut self, key: &str, may_be_empty: bool) -> String {
        let text = self.values.text(key);
        if !(is_cluster(text) || may_be_empty && text.is_empty()) {
            self.wrong(key, &text, "a name that matches [a-z0-9.-]{1,63}");
        }
        text.to_owned()
    }

    /// The elements of a list that parse; the others are reported with their index.
    fn list<R, T>(&mut self, key: &str, parse: impl Fn(R) -> Result<T, String>) -> Vec<T>
    where
        R: for<'de> Deserialize<'de>,
    {
        let Json::Array(items) = self.values.structure(key) else {
            self.wrong(key, self.values.structure(key), "a list");
            return Vec::new();
        };
        let mut parsed = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let raw = serde_json::from_value::<R>(item.clone()).map_err(|error| error.to_string());
            match raw.and_then(&parse) {
                Ok(value) => parsed.push(value),
                Err(expected) => self.wrong(&format!("{key}[{index}]"), item, &expected),
            }
        }
        parsed
    }

    fn wrong(&mut self, key: &str, value: &dyn std::fmt::Display, expected: &str) {
        self.errors.push("configuration", key, &value.to_string(), expected);
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNetwork {
    name: String,
    cidrs: Vec<String>,
    identity: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNode {
    name: String,
    cidrs: Vec<String>,
}

fn named(name: String) -> Result<String, String> {
    if name.is_empty() { Err("a name that is not empty".to_owned()) } else { Ok(name) }
}

fn cidrs(name: &str, texts: &[String]) -> Result<Vec<IpNet>, String> {
    texts
        .iter()
        .map(|text| cidr(text).map_err(|expected| format!("{expected}; {name} has {text:?}")))
        .collect()
}

/// A prefix, or a single address.
fn cidr(text: &str) -> Result<IpNet, String> {
    let address = text.parse::<std::net::IpAddr>().map(IpNet::from);
    address.or_else(|_| text.parse()).map_err(|_| "prefixes such as 10.0.0.0/8 or fd00::/8".to_owned())
}

fn identity(text: &str) -> Option<Identity> {
    Identity::ALL.iter().copied().find(|identity| identity.as_str() == text)
}

fn size(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

fn narrow(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(flags: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
        let flags: Vec<(String, String)> =
            flags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Config::parse(&Values::load_with(KEYS, LoadOptions { flags: &flags, ..LoadOptions::default() }, &[])?)
    }

    #[test]
    fn the_defaults_are_a_configuration() {
        let config = load(&[]).unwrap();
        assert_eq!(config.ingest.limits.payload_bytes_max, 4 << 20);
        assert_eq!(config.parquet.unwrap().roll_age, Duration::from_secs(60));
    }

    #[test]
    fn structures_are_parsed_and_every_problem_is_told_with_its_place() {
        let config = load(&[
            ("networks", "[{name: office, cidrs: [10.0.0.0/8, '192.0.2.1'], identity: external}]"),
            ("enrolment.nodes", "[{name: n1, cidrs: ['fd00::1/128']}]"),
            ("enrolment.pools", "[10.244.0.0/16]"),
            ("parquet.retention.flow.age", "7d"),
        ])
        .unwrap();
        assert_eq!(config.sources.networks[0].cidrs[1].to_string(), "192.0.2.1/32");
        assert_eq!(config.sources.behind_ns_max, Some(7 * 86_400 * 1_000_000_000));

        let errors = load(&[
            ("grpc.listen", "here"),
            ("networks", "[{name: a, cidrs: [10.0.0.0/8]}, {name: b, cidrs: [10.0.0.0/99]}]"),
            ("enrolment.nodes", "[{name: n, cidr: [10.0.0.0/8]}]"),
            ("cluster.allowed", "[../x]"),
            ("ingest.window_bytes", "1MiB"),
            ("journal.bytes_max", "64MiB"),
        ])
        .unwrap_err();
        let keys: Vec<&str> = errors.iter().map(|error| error.key.as_str()).collect();
        let expected = [
            "grpc.listen",
            "cluster.allowed[0]",
            "networks[1]",
            "enrolment.nodes[0]",
            "ingest.window_bytes",
            "journal.bytes_max",
        ];
        assert_eq!(keys, expected, "{errors}");
    }

    #[test]
    fn without_tls_only_this_host_is_listened_on() {
        assert_eq!(load(&[]).unwrap().tls, TlsConfig::Loopback);
        let keys = |flags: &[(&str, &str)]| {
            let errors = load(flags).unwrap_err();
            errors.iter().map(|error| error.key.clone()).collect::<Vec<_>>()
        };
        let everywhere = ("grpc.listen", "0.0.0.0:9464");
        assert_eq!(keys(&[everywhere]), ["grpc.listen"]);
        let plain = ("tls.mode", "insecure-plaintext");
        assert_eq!(load(&[everywhere, plain]).unwrap().tls, TlsConfig::Plaintext);
        assert_eq!(keys(&[plain, ("tls.key", "k")]), ["tls.key"]);
        assert_eq!(keys(&[("tls.mode", "mtls"), ("tls.key", "k")]), ["tls.certificate", "tls.ca"]);
        let files = [everywhere, ("tls.certificate", "c"), ("tls.key", "k"), ("tls.ca", "a")];
        assert!(matches!(load(&files).unwrap().tls, TlsConfig::Files { .. }));
    }

    #[test]
    fn a_journal_has_room_for_the_largest_record() {
        let with = |bytes_max: u64| {
            load(&[
                ("journal.bytes_max", &bytes_max.to_string()),
                ("journal.segment_bytes", "1MiB"),
                ("journal.group_rows", "1000"),
                ("ingest.decoded_bytes_max", "4MiB"),
                ("ingest.rows_max", "10000"),
            ])
        };
        // Texts, rows, header, streams; and a segment.
        let record = 8 * (4 << 20) + 11_000 * 208 + 1000 * 128 + (1 << 20);
        let needed = record + (1 << 20);
        assert_eq!(with(needed).unwrap().journal.budget_bytes, needed);
        let error = with(needed - 1).unwrap_err().to_string();
        for words in
            ["journal.bytes_max", &needed.to_string(), &record.to_string(), "ingest.decoded_bytes_max"]
        {
            assert!(error.contains(words), "no {words:?} in: {error}");
        }
        let error = load(&[("journal.bytes_max", "16MiB")]).unwrap_err();
        assert_eq!(error.iter().count(), 1, "{error}");
    }

    #[test]
    fn no_configuration_reaches_the_largest_record_of_a_log() {
        let config = load(&[
            ("journal.bytes_max", "16TiB"),
            ("journal.group_rows", "1048576"),
            ("ingest.decoded_bytes_max", "64MiB"),
            ("ingest.payload_bytes_max", "64MiB"),
            ("ingest.window_bytes", "64MiB"),
            ("ingest.memory_bytes", "1GiB"),
            ("ingest.rows_max", "524288"),
        ])
        .unwrap();
        let largest = config.group.record_bytes_max(&config.ingest.limits);
        assert!(largest < u64::from(crate::journal::RECORD_BYTES_MAX), "{largest}");
    }
}
