//! Measures whole processes: `make bench`. Prints figures for people and, with `--json`, writes them for machines.

use std::path::PathBuf;

use clap::Parser;
use serde_json::{Map, Value, json};
use weir_integration_tests::bench::{Figures, Plan, capture, machine, pipeline, recovery};
use weir_integration_tests::scale::scale;

/// Measures Weir's processes on this machine.
#[derive(Debug, Parser)]
struct Arguments {
    /// Which runs: pipeline, recovery, capture; all of them else.
    runs: Vec<String>,
    /// Writes the figures to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Flows of the pipeline's run; WEIR_SCALE decides else.
    #[arg(long)]
    flows: Option<u64>,
    /// Journal to recover, MiB; WEIR_SCALE decides else.
    #[arg(long)]
    backlog_mib: Option<u64>,
    /// Packets sent past the kernel programs; WEIR_SCALE decides else.
    #[arg(long)]
    packets: Option<u64>,
}

type Run = (&'static str, &'static str, fn(&Plan) -> Figures);

const RUNS: &[Run] = &[
    ("pipeline", "aggregator, from gRPC to synced journal and Parquet", pipeline::run),
    ("recovery", "aggregator, after kill -9 with a backlog", recovery::run),
    ("capture", "kernel programs and shipper", capture::run),
];

fn main() {
    let Arguments { runs, json, flows, backlog_mib, packets } = Arguments::parse();
    for name in &runs {
        assert!(RUNS.iter().any(|(known, ..)| known == name), "there is no run {name}");
    }
    let scale = scale();
    let home = tempfile::tempdir().expect("a folder for the files");
    let program = std::env::current_exe().expect("this program has a path");
    let plan = Plan {
        programs: program.parent().map(PathBuf::from).unwrap_or_default(),
        home: home.path().to_owned(),
        flows: flows.unwrap_or(scale.bench_flows),
        packets: packets.unwrap_or(scale.bench_packets),
        captured_flows: scale.bench_captured,
        backlog_bytes: backlog_mib.unwrap_or(scale.bench_backlog >> 20) << 20,
    };
    let machine = machine::describe();
    println!("{machine:#}");
    let mut figures = Map::new();
    for (name, title, run) in RUNS {
        if runs.is_empty() || runs.iter().any(|wanted| wanted == name) {
            let result = run(&plan);
            result.print(&format!("{name}: {title}"));
            figures.insert((*name).to_owned(), result.json());
        }
    }
    let report = json!({ "scale": scale.name, "machine": machine, "figures": Value::Object(figures) });
    if let Some(path) = json {
        std::fs::write(&path, format!("{report:#}\n")).expect("the file of figures is written");
        println!("figures: {}", path.display());
    }
}
