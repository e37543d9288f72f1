//! `weir up`: everything on this host at once. Starts aggregator, shipper and demo, shows events as they are journaled,
//! ends all of them in order, and has DuckDB sum up what was written.
//!
//! Ends in the order of the data: the demo closes its connections, the shipper stops the counting, drains the kernel,
//! takes the capture out of it and drains its spool, the aggregator drains its journal into Parquet.

mod config;
mod host;
mod lag;
mod live;
mod metrics;
mod pcap;
mod service;
mod time;

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tonic::Streaming;
use weir_common::{clock, exit};
use weir_proto::v1::{ObserveReply, ObserveRequest};

use self::config::Folders;
use self::live::Live;
use self::service::Service;
use crate::demo::hosts::Demo;
use crate::{adopt, arguments, observe, summary};

pub(crate) fn run(arguments: &arguments::Up) -> anyhow::Result<u8> {
    // One thread: a child is told of its parent's death when the thread that started it ends.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        if arguments.pcap.is_empty() { up(arguments).await } else { pcap::replay(arguments).await }
    })
}

/// A running aggregator, and everything that it journals.
struct Watched {
    service: Service,
    /// What it wrote into its ready file.
    ready: Value,
    address: SocketAddr,
    replies: Streaming<ObserveReply>,
}

impl Watched {
    async fn start(config: &Value, folders: &Folders) -> anyhow::Result<Self> {
        let (service, ready) = Service::start(adopt::AGGREGATOR, config, &folders.state).await?;
        let address: SocketAddr = ready["grpc"]
            .as_str()
            .and_then(|text| text.parse().ok())
            .context("the aggregator did not say where it listens")?;
        let request = ObserveRequest { kinds: Vec::new(), last: 0, follow: true };
        let replies = observe::connect_here(address, request).await?;
        Ok(Self { service, ready, address, replies })
    }
}

async fn up(arguments: &arguments::Up) -> anyhow::Result<u8> {
    let arguments::Up { data, pcap: _, abandon: _, duration, no_demo, interval, own } = arguments;
    let since = time::text_of_seconds(clock::now_ns().div_euclid(1_000_000_000));
    let mut stop = Stop::listen()?;
    let folders = Folders::make(data).with_context(|| format!("make {}", data.display()))?;
    if let Some(code) = refuse(&folders)? {
        return Ok(code);
    }
    let mut demo = if *no_demo {
        None
    } else {
        Some(Demo::new().context("make the demo's hosts (--no-demo does without)")?)
    };

    let config = config::aggregator(&folders, &host::local_networks()?);
    let Watched { service: mut aggregator, ready, address, mut replies } =
        Watched::start(&config, &folders).await?;

    let config = config::shipper(&folders, address, interval.unwrap_or(INTERVAL));
    let unload = Unload { config: service::write_config("unload", &config, &folders.state)? };
    let (mut shipper, shipper_ready) = Service::start(adopt::SHIPPER, &config, &folders.state).await?;
    let mut pids = vec![std::process::id(), shipper.pid(), aggregator.pid()];
    if *own {
        pids.clear();
    }
    let health = metrics::follow(&shipper_ready, &ready);
    let mut live = Live::new(pids.into_iter().map(u64::from).collect(), health);
    live.say(&format!(
        "Watching {} into {} until {}. Times are UTC. From another terminal: weir observe --follow{}",
        host::name(),
        folders.data.display(),
        duration.map_or_else(
            || "Ctrl-C".to_owned(),
            |duration| format!("{} s have passed", duration.as_secs_f64())
        ),
        if address.to_string() == arguments::DEFAULT_AGGREGATOR {
            String::new()
        } else {
            format!(" --aggregator {address}")
        },
    ));
    if let Some(demo) = &mut demo {
        demo.start(&folders.state.join("demo.json"))?;
        live.say("Lines marked \"demo\" are of two made-up hosts (--no-demo, or DEMO=0, leaves them out).");
    }

    let end = duration.map(|duration| Instant::now() + duration);
    let mut code = exit::OK;
    let failure = tokio::select! {
        result = watch(&mut live, &mut replies, end) => result.err(),
        () = stop.asked() => None,
        status = shipper.ended() => Some(anyhow::anyhow!("{}", shipper.obituary(status))),
        status = aggregator.ended() => Some(anyhow::anyhow!("{}", aggregator.obituary(status))),
    };
    if let Some(error) = failure {
        live.say(&format!("{error:#}"));
        code = exit::FAILED;
    }

    live.say("Ending: connections, kernel, spool, journal, Parquet.");
    let drained = tokio::select! {
        drained = drain(&mut live, &mut replies, &mut demo, vec![&mut shipper, &mut aggregator]) => drained,
        () = stop.asked() => vec![anyhow::anyhow!("asked twice to end: what was not written stays in {}", folders.state.display())],
    };
    for error in drained {
        live.say(&format!("{error:#}"));
        code = if code == exit::OK { exit::DRAIN_TIMED_OUT } else { code };
    }
    live.finish();
    let read = live.is_read();
    drop((live, shipper, aggregator, unload, demo));
    if !read {
        return Ok(code);
    }
    summary::print(&folders.data, &summary::Of::Host { since: &since }, &folders.state.join("summary.sql"))?;
    Ok(code)
}

