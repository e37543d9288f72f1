//! What the sink is told: where to write, when to cut, how much to hold, how long to keep.

use std::path::PathBuf;
use std::time::Duration;

use super::retention::Retention;
use super::target::StoreUrl;

/// See the module. The aggregator's configuration makes it; the defaults are those of the configuration.
#[derive(Clone, Debug)]
pub struct ParquetConfig {
    /// Root of the data; made if missing. Files wait here for their publication where `store` has them afterwards.
    pub dir: PathBuf,
    /// The store of objects that gets files and manifest; none: they are below `dir`.
    pub store: Option<StoreUrl>,
    /// Cut when a file has so many bytes.
    pub roll_bytes: u64,
    /// Cut when the oldest row that is in no file has waited so long.
    pub roll_age: Duration,
    /// Cut when so many partitions are open. One record opens no more of them; its other rows go to the receive hour.
    pub partitions_max: usize,
    /// Memory for rows that wait for their row group, bytes; beyond it the largest partition writes what it has.
    pub buffer_bytes_max: usize,
    /// What to delete when.
    pub retention: Retention,
}

impl ParquetConfig {
    /// The defaults, with this root.
    pub fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            store: None,
            roll_bytes: 128 << 20,
            roll_age: Duration::from_mins(1),
            partitions_max: 64,
            buffer_bytes_max: 256 << 20,
            retention: Retention::default(),
        }
    }
}
