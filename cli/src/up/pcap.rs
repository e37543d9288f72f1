//! `weir up --pcap`: capture files in place of this host. Starts aggregator and shipper as `up` does, without the kernel;
//! ends when the files are read and everything is in Parquet.

use std::ffi::OsString;
use std::io::{IsTerminal, stdin};
use std::path::Path;
use std::process::Stdio;

use anyhow::Context;
use serde_json::Value;
use weir_common::exit;

use super::config::{self, Folders};
use super::live::Live;
use super::service::{EndedEarly, Service};
use super::{Stop, Watched, drain, metrics, watch};
use crate::{adopt, arguments, summary, units};

pub(super) async fn replay(arguments: &arguments::Up) -> anyhow::Result<u8> {
    let arguments::Up { data, pcap, abandon, interval, duration: _, no_demo: _, own: _ } = arguments;
    let from_stdin = pcap.iter().any(|file| file == Path::new(STDIN));
    if from_stdin && stdin().is_terminal() {
        eprintln!("weir: standard input is a terminal. Try: tcpdump -w - | weir up --pcap -");
        return Ok(exit::CONFIG);
    }
    let mut stop = Stop::listen()?;
    let folders = Folders::make(data).with_context(|| format!("make {}", data.display()))?;
    let config = config::aggregator_of_replay(&folders);
    let Watched { service: mut aggregator, ready, address, mut replies } =
        Watched::start(&config, &folders).await?;

    let config = config::shipper_of_replay(&folders, address, *interval);
    let mut words: Vec<OsString> = vec!["replay".into()];
    if *abandon {
        words.push("--abandon".into());
    }
    words.push("--".into());
    words.extend(pcap.iter().map(|file| file.clone().into_os_string()));
    let input = if from_stdin { Stdio::inherit() } else { Stdio::null() };
    let started = Service::start_with(adopt::SHIPPER, &config, &folders.state, &words, input).await;
    let (mut shipper, shipper_ready) = match started {
        Ok(started) => started,
        Err(error) => {
            let code = error.downcast_ref::<EndedEarly>().and_then(|ended| ended.code);
            eprintln!("weir: {error:#}");
            return Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(exit::FAILED));
        }
    };
    let mut live = Live::new(Vec::new(), metrics::follow(&shipper_ready, &ready));
    live.say(&format!("Reading {} into {}. Times are UTC.", names(pcap), folders.data.display()));

    let mut code = exit::OK;
    let failure = tokio::select! {
        result = watch(&mut live, &mut replies, None) => result.err(),
        () = stop.asked() => None,
        _ = shipper.ended() => None,
        status = aggregator.ended() => Some(anyhow::anyhow!("{}", aggregator.obituary(status))),
    };
    if let Some(error) = failure {
        live.say(&format!("{error:#}"));
        code = exit::FAILED;
    }
    let mut no_demo = None;
    let drained = tokio::select! {
        drained = drain(&mut live, &mut replies, &mut no_demo, vec![&mut shipper]) => drained,
        () = stop.asked() => vec![anyhow::anyhow!("asked twice to end")],
    };
    // What it could not read it says itself, below.
    let status = shipper.code();
    if status != Some(exit::OK.into()) {
        code = status.and_then(|code| u8::try_from(code).ok()).unwrap_or(exit::FAILED);
        if status != Some(exit::DATA.into()) {
            drained.iter().for_each(|error| live.say(&format!("{error:#}")));
        }
    }
    for error in drain(&mut live, &mut replies, &mut no_demo, vec![&mut aggregator]).await {
        live.say(&format!("{error:#}"));
        code = if code == exit::OK { exit::DRAIN_TIMED_OUT } else { code };
    }
    live.finish();
    report(&mut live, &folders);
    let read = live.is_read();
    drop((live, shipper, aggregator));
    if let Some(flow_ids) = shipper_ready["flow_ids"].as_str().filter(|_| read) {
        summary::print(&folders.data, &summary::Of::Replay { flow_ids }, &folders.state.join("summary.sql"))?;
    }
    Ok(code)
}

/// What the shipper noted at the end of the replay.
fn report(live: &mut Live, folders: &Folders) {
    let state = std::fs::read(folders.replay_spool().join("replay.json")).unwrap_or_default();
    let state: Value = serde_json::from_slice(&state).unwrap_or_default();
    let report = &state["report"];
    if report.is_null() {
        live.say("The replay is not through: the same command goes on where it was.");
        return;
    }
    let count = |key: &str| report[key].as_u64().unwrap_or(0);
    let mut text = format!(
        "{} packets ({}) of {} flows replayed",
        units::count(count("packets")),
        units::bytes(count("bytes")),
        units::count(count("flows"))
    );
    for (key, what) in [
        ("other_packets", "of them not IP"),
        ("unknown_link_packets", "packets of unknown link types left out"),
        ("retransmits", "TCP segments sent again"),
        ("out_of_order", "TCP segments out of order"),
        ("evicted", "flows forgotten for want of room (replay.flow_entries)"),
    ] {
        if count(key) > 0 {
            text.push_str(&format!(", {} {what}", units::count(count(key))));
        }
    }
    live.say(&text);
    for problem in report["problems"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        live.say(&format!("weir: {problem}; what stands before is in the files"));
    }
}

fn names(files: &[std::path::PathBuf]) -> String {
    match files {
        [file] if file == Path::new(STDIN) => "standard input".to_owned(),
        [file] => file.display().to_string(),
        files => format!("{} files", files.len()),
    }
}

/// As the shipper has it.
const STDIN: &str = weir_shipper::replay::STDIN;
