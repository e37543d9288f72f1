//! What the Parquet sink writes, read back by DuckDB with the one documented call.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic with what failed")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use serde_json::Value;
use tempfile::TempDir;
use weir_aggregator::sink::parquet::manifest::Reason;
use weir_aggregator::sink::parquet::synthetic::{Synthetic, synthetic_event_id};
use weir_aggregator::sink::parquet::{ParquetConfig, ParquetSink, verify};
use weir_common::id::uuid_text;
use weir_integration_tests::duckdb::{DuckDb, number, read_all};
use weir_schema::Kind;
use weir_schema::generate::sql_type;

/// Publishes the records `1..next` in cuts of two.
fn publish(data: &Path, synthetic: &Synthetic, next: u64) {
    let mut sink = ParquetSink::open(ParquetConfig::new(data.to_owned()), [1; 16]).unwrap().0;
    for position in 1..next {
        sink.write(&synthetic.record(position), Instant::now()).unwrap();
        if position % 2 == 0 || position + 1 == next {
            sink.cut(Reason::Request, synthetic.start_ns / 1000).unwrap();
        }
    }
    assert!(verify(data).unwrap().is_sound());
}

fn synthetic() -> Synthetic {
    let clusters = vec!["prod".to_owned(), "eu-1.test".to_owned()];
    Synthetic { flows: 2000, others: 20, clusters, spread_us: 7_200_000_000, ..Synthetic::default() }
}

#[test]
fn one_call_reads_every_row_of_every_kind_once() {
    let Some(duckdb) = DuckDb::find() else { return };
    let data = TempDir::new().unwrap();
    let synthetic = synthetic();
    publish(data.path(), &synthetic, 6);
    let all = read_all(data.path());
    let rows = duckdb.query(&format!("SELECT event_id::VARCHAR AS id FROM {all} ORDER BY event_id"));
    let found: Vec<&str> = rows.iter().filter_map(|row| row["id"].as_str()).collect();
    let mut sent: Vec<String> = (1..6)
        .flat_map(|position| {
            (0..synthetic.rows()).map(move |row| uuid_text(&synthetic_event_id(position, row)))
        })
        .collect();
    sent.sort_unstable();
    assert_eq!(found.len(), sent.len());
    assert!(found == sent, "some ids differ");

    let counts = duckdb.query(&format!(
        "SELECT kind, cluster, count(*)::INT AS rows, count(DISTINCT (date, hour))::INT AS hours,
           bool_and(strftime(coalesce(end_time, time, last_seen, last_time), '%Y-%m-%d %H') = date::VARCHAR || ' ' || lpad(hour::VARCHAR, 2, '0')) AS filed
         FROM {all} GROUP BY ALL ORDER BY ALL"
    ));
    let of = |kind: &str, cluster: &str| {
        counts
            .iter()
            .find(|row| row["kind"] == kind && row["cluster"] == cluster)
            .cloned()
            .unwrap_or_default()
    };
    assert_eq!(counts.len(), 8, "{counts:?}");
    for kind in Kind::ALL {
        for cluster in ["prod", "eu-1.test"] {
            let row = of(kind.as_str(), cluster);
            let due = if kind == Kind::Flow { 5000 } else { 50 };
            assert!(row["rows"] == due && row["filed"] == true, "{row:?}");
        }
    }
    assert_eq!(of("flow", "prod")["hours"], 3);
}

#[test]
fn every_column_has_the_type_of_the_catalogue() {
    let Some(duckdb) = DuckDb::find() else { return };
    let data = TempDir::new().unwrap();
    publish(data.path(), &synthetic(), 3);
    let types = |source: &str| -> BTreeMap<String, String> {
        let rows = duckdb.query(&format!("DESCRIBE SELECT * FROM {source}"));
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        rows.iter().map(|row| (text(&row["column_name"]), text(&row["column_type"]))).collect()
    };
    let all = types(&read_all(data.path()));
    for kind in Kind::ALL {
        let one = format!(
            "read_parquet('{}/kind={}/**/*.parquet', hive_partitioning = false)",
            data.path().display(),
            kind.as_str()
        );
        let one = types(&one);
        assert_eq!(one.len(), kind.fields().len(), "{one:?}");
        for field in kind.fields() {
            let due = sql_type(field.ty);
            assert_eq!(
                one.get(field.name).map(String::as_str),
                Some(due),
                "{}.{}",
                kind.as_str(),
                field.name
            );
            assert_eq!(all.get(field.name).map(String::as_str), Some(due), "{}", field.name);
        }
    }
    // The folders' own columns; `cluster` is in the files too and does not get in the way.
    assert_eq!(all["kind"], "VARCHAR");
    assert_eq!(all["date"], "DATE");
    assert_eq!(all["cluster"], "VARCHAR");
}

