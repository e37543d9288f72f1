//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use weir_common::exit;

/// Kubernetes flow logs that add up.
#[derive(Parser)]
#[command(name = "weir", version, propagate_version = true, arg_required_else_help = true)]
struct Program {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Watch this host: capture, journal, Parquet and a live view, with no other server. Needs root; with --pcap it reads
    /// capture files instead, which anybody may.
    Up(Up),
    /// Watch what a running aggregator journals.
    Observe(Observe),
    /// Check a Parquet tree against its manifest.
    Verify(Verify),
    /// Make a test authority, and certificates of aggregators, nodes and observers.
    Certs(Certs),
    /// The server of the demo.
    #[command(hide = true)]
    DemoServer(DemoServer),
    /// The client of the demo.
    #[command(hide = true)]
    DemoClient(DemoClient),
}

#[derive(Args)]
pub(crate) struct Up {
    /// Where the Parquet files go; spool and journal go to `.weir` in it.
    #[arg(long, value_name = "DIR", default_value = "data")]
    pub(crate) data: PathBuf,
    /// Read capture files (pcap or pcapng, perhaps gzip or zstd) instead of watching this host; - is standard input. Needs
    /// neither root nor eBPF.
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["duration", "no_demo", "own"])]
    pub(crate) pcap: Vec<PathBuf>,
    /// With --pcap: begin anew though an earlier replay into this folder was cut off; what that one stored stays.
    #[arg(long, requires = "pcap")]
    pub(crate) abandon: bool,
    /// Stop after this many seconds; without it, on Ctrl-C.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) duration: Option<Duration>,
    /// Leave out the two demo hosts.
    #[arg(long)]
    pub(crate) no_demo: bool,
    /// How often connections are reported, in seconds: 1 without it. With --pcap in the capture's time: 10 without it.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) interval: Option<Duration>,
    /// Show the records of Weir's own connections too. They are in the Parquet files in any case.
    #[arg(long)]
    pub(crate) own: bool,
}

#[derive(Args)]
pub(crate) struct Observe {
    /// The aggregator's gRPC address.
    #[arg(long, value_name = "HOST:PORT", default_value = DEFAULT_AGGREGATOR)]
    pub(crate) aggregator: String,
    #[command(flatten)]
    pub(crate) tls: Tls,
    /// Begin with this many of the latest events.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    pub(crate) last: u32,
    /// Go on with new events, until Ctrl-C.
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// Kinds to show; all without it. May be repeated, or hold several with commas.
    #[arg(long, value_name = "KIND", value_delimiter = ',', value_parser = ["flow", "dns", "anomaly", "loss"])]
    pub(crate) kind: Vec<String>,
    /// How an event looks.
    #[arg(long, short, value_enum, default_value_t = Output::Compact)]
    pub(crate) output: Output,
}

/// How a viewer shows who it is. Needed for any aggregator but one on this host without TLS.
#[derive(Args)]
pub(crate) struct Tls {
    /// PEM file of the authorities that the aggregator's certificate may be from.
    #[arg(long, value_name = "FILE", requires_all = ["tls_certificate", "tls_key"])]
    pub(crate) tls_ca: Option<PathBuf>,
    /// PEM file of an observer's certificate.
    #[arg(long, value_name = "FILE", requires_all = ["tls_ca", "tls_key"])]
    pub(crate) tls_certificate: Option<PathBuf>,
    /// PEM file of its key.
    #[arg(long, value_name = "FILE", requires_all = ["tls_ca", "tls_certificate"])]
    pub(crate) tls_key: Option<PathBuf>,
    /// Name in the aggregator's certificate; the host of the address without it.
    #[arg(long, value_name = "NAME", requires = "tls_ca")]
    pub(crate) tls_server_name: Option<String>,
    /// No TLS, whatever the address.
    #[arg(long, conflicts_with = "tls_ca")]
    pub(crate) insecure_plaintext: bool,
}

