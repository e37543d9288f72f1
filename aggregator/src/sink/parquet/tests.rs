//! Tests of the whole sink in one process: what it publishes, and what remains after it is dropped at any moment.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use arrow::array::AsArray;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::reader::FileReader;
use parquet::file::serialized_reader::SerializedFileReader;
use tempfile::TempDir;

use super::manifest::{Reason, Walk, walk};
use super::published::Published;
use super::synthetic::{Synthetic, synthetic_event_id};
use super::*;

const JOURNAL: [u8; 16] = [7; 16];
const JOURNAL_HEX: &str = "07070707070707070707070707070707";
const NOW_US: i64 = 1_748_781_000_000_000;

fn config(dir: &Path) -> ParquetConfig {
    ParquetConfig::new(dir.to_owned())
}

fn open(dir: &Path) -> ParquetSink {
    ParquetSink::open(config(dir), JOURNAL).unwrap().0
}

fn small() -> Synthetic {
    Synthetic { flows: 300, others: 1, clusters: vec!["a".into(), "b-1.eu".into()], ..Synthetic::default() }
}

/// How often each event id stands in the live files.
fn ids(dir: &Path) -> BTreeMap<[u8; 16], u32> {
    let mut ids = BTreeMap::new();
    for path in live_files(dir).unwrap() {
        let file = fs::File::open(dir.join(&path)).unwrap();
        for batch in ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap() {
            let batch = batch.unwrap();
            let column = batch.column_by_name("event_id").unwrap().as_fixed_size_binary();
            for id in column.iter().flatten() {
                *ids.entry(id.try_into().unwrap()).or_default() += 1;
            }
        }
    }
    ids
}

/// Asserts that the files hold exactly the rows of the records `1..next`, and nothing is wrong or left over.
#[track_caller]
fn assert_exactly(dir: &Path, synthetic: &Synthetic, next: u64) {
    let rows = synthetic.rows();
    let due: BTreeMap<[u8; 16], u32> = (1..next)
        .flat_map(|position| (0..rows).map(move |row| (synthetic_event_id(position, row), 1)))
        .collect();
    let found = ids(dir);
    assert_eq!(found.len(), due.len());
    assert!(found == due, "some ids differ");
    let report = verify(dir).unwrap();
    assert!(report.is_sound() && report.unlisted.is_empty(), "{report:?}");
    assert_eq!(report.journals[0].rows, (next - 1) * u64::from(rows));
}

#[test]
fn a_cut_publishes_every_row_once_in_its_partition() {
    let dir = TempDir::new().unwrap();
    // From half past twelve back over the hour's start.
    let synthetic = Synthetic { spread_us: 3_600_000_000, ..small() };
    let mut sink = open(dir.path());
    for position in 1..=5 {
        sink.write(&synthetic.record(position), Instant::now()).unwrap();
    }
    assert!(live_files(dir.path()).unwrap().is_empty(), "nothing is visible before the cut");
    let cut = sink.cut(Reason::Request, NOW_US).unwrap().unwrap();
    assert_eq!((cut.next_position, sink.next_position(), sink.due()), (6, 6, 6));
    assert!(sink.cut(Reason::Request, NOW_US).unwrap().is_none(), "nothing is left to cut");
    assert_exactly(dir.path(), &synthetic, 6);

    let mut folders: Vec<String> =
        cut.files.iter().map(|file| file.path.rsplit_once('/').unwrap().0.to_owned()).collect();
    folders.dedup();
    let due: Vec<String> = ["flow", "dns", "anomaly", "loss"]
        .iter()
        .flat_map(|kind| ["a", "b-1.eu"].map(|cluster| format!("kind={kind}/cluster={cluster}")))
        .flat_map(|folder| ["11", "12"].map(|hour| format!("{folder}/date=2025-06-01/hour={hour}")))
        .filter(|folder| folders.contains(folder) || folder.starts_with("kind=flow"))
        .collect();
    assert_eq!(folders, due);
    for file in &cut.files {
        let key = manifest::check_path(&file.path).unwrap();
        let hours = (file.min_time_us / 3_600_000_000, file.max_time_us / 3_600_000_000);
        assert_eq!(hours, (key.hour, key.hour), "{}", file.path);
    }
}

