//! The Parquet sink on a disk that becomes full, at whatever step: an error that names the file, nothing partial that
//! a reader could see, and every row once as soon as there is room.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic with what failed")]

use std::path::Path;
use std::time::Instant;

use weir_aggregator::sink::parquet::manifest::Reason;
use weir_aggregator::sink::parquet::synthetic::Synthetic;
use weir_aggregator::sink::parquet::{Disposition, ParquetConfig, ParquetSink, SinkError, chain, verify};
use weir_integration_tests::duckdb::{DuckDb, number, read_all};
use weir_integration_tests::tmpfs::SmallDisk;

const NEXT: u64 = 25;

/// Takes the records up to `NEXT`, a cut every fourth.
fn fill(sink: &mut ParquetSink, synthetic: &Synthetic) -> Result<(), SinkError> {
    while sink.due() < NEXT {
        let position = sink.due();
        sink.write(&synthetic.record(position), Instant::now())?;
        if position.is_multiple_of(4) {
            sink.cut(Reason::Age, 0)?;
        }
    }
    sink.cut(Reason::Shutdown, 0).map(drop)
}

#[track_caller]
fn assert_sound(data: &Path, what: &str) {
    let report = verify(data).unwrap();
    assert!(report.is_sound(), "{what}: {report:?}");
    // A cut may be half published; whatever is visible is whole.
    for path in &report.unlisted {
        let bytes = std::fs::read(path).unwrap();
        assert!(bytes.starts_with(b"PAR1") && bytes.ends_with(b"PAR1"), "{what}: {} is torn", path.display());
    }
}

#[test]
fn a_full_disk_loses_nothing_and_shows_nothing_torn() {
    let Some(duckdb) = DuckDb::find() else { return };
    let clusters = vec!["a".to_owned(), "b".to_owned()];
    let synthetic =
        Synthetic { flows: 400, others: 2, clusters, spread_us: 7_200_000_000, ..Synthetic::default() };
    let mut full = 0;
    // Each size is met at another step: a row group, the footer, the intent, a folder, the entry.
    for bytes in (0..24).map(|step| 96 * 1024 + step * 28 * 1024) {
        let Some(disk) = SmallDisk::mount(bytes) else { return };
        let what = format!("{bytes} bytes");
        let data = disk.path().join("data");
        let mut config = ParquetConfig::new(data.clone());
        config.buffer_bytes_max = 1 << 20;
        let mut sink = ParquetSink::open(config, [5; 16]).unwrap().0;
        let Err(error) = fill(&mut sink, &synthetic) else { continue };
        full += 1;
        let words = chain(&error);
        assert_eq!(error.disposition(), Disposition::Retry, "{what}: {words}");
        assert!(words.contains(data.to_str().unwrap()), "{what}: no path in: {words}");
        assert!(words.contains("No space left on device"), "{what}: {words}");
        assert_sound(&data, &what);
        // Still full: trying again does no harm.
        for _ in 0..2 {
            if sink.recover().is_ok() {
                assert!(fill(&mut sink, &synthetic).is_err(), "{what}: room where there was none");
            }
            assert_sound(&data, &what);
        }
        disk.resize(64 << 20);
        sink.recover().unwrap();
        fill(&mut sink, &synthetic).unwrap();
        assert_sound(&data, &what);
        let counts = duckdb.query(&format!(
            "SELECT count(*)::INT AS rows, count(DISTINCT event_id)::INT AS ids FROM {}",
            read_all(&data)
        ));
        let sent = i128::from((NEXT - 1) * u64::from(synthetic.rows()));
        assert_eq!((number(&counts[0]["rows"]), number(&counts[0]["ids"])), (sent, sent), "{what}");
    }
    assert!(full > 10, "the disk was full at {full} sizes only");
}
