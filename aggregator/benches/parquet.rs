//! Measures the Parquet sink: CPU time per row and bytes per flow, on one thread, with every sync a cut makes.
//!
//! `cargo bench -p weir-aggregator --features crash-points --bench parquet [-- ROWS] [columns]`

use std::fs::File;
use std::time::{Duration, Instant};

use parquet::file::reader::FileReader;
use parquet::file::serialized_reader::SerializedFileReader;
use rustix::time::{ClockId, clock_gettime};
use weir_aggregator::sink::parquet::manifest::Reason;
use weir_aggregator::sink::parquet::synthetic::Synthetic;
use weir_aggregator::sink::parquet::{ParquetConfig, ParquetSink};

fn main() {
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let rows = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(1_000_000);
    let columns = arguments.iter().any(|argument| argument == "columns");
    println!("{:<44} {:>9} {:>9} {:>9}", "parquet sink", "B/row", "µs/row", "wall µs");
    for (name, names) in [("flows with Kubernetes names", true), ("flows without them", false)] {
        measure(name, &Synthetic { names, ..Synthetic::default() }, rows, columns);
    }
    let two = Synthetic { clusters: vec!["a".into(), "b".into()], ..Synthetic::default() };
    measure("flows of two clusters, taken in turn", &two, rows, false);
    let one = Synthetic { flows: 1, ..Synthetic::default() };
    measure("one flow", &one, 1, false);
}

fn measure(name: &str, synthetic: &Synthetic, rows: u64, columns: bool) {
    let records: Vec<_> =
        (1..=rows.div_ceil(u64::from(synthetic.flows))).map(|at| synthetic.record(at)).collect();
    let rows = records.len() as f64 * f64::from(synthetic.flows);
    let dir = tempfile::tempdir().expect("a folder for the files");
    let (mut sink, _) =
        ParquetSink::open(ParquetConfig::new(dir.path().to_owned()), [0; 16]).expect("an empty folder opens");
    let (cpu, wall) = (cpu_time(), Instant::now());
    for record in &records {
        sink.write(record, Instant::now()).expect("records are written");
    }
    let cut = sink.cut(Reason::Request, 0).expect("the cut is published").expect("there is something to cut");
    let (cpu, wall) = (cpu_time() - cpu, wall.elapsed());
    let bytes: u64 = cut.files.iter().map(|file| file.bytes).sum();
    let each = |time: Duration| time.as_secs_f64() * 1e6 / rows;
    println!("{name:<44} {:>9.1} {:>9.2} {:>9.2}", bytes as f64 / rows, each(cpu), each(wall));
    if columns {
        let mut sizes = std::collections::BTreeMap::<String, i64>::new();
        for file in &cut.files {
            let file = File::open(dir.path().join(&file.path)).expect("the file is there");
            let reader = SerializedFileReader::new(file).expect("it is Parquet");
            for group in reader.metadata().row_groups() {
                for column in group.columns() {
                    *sizes.entry(column.column_path().string()).or_default() += column.compressed_size();
                }
            }
        }
        let mut sizes: Vec<_> = sizes.into_iter().collect();
        sizes.sort_by_key(|(_, bytes)| -bytes);
        for (column, bytes) in sizes.iter().take(30) {
            println!("    {column:<24} {:>8.2} B/row", *bytes as f64 / rows);
        }
    }
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}
