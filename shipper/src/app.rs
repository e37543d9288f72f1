//! Wires the shipper: spool, source loop, client, admin server; and ends them in the order of the data.
//!
//! First the source is drained into the spool, then the spool is sent until it is acknowledged or the time is over,
//! then the rest ends. What was not sent is on disk for the next start.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use weir_common::admin::{Admin, AdminError, Health};
use weir_common::file::{FileError, atomic_write};
use weir_common::tls::client::Dialer;
use weir_common::tls::files::FilesError;

use crate::client::Client;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::probe::{Capture, CaptureConfig, CaptureError};
use crate::replay::{Replay, ReplayOptions, Report, StateError as ReplayStateError};
use crate::source::{Drain, Ended, Generator, GeneratorError, GeneratorOptions, Source, SourceError};
use crate::spool::{Outbox, Spool, SpoolError};

/// What a shipper takes its records from.
#[derive(Clone, Debug)]
pub enum SourceOptions {
    /// The kernel, as configured.
    Capture(CaptureConfig),
    /// Made-up events.
    Generator(GeneratorOptions),
    /// Capture files.
    Replay(ReplayOptions),
}

/// What is needed to run, besides the configuration.
#[derive(Debug)]
pub struct Run {
    /// The configuration.
    pub config: Config,
    /// Where records come from.
    pub source: SourceOptions,
    /// Written once everything is up: `{"admin": "address:port"}`.
    pub ready_file: Option<PathBuf>,
    /// Cancelled to drain and end.
    pub shutdown: CancellationToken,
    /// Counters, readable meanwhile through a clone.
    pub metrics: Metrics,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything that was captured is in the journal or counted as dropped.
    Sent,
    /// The time for draining was over; the rest is in the spool.
    DrainTimedOut,
    /// A replay was stopped before the end of its files; the next start goes on.
    ReplayStopped,
    /// Everything that could be read of the capture files was sent, but some could not be read to their end.
    ReplayIncomplete,
}

