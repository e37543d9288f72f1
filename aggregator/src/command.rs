//! The command line of `weir-aggregator`.
//!
//! Owns arguments, logs, signals and exit codes ([`weir_common::exit`]); everything else is in [`crate::app`].

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use weir_common::config::LoadOptions;
use weir_common::{exit, logging};

use crate::app::{Outcome, Run};
use crate::config::Config;

/// Receives events from shippers, enriches and journals them once, and writes them to the sinks.
#[derive(Debug, Parser)]
#[command(name = "weir-aggregator", version)]
struct Arguments {
    /// YAML file; see deploy/config/aggregator.yaml.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Any key of the configuration, such as journal.bytes_max=2GiB; may be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    set: Vec<(String, String)>,
    /// Check the configuration and end: 0, or 64 with every problem on stderr.
    #[arg(long)]
    check_config: bool,
    /// Written once everything is up, with the addresses taken.
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
}

/// The program, from its arguments to its exit code.
pub fn main() -> ExitCode {
    let Arguments { config, set, check_config, ready_file } = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return exit::code(if error.use_stderr() { exit::CONFIG } else { exit::OK });
        }
    };
    let options = LoadOptions { file: config.as_deref(), flags: &set, ..LoadOptions::default() };
    let config = match Config::load(options) {
        Ok(config) => config,
        Err(errors) => {
            eprintln!("{errors}");
            return exit::code(exit::CONFIG);
        }
    };
    if check_config {
        return exit::code(exit::OK);
    }
    logging::init(config.log_format, &config.log_level);
    exit::code(block_on(Run { config, ready_file, shutdown: CancellationToken::new() }))
}

/// Runs to the end, draining on SIGTERM and SIGINT, and gives the exit code.
pub fn block_on(run: Run) -> u8 {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
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
                tracing::error!(%error, "signals can't be received");
            }
            shutdown.cancel();
        });
        run.run().await
    });
    // What still runs after a failure or a drain that timed out holds nothing that is not on disk.
    runtime.shutdown_background();
    match ended {
        Ok(Outcome::Drained) => exit::OK,
        Ok(Outcome::DrainTimedOut) => exit::DRAIN_TIMED_OUT,
        Err(error) => {
            tracing::error!(
                error = format!("{:#}", anyhow::Error::from(error)),
                "the aggregator can't go on"
            );
            exit::FAILED
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

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}