#[test]
fn a_file_says_where_its_rows_come_from_and_its_row_groups_are_sorted() {
    let dir = TempDir::new().unwrap();
    let synthetic = Synthetic { flows: 50_000, ..Synthetic::default() };
    let mut sink = open(dir.path());
    for position in 1..=3 {
        sink.write(&synthetic.record(position), Instant::now()).unwrap();
    }
    let cut = sink.cut(Reason::Request, NOW_US).unwrap().unwrap();
    let path = dir.path().join(&cut.files.last().unwrap().path);
    let reader = SerializedFileReader::new(fs::File::open(&path).unwrap()).unwrap();
    let metadata = reader.metadata();
    let pairs: BTreeMap<&str, &str> = metadata
        .file_metadata()
        .key_value_metadata()
        .unwrap()
        .iter()
        .map(|pair| (pair.key.as_str(), pair.value.as_deref().unwrap()))
        .collect();
    let due = [
        ("weir.first_position", "1"),
        ("weir.journal_id", JOURNAL_HEX),
        ("weir.kind", "flow"),
        ("weir.next_position", "4"),
        ("weir.schema_version", "2"),
    ];
    assert_eq!(pairs, BTreeMap::from(due));
    let groups: Vec<i64> = metadata.row_groups().iter().map(RowGroupMetaData::num_rows).collect();
    assert_eq!(groups, [131_072, 150_000 - 131_072]);

    let file = fs::File::open(&path).unwrap();
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().with_row_groups(vec![0]);
    let mut before: Option<(String, String, i64)> = None;
    for batch in builder.build().unwrap() {
        let batch = batch.unwrap();
        let text = |name: &str| {
            let column = batch.column_by_name(name).unwrap();
            arrow::compute::cast(column, &arrow::datatypes::DataType::Utf8).unwrap()
        };
        let (namespaces, workloads) = (text("src_namespace"), text("src_workload"));
        let times = batch.column_by_name("end_time").unwrap();
        let times = times.as_primitive::<arrow::datatypes::TimestampMicrosecondType>();
        for row in 0..batch.num_rows() {
            let of = |column: &arrow::array::ArrayRef| column.as_string::<i32>().value(row).to_owned();
            let now = (of(&namespaces), of(&workloads), times.value(row));
            assert!(before.as_ref().is_none_or(|before| *before <= now));
            before = Some(now);
        }
    }
}

#[test]
fn cuts_are_due_by_size_age_and_partitions() {
    let dir = TempDir::new().unwrap();
    let start = Instant::now();
    let mut config = config(dir.path());
    config.roll_age = Duration::from_secs(60);
    config.buffer_bytes_max = 1;
    let mut sink = ParquetSink::open(config.clone(), JOURNAL).unwrap().0;
    assert_eq!(sink.cut_due(start + Duration::from_hours(1)), None, "an idle sink never cuts");
    sink.write(&small().record(1), start).unwrap();
    assert_eq!(sink.buffered_bytes(), 0, "the bound on memory makes row groups");
    assert_eq!(sink.cut_due(start + Duration::from_secs(59)), None);
    assert_eq!(sink.cut_due(start + Duration::from_secs(60)), Some(Reason::Age));
    drop(sink);
    config.roll_bytes = 1000;
    let mut sink = ParquetSink::open(config.clone(), JOURNAL).unwrap().0;
    sink.write(&small().record(1), start).unwrap();
    assert_eq!(sink.cut_due(start), Some(Reason::Size));
    drop(sink);
    config.roll_bytes = 1 << 30;
    config.partitions_max = 4;
    let mut sink = ParquetSink::open(config, JOURNAL).unwrap().0;
    sink.write(&small().record(1), start).unwrap();
    assert_eq!(sink.cut_due(start), Some(Reason::Partitions));
}

