//! How long an aggregator takes to be ready after `kill -9` with a backlog in its journal, and to work it off.

use std::time::{Duration, Instant};

use weir_aggregator::sink::parquet::verify;

use super::machine::{ended_children_cpu, process_cpu};
use super::pipeline::{aggregator, fill, up};
use super::{Figures, Plan};
use crate::process::{holds_within, http_get, metric_sum};

const PATIENCE: Duration = Duration::from_secs(3_600);
/// What a flow takes in the journal, about: how many flows make the backlog.
const JOURNAL_BYTES_PER_FLOW: u64 = 110;

/// Runs it.
///
/// # Panics
/// When a flow is missing or doubled, or a process fails.
pub fn run(plan: &Plan) -> Figures {
    let home = plan.folder("recovery");
    let each = (plan.backlog_bytes / JOURNAL_BYTES_PER_FLOW / 40_000 + 1) * 10_000;
    // Nothing is cut, so nothing leaves the journal.
    let hold = ["parquet.roll_age=24h", "parquet.roll_bytes=1TiB", "journal.bytes_max=64GiB"];
    let full = aggregator(plan, &home, hold.map(str::to_owned).to_vec());
    let generators = fill(plan, &home, &full, each);
    let mut process = full.start(None);
    for (_, mut generator) in generators {
        assert!(generator.wait_within(PATIENCE).success(), "{}", generator.log_tail());
    }
    let (_, text) = http_get(full.admin, "/metrics").unwrap();
    let backlog = metric_sum(&text, "weir_aggregator_journal_bytes", "").unwrap_or_default();
    process.kill_9();

    let mut again = full.clone();
    again.set.retain(|setting| !setting.starts_with("parquet.roll"));
    let started = Instant::now();
    let before = ended_children_cpu();
    let mut process = again.start(None);
    up(&again, &mut process);
    let (ready, ready_cpu) = (started.elapsed(), process_cpu(process.id()));
    process.terminate();
    let done = holds_within(PATIENCE, || !process.is_running());
    assert!(done, "{}", process.log_tail());
    process.wait_success();
    let (caught_up, cpu) = (started.elapsed(), ended_children_cpu() - before);

    let report = verify(&again.data()).unwrap();
    let rows: u64 = report.journals.iter().map(|journal| journal.rows).sum();
    assert!(report.is_sound() && rows == each * 4, "{rows} rows of {}: {report:?}", each * 4);
    let mut figures = Figures::default();
    figures
        .add("backlog_mib", backlog / f64::from(1 << 20), "MiB")
        .add("flows", rows as f64, "")
        .add("ready_seconds", ready.as_secs_f64(), "s (wall)")
        .add("ready_cpu_seconds", ready_cpu.as_secs_f64(), "s")
        .add("worked_off_seconds", caught_up.as_secs_f64(), "s (wall), to Parquet")
        .add("worked_off_cpu_us_per_flow", cpu.as_secs_f64() * 1e6 / rows as f64, "µs");
    figures
}
