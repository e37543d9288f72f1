//! The configuration that `weir up` gives shipper and aggregator; everything else keeps its default.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::host;
use crate::arguments::DEFAULT_AGGREGATOR;
use crate::demo::hosts;

/// Where a run keeps what is not Parquet.
pub(super) struct Folders {
    /// Root of the Parquet tree, absolute.
    pub(super) data: PathBuf,
    /// Spool, journal, logs; its name does not match the glob of the Parquet files.
    pub(super) state: PathBuf,
}

impl Folders {
    /// Makes both.
    pub(super) fn make(data: &Path) -> std::io::Result<Self> {
        std::fs::create_dir_all(data)?;
        let data = data.canonicalize()?;
        let state = data.join(".weir");
        std::fs::create_dir_all(&state)?;
        Ok(Self { data, state })
    }

    /// The spool of replays.
    pub(super) fn replay_spool(&self) -> PathBuf {
        self.state.join("replay")
    }
}

/// The aggregator's.
pub(super) fn aggregator(folders: &Folders, networks: &[String]) -> Value {
    let mut networks = networks.to_vec();
    networks.push(hosts::NETWORK.to_owned());
    nested([
        ("grpc.listen", json!(grpc_address())),
        ("admin.listen", json!("127.0.0.1:0")),
        ("journal.dir", json!(folders.state.join("journal"))),
        ("parquet.dir", json!(folders.data)),
        ("parquet.roll_age", json!("5s")),
        ("networks", json!([{ "name": "demo", "cidrs": [hosts::NETWORK] }])),
        ("enrolment.nodes", json!([{ "name": host::name(), "cidrs": networks }])),
    ])
}

/// The shipper's.
pub(super) fn shipper(folders: &Folders, aggregator: SocketAddr, interval: Duration) -> Value {
    nested([
        ("node", json!(host::name())),
        ("cluster", json!("local")),
        ("aggregator.addresses", json!([aggregator])),
        ("admin.listen", json!("127.0.0.1:0")),
        ("spool.dir", json!(folders.state.join("spool"))),
        ("capture.interval", json!(format!("{}ms", interval.as_millis()))),
        ("drain.timeout", json!("10s")),
        // Not those of a shipper that was installed on this host: ours are removed at the end.
        ("capture.pin_dir", json!("/sys/fs/bpf/weir-up")),
        ("capture.unload_on_exit", json!(true)),
    ])
}

/// The aggregator's, for capture files: whose addresses those in it are is not known.
pub(super) fn aggregator_of_replay(folders: &Folders) -> Value {
    nested([
        ("grpc.listen", json!(grpc_address())),
        ("admin.listen", json!("127.0.0.1:0")),
        ("journal.dir", json!(folders.state.join("journal"))),
        ("parquet.dir", json!(folders.data)),
        ("parquet.roll_age", json!("5s")),
    ])
}

/// The shipper's, for capture files.
pub(super) fn shipper_of_replay(
    folders: &Folders,
    aggregator: SocketAddr,
    interval: Option<Duration>,
) -> Value {
    let interval = interval.unwrap_or(Duration::from_secs(10));
    nested([
        ("node", json!(host::name())),
        ("cluster", json!("local")),
        ("aggregator.addresses", json!([aggregator])),
        ("replay.spool_dir", json!(folders.replay_spool())),
        ("replay.admin_listen", json!("127.0.0.1:0")),
        ("replay.interval", json!(format!("{}ms", interval.as_millis()))),
        ("drain.timeout", json!("10s")),
    ])
}

/// The aggregator's usual port, so that `weir observe` finds it without being told; any other when it is taken.
fn grpc_address() -> String {
    match TcpListener::bind(DEFAULT_AGGREGATOR) {
        Ok(_) => DEFAULT_AGGREGATOR.to_owned(),
        Err(_) => "127.0.0.1:0".to_owned(),
    }
}

/// `a.b: v` as `{a: {b: v}}`.
fn nested<const N: usize>(values: [(&str, Value); N]) -> Value {
    let mut root = Map::new();
    for (path, value) in values {
        let mut folders: Vec<&str> = path.split('.').collect();
        let name = folders.pop().unwrap_or(path);
        let mut map = &mut root;
        for folder in folders {
            let inner = map.entry(folder).or_insert_with(|| Value::Object(Map::new()));
            map = match inner {
                Value::Object(inner) => inner,
                _ => unreachable!("no key of the lists above is the beginning of another"),
            };
        }
        map.insert(name.to_owned(), value);
    }
    Value::Object(root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_become_maps() {
        let value = nested([("a.b", json!(1)), ("a.c.d", json!("x")), ("e", json!([]))]);
        assert_eq!(value, json!({"a": {"b": 1, "c": {"d": "x"}}, "e": []}));
    }
}