#[test]
fn one_record_of_many_hours_opens_a_bounded_number_of_partitions_always_the_same() {
    let synthetic = Synthetic { flows: 2000, spread_us: 240 * 3_600_000_000, ..small() };
    let written = || {
        let dir = TempDir::new().unwrap();
        let mut config = config(dir.path());
        config.partitions_max = 8;
        let mut sink = ParquetSink::open(config, JOURNAL).unwrap().0;
        sink.write(&synthetic.record(1), Instant::now()).unwrap();
        let receive_hours = synthetic.clusters.len() * weir_schema::Kind::ALL.len();
        assert!(sink.open_partitions() >= 8, "{}", sink.open_partitions());
        assert!(sink.open_partitions() <= 8 + receive_hours, "{}", sink.open_partitions());
        sink.cut(Reason::Request, NOW_US).unwrap();
        assert_exactly(dir.path(), &synthetic, 2);
        live_files(dir.path()).unwrap()
    };
    assert_eq!(written(), written());
}

#[test]
fn records_come_in_turn_and_one_process_writes() {
    let dir = TempDir::new().unwrap();
    let mut sink = open(dir.path());
    let error = sink.write(&small().record(2), Instant::now()).unwrap_err();
    assert!(matches!(error, SinkError::OutOfTurn { expected: 1, found: 2 }), "{error}");
    let error = ParquetSink::open(config(dir.path()), JOURNAL).unwrap_err();
    assert!(matches!(error, SinkError::Locked { .. }), "{error}");
    let (other, _) = ParquetSink::open(config(dir.path()), [8; 16]).unwrap();
    assert_eq!(other.next_position(), 1, "another journal may write beside it");
}

#[test]
fn what_can_not_be_read_is_in_the_manifest() {
    let dir = TempDir::new().unwrap();
    let mut sink = open(dir.path());
    sink.write(&small().record(1), Instant::now()).unwrap();
    sink.skip(5, "damaged".to_owned(), Instant::now()).unwrap();
    sink.write(&small().record(5), Instant::now()).unwrap();
    sink.cut(Reason::Request, NOW_US).unwrap();
    assert_eq!(sink.next_position(), 6);
    let folder = dir.path().join("_weir/manifest").join(JOURNAL_HEX);
    let entry = manifest::read_entries(&folder, JOURNAL_HEX).unwrap().remove(0);
    let skipped = &entry.skipped[0];
    assert_eq!((skipped.first_position, skipped.next_position, &*skipped.reason), (2, 5, "damaged"));
}

#[test]
fn losing_the_race_for_an_entry_is_fatal_and_shows_nothing_twice() {
    let dir = TempDir::new().unwrap();
    let mut sink = open(dir.path());
    sink.write(&small().record(1), Instant::now()).unwrap();
    let entry = dir.path().join("_weir/manifest").join(JOURNAL_HEX).join(format!("{:020}.json", 1));
    fs::write(&entry, "{}").unwrap();
    let error = sink.cut(Reason::Request, NOW_US).unwrap_err();
    assert!(matches!(&error, SinkError::ManifestTaken { path, .. } if *path == entry), "{error}");
    assert_eq!(error.disposition(), Disposition::Fatal);
    let error = sink.recover().unwrap_err();
    assert!(matches!(&error, SinkError::ManifestTaken { .. }), "recovery does not decide it: {error}");
}

