//! A shipper whose events are made up: known ids, through the real spool and the real client, in a process of its own.
//!
//! Ends with 0 once every event is acknowledged; with `--no-exit` it then waits for SIGTERM. May be killed at any time
//! and started again with the same arguments: the ids from 0 to `--events` then arrive once.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tokio_util::sync::CancellationToken;
use weir_common::{clock, exit, logging};
use weir_shipper::app::{Run, SourceOptions};
use weir_shipper::config::Config;
use weir_shipper::metrics::Metrics;
use weir_shipper::source::{GeneratorOptions, Shape};

/// Generates events with known ids and delivers them as a shipper does.
#[derive(Debug, Parser)]
struct Arguments {
    /// Folder of the spool; the generator's own state lies beside it.
    #[arg(long)]
    spool: PathBuf,
    /// Address of the aggregator.
    #[arg(long)]
    aggregator: String,
    /// Name of the node in every event.
    #[arg(long, default_value = "generated")]
    node: String,
    /// Name of the cluster.
    #[arg(long, default_value = "default")]
    cluster: String,
    /// The high half of every flow_id.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many events; their ids are in src_bytes.
    #[arg(long)]
    events: u64,
    /// Events in one interval.
    #[arg(long, default_value_t = 1000)]
    interval_events: u64,
    /// Events a second; 0 is as fast as it goes.
    #[arg(long, default_value_t = 0)]
    rate: u64,
    /// Budget of the spool, such as 256KiB; what does not fit is dropped, counted.
    #[arg(long)]
    drop_budget: Option<String>,
    /// Time of the first event, Unix nanoseconds; the time of the first run else.
    #[arg(long)]
    start_ns: Option<i64>,
    /// Nanoseconds of event time between two events.
    #[arg(long, default_value_t = 1000)]
    step_ns: i64,
    /// Sizes, times and ids like those of a node, instead of running numbers in src_bytes.
    #[arg(long)]
    realistic: bool,
    /// Stay after the last acknowledgement, until SIGTERM.
    #[arg(long)]
    no_exit: bool,
    /// Address for /metrics; none else.
    #[arg(long)]
    admin: Option<String>,
    /// Written once everything is up.
    #[arg(long)]
    ready_file: Option<PathBuf>,
    /// Any key of the shipper's configuration; may be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    set: Vec<(String, String)>,
}

fn main() -> ExitCode {
    let Arguments {
        spool,
        aggregator,
        node,
        cluster,
        seed,
        events,
        interval_events,
        rate,
        drop_budget,
        start_ns,
        step_ns,
        realistic,
        no_exit,
        admin,
        ready_file,
        set,
    } = Arguments::parse();
    let state = spool.with_extension("generator");
    let mut flags = vec![
        ("spool.dir".to_owned(), spool.display().to_string()),
        ("aggregator.addresses".to_owned(), format!("[{aggregator:?}]")),
        ("node".to_owned(), node),
        ("cluster".to_owned(), cluster),
        ("admin.listen".to_owned(), admin.unwrap_or_default()),
        ("client.backoff_max".to_owned(), "1s".to_owned()),
    ];
    flags.extend(drop_budget.map(|budget| ("spool.bytes_max".to_owned(), budget)));
    flags.extend(set);
    let config = match Config::load(None, &flags) {
        Ok(config) => config,
        Err(errors) => {
            eprintln!("{errors}");
            return exit::code(exit::CONFIG);
        }
    };
    logging::init(config.log_format, &config.log_level);
    let start_ns = start_ns.unwrap_or_else(clock::now_ns);
    let shape = if realistic { Shape::Realistic } else { Shape::Numbered };
    let stay = no_exit;
    let generator =
        GeneratorOptions { seed, events, interval_events, rate, state, start_ns, step_ns, stay, shape };
    let source = SourceOptions::Generator(generator);
    let shutdown = CancellationToken::new();
    let run = Run { config, source, ready_file, shutdown, metrics: Metrics::default() };
    exit::code(weir_shipper::block_on(run))
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}