/// Why a run could not begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The spool.
    #[error("open the spool")]
    Spool(#[from] SpoolError),
    /// The kernel's side.
    #[error("begin the capture")]
    Capture(#[from] CaptureError),
    /// The generator.
    #[error("begin to generate")]
    Generator(#[from] GeneratorError),
    /// The capture files, or what is known of an earlier replay.
    #[error("begin the replay")]
    Replay(#[from] ReplayStateError),
    /// The admin server.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The files of TLS can't be used.
    #[error("set up TLS")]
    Tls(#[from] FilesError),
    /// The ready file.
    #[error(transparent)]
    Ready(#[from] FileError),
    /// The source loop ended with an error; what it had not stored is still with the source.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A thread panicked: a bug.
    #[error("a part of the shipper ended unexpectedly")]
    Join(#[from] tokio::task::JoinError),
}

/// Runs the shipper on this host's kernel until `shutdown` is cancelled: the entry for embedding it.
pub async fn run(config: Config, shutdown: CancellationToken, metrics: Metrics) -> Result<Outcome, RunError> {
    let source = SourceOptions::Capture(config.capture.clone());
    Run { config, source, ready_file: None, shutdown, metrics }.run().await
}

impl Run {
    /// Runs until `shutdown` is cancelled, or everything of a source that has an end is acknowledged.
    pub async fn run(self) -> Result<Outcome, RunError> {
        let Self { config, source, ready_file, shutdown, metrics } = self;
        let health = Health::default();
        let dialer = dialer(&config, &metrics)?;
        let (spool, source) = open(&config, source, &metrics, &shutdown).await?;
        let outbox = spool.outbox();
        let admin = serve_admin(&config, &metrics, &health).await?;

        let flow_ids = match &source {
            Source::Replay(replay) => Some(replay.flow_id_prefix()),
            _ => None,
        };
        let stop_client = CancellationToken::new();
        let client = Client {
            options: config.client.clone(),
            dialer,
            outbox: outbox.clone(),
            metrics: metrics.clone(),
            health: health.clone(),
        };
        let client = tokio::spawn(client.run(stop_client.clone()));
        let (stop_drain, drain_stopped) = mpsc::channel();
        let drain = Drain {
            source,
            spool,
            interval: config.interval,
            body_bytes: config.body_bytes,
            unload: config.unload_on_exit,
            metrics: metrics.clone(),
            health: health.clone(),
        };
        let mut drain = tokio::task::spawn_blocking(move || drain.run(&drain_stopped));
        if let Some(path) = &ready_file {
            let address = admin.as_ref().map(|(address, _)| address.to_string());
            let ready = serde_json::json!({ "admin": address, "flow_ids": flow_ids });
            atomic_write(path, ready.to_string().as_bytes())?;
        }
        tracing::info!(node = config.client.node, cluster = config.client.cluster, "shipper runs");

        let (stored, asked) = tokio::select! {
            stored = &mut drain => (stored, false),
            () = shutdown.cancelled() => {
                tracing::info!(timeout = ?config.drain_timeout, "draining");
                drop(stop_drain);
                (drain.await, true)
            }
        };
        let stored = stored.map_err(RunError::from).and_then(|stored| stored.map_err(RunError::from));
        let outcome = match &stored {
            // Without a working source the process ends soon, to be started anew.
            Err(_) => Outcome::DrainTimedOut,
            Ok(_) if asked => sent_within(&outbox, config.drain_timeout).await,
            Ok(_) => tokio::select! {
                () = sent(&outbox) => Outcome::Sent,
                () = shutdown.cancelled() => sent_within(&outbox, config.drain_timeout).await,
            },
        };
        stop_client.cancel();
        client.await?;
        if let Some((_, server)) = admin {
            server.abort();
        }
        let Ended { spool, unloaded: _, replay } = stored?;
        let outcome = match replay {
            Some(replay) => end_replay(*replay, outcome)?,
            None => outcome,
        };
        spool.close()?;
        let waiting = *outbox.waiting().borrow();
        tracing::info!(
            journaled = metrics.journaled_events.get(),
            dropped = metrics.dropped_events_sum(),
            waiting = waiting.records.events,
            "shipper ends"
        );
        Ok(outcome)
    }
}

/// Says what a replay did. It is over once all of it is in a journal; until then the next start goes on with it.
fn end_replay(mut replay: Replay, outcome: Outcome) -> Result<Outcome, RunError> {
    let whole = replay.is_done();
    let report = if whole && outcome == Outcome::Sent { replay.finish()? } else { replay.report() };
    let Report { totals, other_packets, unknown_link_packets, problems } = &report;
    tracing::info!(
        packets = totals.packets,
        bytes = totals.bytes,
        flows = totals.flows,
        records = totals.records,
        retransmits = totals.retransmits,
        out_of_order = totals.out_of_order,
        evicted_flows = totals.evicted,
        other_packets,
        unknown_link_packets,
        whole,
        "replayed"
    );
    Ok(match outcome {
        Outcome::Sent if !whole => Outcome::ReplayStopped,
        Outcome::Sent if !problems.is_empty() => Outcome::ReplayIncomplete,
        outcome => outcome,
    })
}

/// How aggregators are reached.
fn dialer(config: &Config, metrics: &Metrics) -> Result<Dialer, FilesError> {
    let reloads = metrics.tls_reloads.clone();
    let reloaded = move |used| {
        reloads.get_or_create(&[("result", if used { "used" } else { "failed" })]).inc();
    };
    Dialer::open(&config.tls, config.server_name.clone(), reloaded)
}

/// Opens spool and source on a thread that may block.
async fn open(
    config: &Config,
    source: SourceOptions,
    metrics: &Metrics,
    shutdown: &CancellationToken,
) -> Result<(Spool, Source), RunError> {
    let (options, names, metrics) = (config.spool.clone(), config.aggregators.clone(), metrics.clone());
    let shutdown = shutdown.clone();
    tokio::task::spawn_blocking(move || {
        let spool = Spool::open_for(options, &names, metrics)?;
        let source = match source {
            SourceOptions::Capture(capture) => Source::Capture(Box::new(Capture::open(&capture)?)),
            SourceOptions::Generator(generator) => Source::Generator(Generator::open(generator)?),
            SourceOptions::Replay(replay) => {
                Source::Replay(Box::new(Replay::open(&replay, spool.dir(), shutdown)?))
            }
        };
        Ok((spool, source))
    })
    .await?
}

type AdminTask = (std::net::SocketAddr, tokio::task::JoinHandle<std::io::Result<()>>);

async fn serve_admin(
    config: &Config,
    metrics: &Metrics,
    health: &Health,
) -> Result<Option<AdminTask>, RunError> {
    let Some(address) = config.admin else { return Ok(None) };
    let mut registry = Registry::default();
    metrics.register(&mut registry);
    let admin = Admin::bind(address).await?;
    let address = admin.address();
    tracing::info!(%address, "metrics and health");
    Ok(Some((address, tokio::spawn(admin.serve(Arc::new(registry), health.clone())))))
}

/// Waits until nothing waits in the spool.
async fn sent(outbox: &Outbox) {
    let mut waiting = outbox.waiting();
    // The sender lives in the outbox.
    let _ = waiting.wait_for(|waiting| waiting.numbers == 0).await;
}

async fn sent_within(outbox: &Outbox, time: Duration) -> Outcome {
    match tokio::time::timeout(time, sent(outbox)).await {
        Ok(()) => Outcome::Sent,
        Err(_) => {
            let waiting = *outbox.waiting().borrow();
            tracing::warn!(
                events = waiting.records.events,
                batches = waiting.numbers,
                "the time for draining is over; the spool keeps the rest"
            );
            Outcome::DrainTimedOut
        }
    }
}
