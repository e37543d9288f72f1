//! The benchmark runs: small here, in full by `make bench`. Figures are not judged, arithmetic is: every flow arrives.

use std::process::Command;

use serde_json::Value;
use weir_integration_tests::process::Process;

#[test]
fn every_figure_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("bench.json");
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir-bench"));
    command.args(["--flows", "80000", "--backlog-mib", "4", "--packets", "20000", "--json"]).arg(&json);
    command.env("WEIR_LOG", "warn");
    let mut process = Process::spawn(&mut command, &dir.path().join("bench.log"));
    process.wait_success();
    println!("{}", process.log_tail());
    let report: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let figure = |run: &str, name: &str| report["figures"][run][name].as_f64().unwrap();
    assert_eq!(figure("pipeline", "flows"), 80_000.0);
    for name in
        ["flows_per_cpu_second", "wire_bytes_per_flow", "journal_bytes_per_flow", "parquet_bytes_per_flow"]
    {
        assert!(figure("pipeline", name) > 0.0, "{name}: {report:#}");
    }
    assert!(figure("recovery", "backlog_mib") > 1.0, "{report:#}");
    assert!(report["machine"]["cores"].as_u64().unwrap() > 0, "{report:#}");
}
