//! Flows per CPU second of the aggregator, from gRPC to synced journal and Parquet, and bytes per flow on the way.
//!
//! Generators (processes of their own) fill their spools while the aggregator is away; then it starts and takes all of it
//! as fast as it can. Its CPU time is that of its whole life, less that of one without flows.

use std::path::Path;
use std::time::{Duration, Instant};

use weir_aggregator::sink::parquet::verify;

use super::machine::ended_children_cpu;
use super::{Figures, Plan};
use crate::process::{DEADLINE, Process, free_address, http_get, metric_sum, wait_for};
use crate::system::{Aggregator, Generator, peak_memory};

/// Shippers that send at once.
const GENERATORS: u64 = 4;
/// Flows of one interval of one node.
const INTERVAL_EVENTS: u64 = 10_000;
/// For a backlog to be through, on a machine however loaded.
const PATIENCE: Duration = Duration::from_secs(3_600);

/// Runs it.
///
/// # Panics
/// When a flow is missing or doubled, or a process fails.
pub fn run(plan: &Plan) -> Figures {
    let each = plan.flows.div_ceil(GENERATORS * INTERVAL_EVENTS) * INTERVAL_EVENTS;
    let flows = each * GENERATORS;
    let home = plan.folder("pipeline");
    let aggregator = aggregator(plan, &home, Vec::new());

    let before = ended_children_cpu();
    let mut idle = aggregator.start(None);
    up(&aggregator, &mut idle);
    idle.terminate();
    idle.wait_success();
    let idle = ended_children_cpu() - before;

    let mut generators = fill(plan, &home, &aggregator, each);
    let started = Instant::now();
    let mut process = aggregator.start(None);
    let before = ended_children_cpu();
    for (_, generator) in &mut generators {
        let status = generator.wait_within(PATIENCE);
        assert!(status.success(), "{status}: {}", generator.log_tail());
    }
    let (generating, wall) = (ended_children_cpu() - before, started.elapsed());
    let (_, text) = http_get(aggregator.admin, "/metrics").unwrap();
    let metric = |name: &str| metric_sum(&text, name, "").unwrap_or_default();
    let (wire, journal) =
        (metric("weir_aggregator_received_bytes_total"), metric("weir_aggregator_journaled_bytes_total"));
    let groups = metric("weir_aggregator_journal_sync_seconds_count");
    let peak = peak_memory(process.id());
    let before = ended_children_cpu();
    process.terminate();
    assert!(process.wait_within(PATIENCE).success(), "{}", process.log_tail());
    let cpu = (ended_children_cpu() - before).saturating_sub(idle).as_secs_f64();

    let report = verify(&aggregator.data()).unwrap();
    assert!(report.is_sound() && report.unlisted.is_empty(), "{report:?}");
    let rows: u64 = report.journals.iter().map(|journal| journal.rows).sum();
    assert_eq!(rows, flows, "rows in Parquet, flows sent");
    let parquet: u64 = report.journals.iter().map(|journal| journal.bytes).sum();

    let flows = flows as f64;
    let mut figures = Figures::default();
    figures
        .add("flows", flows, "")
        .add_goal("flows_per_cpu_second", flows / cpu, "flows/s of aggregator CPU", 400_000.0)
        .add("aggregator_cpu_us_per_flow", cpu * 1e6 / flows, "µs")
        .add(
            "generator_cpu_us_per_flow",
            generating.as_secs_f64() * 1e6 / flows,
            "µs (make, encode, spool, send)",
        )
        .add("flows_per_group_commit", flows / groups.max(1.0), "")
        .add("wire_bytes_per_flow", wire / flows, "B")
        .add("journal_bytes_per_flow", journal / flows, "B")
        .add_goal("parquet_bytes_per_flow", parquet as f64 / flows, "B", 62.0)
        .add("aggregator_peak_memory_mib", peak as f64 / f64::from(1 << 20), "MiB")
        .add("wall_flows_per_second", flows / wall.as_secs_f64(), "flows/s, with what else ran here");
    figures
}

/// An aggregator with its defaults, but for where it is.
pub(super) fn aggregator(plan: &Plan, home: &Path, mut set: Vec<String>) -> Aggregator {
    // What the delivery tests make small is here as people have it.
    for default in ["journal.segment_bytes=64MiB", "parquet.roll_age=60s", "drain.timeout=1h"] {
        set.insert(0, default.to_owned());
    }
    Aggregator {
        program: plan.program("sut_aggregator"),
        home: home.to_owned(),
        address: free_address(),
        admin: free_address(),
        set,
    }
}

/// Waits until an aggregator is ready.
pub(super) fn up(aggregator: &Aggregator, process: &mut Process) {
    let ready = || http_get(aggregator.admin, "/readyz").is_ok_and(|(code, _)| code == 200);
    wait_for("the aggregator to be ready", || process.log_tail(), ready);
}

/// Generators whose spools hold everything, and that wait for the aggregator.
pub(super) fn fill(
    plan: &Plan,
    home: &Path,
    aggregator: &Aggregator,
    each: u64,
) -> Vec<(Generator, Process)> {
    let start = |index: u64| {
        let generator = Generator {
            program: plan.program("weir-gen"),
            home: home.join(format!("generator-{index}")),
            aggregator: aggregator.address,
            admin: None,
            index,
            events: each,
            interval_events: INTERVAL_EVENTS,
            rate: 0,
            stay: false,
            set: vec!["spool.bytes_max=64GiB".to_owned()],
            realistic: true,
        };
        let process = generator.start(None);
        (generator, process)
    };
    let mut generators: Vec<_> = (0..GENERATORS).map(start).collect();
    for (generator, process) in &mut generators {
        let intervals = each / INTERVAL_EVENTS;
        let filled = || generator.intervals_released() >= intervals;
        let limit = DEADLINE + Duration::from_micros(each * 100);
        assert!(crate::process::holds_within(limit, filled), "a spool is not full: {}", process.log_tail());
    }
    generators
}