#[test]
fn values_come_back_as_they_went() {
    let Some(duckdb) = DuckDb::find() else { return };
    let data = TempDir::new().unwrap();
    let synthetic = Synthetic { flows: 3000, others: 0, ..Synthetic::default() };
    publish(data.path(), &synthetic, 2);
    let record = synthetic.record(1);
    let flows = &record.batches[0].1;
    let sum = |name: &str| -> i128 {
        use arrow::array::AsArray as _;
        let column = flows.column_by_name(name).unwrap();
        column
            .as_primitive::<arrow::datatypes::UInt64Type>()
            .values()
            .iter()
            .map(|value| i128::from(*value))
            .sum()
    };
    let all = read_all(data.path());
    for name in ["src_bytes", "dst_bytes", "src_packets", "record_seq"] {
        let found = duckdb.value(&format!("SELECT sum({name})::VARCHAR AS total FROM {all}"));
        assert_eq!(number(&found), sum(name), "{name}");
    }
    let nulls = duckdb.value(&format!("SELECT count(*) - count(handshake_us) AS nulls FROM {all}"));
    assert_eq!(number(&nulls) as usize, flows.column_by_name("handshake_us").unwrap().null_count());
    let late = duckdb.value(&format!(
        "SELECT count(*) AS n FROM {all} WHERE end_time > TIMESTAMPTZ '2025-06-01 12:30:00+00'"
    ));
    let times = flows.column_by_name("end_time").unwrap();
    let times = arrow::array::AsArray::as_primitive::<arrow::datatypes::TimestampMicrosecondType>(times);
    let due = times.values().iter().filter(|time| **time > synthetic.start_ns / 1000).count();
    assert_eq!(number(&late) as usize, due);
}

#[test]
fn addresses_are_canonical_and_cast_to_inet() {
    let Some(duckdb) = DuckDb::find_with_inet() else { return };
    let data = TempDir::new().unwrap();
    publish(data.path(), &synthetic(), 3);
    let all = read_all(data.path());
    let row = duckdb.query(&format!(
        "SELECT count(*)::INT AS rows, count(*) FILTER (family(src_ip::INET) = 6)::INT AS v6,
           bool_and(host(src_ip::INET) = src_ip AND host(dst_ip::INET) = dst_ip) AS canonical,
           count(*) FILTER (src_ip::INET <<= '10.42.0.0/16'::INET OR src_ip::INET <<= 'fd00:42::/32'::INET)::INT AS pods
         FROM {all} WHERE kind = 'flow'"
    ));
    let row = &row[0];
    assert!(row["canonical"] == true && row["rows"] == 4000 && row["pods"] == 4000, "{row:?}");
    assert!(row["v6"].as_i64().is_some_and(|rows| rows > 100 && rows < 4000), "{row:?}");
}

#[test]
fn filters_on_folders_read_only_those_files() {
    let Some(duckdb) = DuckDb::find() else { return };
    let data = TempDir::new().unwrap();
    publish(data.path(), &synthetic(), 3);
    let all = read_all(data.path());
    let plan = duckdb.text(&format!(
        "EXPLAIN ANALYZE SELECT sum(src_bytes) FROM {all} WHERE kind = 'flow' AND cluster = 'prod' AND date = '2025-06-01' AND hour::INT = 11"
    ));
    let files = verify(data.path()).unwrap().journals[0].files;
    assert!(plan.contains(&format!("Scanning Files: 1/{files}")), "one file of {files} is enough: {plan}");
}