/// Asks the shipper whether this kernel and these privileges will do; when not, says why and returns the exit code.
fn refuse(folders: &Folders) -> anyhow::Result<Option<u8>> {
    if !rustix::process::geteuid().is_root() {
        eprintln!(
            "weir: capturing needs root: its programs go into the kernel. Try: sudo weir up; or, without root: weir up --pcap FILE"
        );
        return Ok(Some(exit::UNAVAILABLE));
    }
    let output = service::command(adopt::SHIPPER)?
        .arg("check")
        .stdin(Stdio::null())
        .output()
        .context("run weir-shipper check")?;
    if output.status.success() {
        return Ok(None);
    }
    eprint!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    eprintln!(
        "weir: this host can't be captured, as said above (weir-shipper check); nothing was started in {}",
        folders.data.display()
    );
    Ok(Some(exit::UNAVAILABLE))
}

/// Shows events until the time is over or nobody reads; an error is a stream that ended before.
async fn watch(
    live: &mut Live,
    replies: &mut Streaming<ObserveReply>,
    end: Option<Instant>,
) -> anyhow::Result<()> {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let over = async {
        match end {
            Some(end) => sleep_until(end).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(over);
    loop {
        tokio::select! {
            reply = replies.message() => live.reply(reply?.context("the aggregator ended the stream of events")?),
            _ = ticks.tick() => live.tick(),
            () = &mut over => return Ok(()),
        }
        if !live.is_read() {
            return Ok(());
        }
    }
}

/// Ends everything in the order of the data, showing what still comes; returns what went wrong.
async fn drain(
    live: &mut Live,
    replies: &mut Streaming<ObserveReply>,
    demo: &mut Option<Demo>,
    services: Vec<&mut Service>,
) -> Vec<anyhow::Error> {
    let mut open = true;
    let ending = async {
        let mut errors = Vec::new();
        if let Some(mut running) = demo.take() {
            // It waits for the last connection's end, and the view must go on meanwhile.
            match tokio::task::spawn_blocking(move || {
                running.stop();
                running
            })
            .await
            {
                Ok(stopped) => *demo = Some(stopped),
                Err(error) => errors.push(anyhow::anyhow!("stop the demo: {error}")),
            }
        }
        for service in services {
            if let Err(error) = service.drain(DRAIN_MAX).await {
                errors.push(error);
            }
        }
        errors
    };
    tokio::pin!(ending);
    let errors = loop {
        tokio::select! {
            errors = &mut ending => break errors,
            reply = replies.message(), if open => match reply {
                Ok(Some(reply)) => live.reply(reply),
                _ => open = false,
            },
        }
    };
    // What the aggregator sent before it ended.
    while open && let Ok(Ok(Some(reply))) = timeout(TICK, replies.message()).await {
        live.reply(reply);
    }
    errors
}

/// The signals that ask for an end.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    fn listen() -> std::io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Takes the capture out of the kernel when dropped, whatever happened before: after `up` nothing is left behind. A
/// shipper that ended as it was asked has done it itself; of one that died, what was counted goes to the spool, if it can.
struct Unload {
    config: std::path::PathBuf,
}

impl Drop for Unload {
    fn drop(&mut self) {
        for how in [&["unload"][..], &["unload", "--discard"]] {
            let result = service::command(adopt::SHIPPER).and_then(|mut command| {
                command.args(how).arg("--config").arg(&self.config).stdin(Stdio::null());
                command.output().context("run weir-shipper unload")
            });
            match result {
                Ok(output) if output.status.success() => return,
                Ok(output) => {
                    let words = String::from_utf8_lossy(&output.stderr);
                    eprintln!("weir: weir-shipper {}: {}", how.join(" "), words.trim());
                }
                Err(error) => eprintln!("weir: {error:#}"),
            }
        }
    }
}

/// How often connections are reported.
const INTERVAL: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(250);
/// Of each service.
const DRAIN_MAX: Duration = Duration::from_secs(60);