#[test]
fn a_file_in_the_way_is_not_touched() {
    let dir = TempDir::new().unwrap();
    let synthetic = Synthetic { clusters: vec!["a".into()], others: 0, spread_us: 1, ..small() };
    let mut sink = open(dir.path());
    sink.write(&synthetic.record(1), Instant::now()).unwrap();
    let folder = dir.path().join("kind=flow/cluster=a/date=2025-06-01/hour=12");
    let path = folder.join(format!("{JOURNAL_HEX}-{:012}.parquet", 1));
    fs::create_dir_all(&folder).unwrap();
    fs::write(&path, "not ours").unwrap();
    let error = sink.cut(Reason::Request, NOW_US).unwrap_err();
    assert!(matches!(&error, SinkError::Foreign { path: found } if *found == path), "{error}");
    drop(sink);
    let mut sink = open(dir.path());
    assert_eq!(fs::read(&path).unwrap(), b"not ours");
    fs::remove_file(&path).unwrap();
    sink.write(&synthetic.record(1), Instant::now()).unwrap();
    sink.cut(Reason::Request, NOW_US).unwrap();
    assert_exactly(dir.path(), &synthetic, 2);
}

#[test]
fn retention_deletes_whole_files_and_says_so() {
    let dir = TempDir::new().unwrap();
    let mut config = config(dir.path());
    config.retention.0 = [Keep { age: None, bytes: Some(1) }; 4];
    let synthetic = small();
    let mut sink = ParquetSink::open(config, JOURNAL).unwrap().0;
    sink.write(&synthetic.record(1), Instant::now()).unwrap();
    let cut = sink.cut(Reason::Request, NOW_US).unwrap().unwrap();
    sink.write(&synthetic.record(2), Instant::now()).unwrap();
    let removed = sink.retain(NOW_US).unwrap();
    assert_eq!(removed.len(), cut.files.len());
    assert!(sink.retain(NOW_US).unwrap().is_empty());
    assert!(!dir.path().join("kind=flow").exists(), "emptied folders go too");
    // What no cut had published is not concerned.
    let cut = sink.cut(Reason::Request, NOW_US).unwrap().unwrap();
    let report = verify(dir.path()).unwrap();
    assert!(report.is_sound() && report.unlisted.is_empty(), "{report:?}");
    let journal = &report.journals[0];
    assert_eq!((journal.entries, journal.files, journal.rows), (3, cut.files.len() as u64, 303));
    let folder = dir.path().join("_weir/manifest").join(JOURNAL_HEX);
    let entry = manifest::read_entries(&folder, JOURNAL_HEX).unwrap().remove(1);
    assert_eq!((entry.reason, entry.removed), (Reason::Retention, removed));
}

#[test]
fn a_long_manifest_is_opened_from_its_last_listing() {
    let dir = TempDir::new().unwrap();
    let synthetic = Synthetic { flows: 1, others: 0, clusters: vec!["a".into()], ..Synthetic::default() };
    let mut sink = open(dir.path());
    for position in 1..=30 {
        sink.write(&synthetic.record(position), Instant::now()).unwrap();
        sink.cut(Reason::Request, NOW_US).unwrap();
    }
    drop(sink);
    let folder = dir.path().join("_weir/manifest").join(JOURNAL_HEX);
    let published = Published::Folder(dir.path().to_owned());
    let whole = walk(&published, JOURNAL_HEX, Walk::Whole).unwrap();
    let quick = walk(&published, JOURNAL_HEX, Walk::FromListing).unwrap();
    assert_eq!((whole.number, whole.next_position, &whole.live), (30, 31, &quick.live));
    // Only the quick walk does not see what lies before the listing.
    fs::write(folder.join(format!("{:020}.json", 7)), "{}").unwrap();
    let (sink, report) = ParquetSink::open(config(dir.path()), JOURNAL).unwrap();
    assert_eq!((report.live_files, sink.next_position()), (30, 31));
    let report = verify(dir.path()).unwrap();
    let problem = &report.journals[0].problems[0];
    assert!(problem.path.ends_with("00000000000000000007.json") && problem.offset.is_some(), "{problem:?}");
}

mod hostile;
mod model;
mod task;
