//! The command line of `weir-shipper`.
//!
//! Owns arguments, logs, signals and exit codes ([`weir_common::exit`]); everything else is in [`crate::app`].

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use weir_common::{exit, logging};

use crate::app::{Outcome, Run, RunError, SourceOptions};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::replay::{ReplayOptions, StateError};
use crate::{check, rebind, unload};

/// Captures this node's flows, keeps them on disk, and sends them to an aggregator.
#[derive(Debug, Parser)]
#[command(name = "weir-shipper", version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    common: Common,
}

/// Where the configuration comes from.
#[derive(Debug, Args)]
struct Common {
    /// YAML file; see deploy/config/shipper.yaml.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Any key of the configuration, such as spool.bytes_max=2GiB; may be repeated.
    #[arg(long, global = true, value_name = "KEY=VALUE", value_parser = pair)]
    set: Vec<(String, String)>,
    /// Name of this node.
    #[arg(long, global = true)]
    node: Option<String>,
    /// Name of the cluster.
    #[arg(long, global = true)]
    cluster: Option<String>,
    /// Address of the aggregator, host:port; may be repeated.
    #[arg(long, global = true, value_name = "ADDRESS")]
    aggregator: Vec<String>,
    /// Folder of the spool.
    #[arg(long, global = true, value_name = "DIR")]
    spool: Option<String>,
    /// Check the configuration and end: 0, or 64 with every problem on stderr.
    #[arg(long, global = true)]
    check_config: bool,
    /// Written once everything is up, with the addresses taken.
    #[arg(long, global = true, value_name = "FILE")]
    ready_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Capture and send, until SIGTERM or SIGINT (the default).
    Run,
    /// Say what this kernel gives, what is missing, why, and what that costs.
    Check,
    /// Remove the programs and maps that stay in the kernel, once what they counted is in the spool. The shipper must
    /// not run.
    Unload {
        /// Remove those of every version, and lose what they counted since a shipper drained them.
        #[arg(long)]
        discard: bool,
    },
    /// Read capture files (pcap, pcapng; gzip, zstd) in place of the kernel, send what is in them, and end.
    Replay(ReplayFiles),
    /// Bind the spool to another journal, when the one before is lost. The shipper must not run.
    Rebind(Rebind),
}

#[derive(Debug, Args)]
struct ReplayFiles {
    /// Capture files, read one after the other; - is standard input.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Begin anew though another replay into this spool was cut off; what that one stored stays.
    #[arg(long)]
    abandon: bool,
}

#[derive(Debug, Args)]
struct Rebind {
    /// To the journal with this id.
    #[arg(long, value_name = "ID", required_unless_present = "accept_new", conflicts_with = "accept_new")]
    to_journal: Option<String>,
    /// To the next journal that it meets.
    #[arg(long)]
    accept_new: bool,
    /// Name of the aggregator whose journal is lost; may be left out if the spool knows one only.
    #[arg(long, value_name = "NAME")]
    of: Option<String>,
}

/// The program, from its arguments to its exit code.
pub fn main() -> ExitCode {
    let Arguments { command, common } = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return exit::code(if error.use_stderr() { exit::CONFIG } else { exit::OK });
        }
    };
    let config = match Config::load(common.config.as_deref(), &common.flags()) {
        Ok(config) => config,
        Err(errors) => {
            eprintln!("{errors}");
            return exit::code(exit::CONFIG);
        }
    };
    if common.check_config {
        return exit::code(exit::OK);
    }
    logging::init(config.log_format, &config.log_level);
    exit::code(match command.unwrap_or(Command::Run) {
        Command::Run => run(config, common.ready_file),
        Command::Check => check(&config),
        Command::Unload { discard } => unload(config, discard),
        Command::Replay(arguments) => replay(config, arguments, common.ready_file),
        Command::Rebind(arguments) => bind(config, &arguments),
    })
}

fn run(config: Config, ready_file: Option<PathBuf>) -> u8 {
    let source = SourceOptions::Capture(config.capture.clone());
    let shutdown = CancellationToken::new();
    block_on(Run { config, source, ready_file, shutdown, metrics: Metrics::default() })
}

fn replay(config: Config, arguments: ReplayFiles, ready_file: Option<PathBuf>) -> u8 {
    let ReplayFiles { files, abandon } = arguments;
    let config = config.for_replay();
    let source = SourceOptions::Replay(ReplayOptions { files, table: config.replay, abandon });
    let shutdown = CancellationToken::new();
    block_on(Run { config, source, ready_file, shutdown, metrics: Metrics::default() })
}