#[derive(Args)]
pub(crate) struct Certs {
    /// Where the files go; the authority that is there is used again.
    #[arg(long, value_name = "DIR", default_value = "certs")]
    pub(crate) dir: PathBuf,
    /// Cluster that the nodes and observers belong to.
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub(crate) cluster: String,
    /// A node whose shipper gets a certificate; may be repeated.
    #[arg(long, value_name = "NAME")]
    pub(crate) node: Vec<String>,
    /// Somebody who may watch with `weir observe`; may be repeated.
    #[arg(long, value_name = "NAME")]
    pub(crate) observer: Vec<String>,
    /// DNS name or IP address of the aggregator; all of them stand in one certificate. May be repeated.
    #[arg(long, value_name = "NAME")]
    pub(crate) server: Vec<String>,
    /// How long certificates are valid.
    #[arg(long, value_name = "DAYS", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub(crate) days: u32,
    /// Make a new authority, although there is one; what the old one signed stays as it is.
    #[arg(long)]
    pub(crate) new_ca: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// One aligned line for people.
    Compact,
    /// One JSON object a line, with the catalogue's names.
    Json,
}

#[derive(Args)]
pub(crate) struct Verify {
    /// The root of the Parquet tree, as the aggregator's sink was given it: a folder, or s3://bucket/prefix, gs://… or
    /// az://…, with credentials from the environment.
    #[arg(value_name = "DIR or URL")]
    pub(crate) root: String,
    /// An option of the store, as in `parquet.options`.
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) option: Vec<String>,
}

#[derive(Args)]
pub(crate) struct DemoServer {
    #[command(flatten)]
    pub(crate) place: DemoPlace,
    #[arg(long)]
    pub(crate) listen: SocketAddr,
}

#[derive(Args)]
pub(crate) struct DemoClient {
    #[command(flatten)]
    pub(crate) place: DemoPlace,
    #[arg(long)]
    pub(crate) server: SocketAddr,
    #[arg(long)]
    pub(crate) closed: SocketAddr,
    #[arg(long)]
    pub(crate) dead: SocketAddr,
    /// File that says how many connections were tried.
    #[arg(long)]
    pub(crate) counts: PathBuf,
}

/// Where a process of the demo belongs.
#[derive(Args)]
pub(crate) struct DemoPlace {
    /// File of the network namespace.
    #[arg(long)]
    pub(crate) netns: PathBuf,
    /// Folder of the cgroup.
    #[arg(long)]
    pub(crate) cgroup: PathBuf,
}

/// The aggregator's default gRPC address; `weir up` takes it when it is free.
pub(crate) const DEFAULT_AGGREGATOR: &str = "127.0.0.1:9464";

/// Reads the process's arguments; an error is the exit code, after the user was told.
pub(crate) fn parse() -> Result<Command, u8> {
    Program::try_parse().map(|program| program.command).map_err(|error| {
        let _ = error.print();
        if error.exit_code() == 0 { exit::OK } else { exit::CONFIG }
    })
}

/// Seconds, with decimals; at least a tenth.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 =
        text.trim_end_matches('s').parse().map_err(|_| format!("'{text}' is not a number of seconds"))?;
    if !(0.1..=31_536_000.0).contains(&seconds) {
        return Err(format!("{seconds} is not between 0.1 and 31536000"));
    }
    Ok(Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Program::command().debug_assert();
    }

    #[test]
    fn pcap_takes_files_and_standard_input() {
        let parse = |arguments: &[&str]| {
            let arguments = ["weir", "up"].iter().chain(arguments);
            match Program::try_parse_from(arguments).map(|program| program.command) {
                Ok(Command::Up(up)) => Some(up.pcap.len()),
                _ => None,
            }
        };
        assert_eq!(parse(&[]), Some(0));
        assert_eq!(parse(&["--pcap", "-"]), Some(1));
        assert_eq!(parse(&["--pcap", "a", "b", "--data", "d", "--pcap", "c"]), Some(3));
        assert_eq!((parse(&["--pcap"]), parse(&["--pcap", "a", "--own"])), (None, None));
        assert_eq!(parse(&["--abandon"]), None);
    }

    #[test]
    fn seconds_have_decimals_and_bounds() {
        assert_eq!(seconds("20"), Ok(Duration::from_secs(20)));
        assert_eq!(seconds("1.5s"), Ok(Duration::from_millis(1500)));
        assert!(
            seconds("0").is_err()
                && seconds("-3").is_err()
                && seconds("NaN").is_err()
                && seconds("x").is_err()
        );
    }
}
