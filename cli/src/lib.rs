//! `weir`: what a person runs. `weir up` watches this host without any server, `weir observe` watches a running
//! aggregator, `weir verify` checks a Parquet tree against its manifest, `weir certs` makes certificates to try TLS with.
//!
//! The program also answers to the names `weir-shipper` and `weir-aggregator`: `weir up` starts the two as processes of
//! their own from the one file, by their documented interface, so that one's death is not the other's. Nothing of
//! capture, delivery or sinks is here.

#![forbid(unsafe_code)]

mod adopt;
mod arguments;
pub mod certs;
mod demo;
mod duckdb;
mod line;
mod observe;
mod screen;
mod summary;
mod units;
mod up;
mod verify;

use std::path::Path;
use std::process::ExitCode;

use weir_common::exit;

use crate::arguments::Command;

/// The whole program: reads the arguments and returns an exit code of [`weir_common::exit`].
pub fn main() -> ExitCode {
    let called = std::env::args_os().next();
    match called.as_deref().and_then(|path| Path::new(path).file_name()).and_then(|name| name.to_str()) {
        Some(adopt::SHIPPER) => return adopt::run(adopt::SHIPPER, weir_shipper::main),
        Some(adopt::AGGREGATOR) => return adopt::run(adopt::AGGREGATOR, weir_aggregator::main),
        _ => {}
    }
    let command = match arguments::parse() {
        Ok(command) => command,
        Err(code) => return exit::code(code),
    };
    let result = match command {
        Command::Up(arguments) => up::run(&arguments),
        Command::Observe(arguments) => observe::run(&arguments),
        Command::Verify(arguments) => verify::run(&arguments),
        Command::Certs(arguments) => certs::run(&arguments),
        Command::DemoServer(arguments) => demo::server::run(&arguments),
        Command::DemoClient(arguments) => demo::client::run(&arguments),
    };
    match result {
        Ok(code) => exit::code(code),
        Err(error) => {
            eprintln!("weir: {error:#}");
            exit::code(exit::FAILED)
        }
    }
}