/// Runs to the end, draining on SIGTERM and SIGINT, and gives the exit code.
pub fn block_on(run: Run) -> u8 {
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "the runtime could not be started");
            return exit::FAILED;
        }
    };
    let shutdown = run.shutdown.clone();
    let ended = runtime.block_on(async move {
        tokio::spawn(async move {
            if let Err(error) = told_to_end().await {
                tracing::error!(%error, "signals cannot be received");
            }
            shutdown.cancel();
        });
        run.run().await
    });
    match ended {
        Ok(Outcome::Sent) => exit::OK,
        Ok(Outcome::DrainTimedOut | Outcome::ReplayStopped) => exit::DRAIN_TIMED_OUT,
        Ok(Outcome::ReplayIncomplete) => exit::DATA,
        Err(error) => {
            let code = match &error {
                RunError::Capture(_) => exit::UNAVAILABLE,
                RunError::Replay(StateError::File(file)) if file.is_of_content() => exit::DATA,
                RunError::Replay(StateError::File(_)) => exit::NO_INPUT,
                _ => exit::FAILED,
            };
            tracing::error!(error = format!("{:#}", anyhow::Error::from(error)), "the shipper cannot go on");
            code
        }
    }
}

async fn told_to_end() -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

fn check(config: &Config) -> u8 {
    let report = check::report(&config.capture);
    println!("{report}");
    if report.capture_possible() { exit::OK } else { exit::UNAVAILABLE }
}

fn unload(config: Config, discard: bool) -> u8 {
    let directory = config.capture.pin_directory.clone();
    let unloaded = if discard {
        check::unload(&config.capture).map(unload::Unloaded::Discarded).map_err(anyhow::Error::from)
    } else {
        unload::unload(config).map_err(anyhow::Error::from)
    };
    match unloaded {
        Ok(unloaded) => {
            println!("{}: {unloaded}", directory.display());
            exit::OK
        }
        Err(error) => failed(&error),
    }
}

fn bind(config: Config, Rebind { to_journal, accept_new: _, of }: &Rebind) -> u8 {
    let journal = to_journal.as_deref().map(rebind::journal_id).transpose();
    let Config { spool, aggregators, .. } = config;
    match journal.and_then(|journal| rebind::rebind_of(spool, &aggregators, of.as_deref(), journal)) {
        Ok(done) => {
            println!("{done}");
            exit::OK
        }
        Err(error) => failed(&error.into()),
    }
}

fn failed(error: &anyhow::Error) -> u8 {
    eprintln!("weir-shipper: {error:#}");
    exit::FAILED
}

impl Common {
    /// As paths and values; the short forms come after `--set`.
    fn flags(&self) -> Vec<(String, String)> {
        let Self { config: _, set, node, cluster, aggregator, spool, check_config: _, ready_file: _ } = self;
        let mut flags = set.clone();
        let mut put = |key: &str, value: String| flags.push((key.to_owned(), value));
        node.iter().for_each(|node| put("node", node.clone()));
        cluster.iter().for_each(|cluster| put("cluster", cluster.clone()));
        spool.iter().for_each(|spool| {
            // Each command has one of the two.
            put("spool.dir", spool.clone());
            put("replay.spool_dir", spool.clone());
        });
        if !aggregator.is_empty() {
            put("aggregator.addresses", serde_json::json!(aggregator).to_string());
        }
        flags
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_short_flags_are_keys() {
        let arguments = Arguments::try_parse_from([
            "weir-shipper",
            "check",
            "--set",
            "batch.bytes=64KiB",
            "--node",
            "n1",
            "--aggregator",
            "localhost:1",
            "--aggregator",
            "[::1]:2",
        ])
        .unwrap();
        let config = Config::load(None, &arguments.common.flags()).unwrap();
        assert_eq!((config.body_bytes, config.client.node.as_str()), (65_536, "n1"));
        assert_eq!(config.client.aggregators[0].addresses, ["localhost:1", "[::1]:2"]);
        Arguments::try_parse_from(["weir-shipper", "rebind"]).unwrap_err();
        Arguments::try_parse_from(["weir-shipper", "rebind", "--accept-new", "--to-journal", "x"])
            .unwrap_err();
    }
}
