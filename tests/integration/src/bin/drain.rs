//! Drains a capture into a log, interval by interval, as the shipper does into its spool: to be killed at any point.
//!
//!   drain CGROUP PINS LOG            until it is killed
//!   drain CGROUP PINS LOG final      until everything counted so far is in the log
//!   drain CGROUP PINS LOG die POINT  until the third time at POINT: `read`, `append` or `release`
//!
//! A line: source id, interval, connections opened and (packets, bytes) sent and answered, by the source's report; with
//! `DRAIN_LINK=<namespace's path>,<device>` in the environment, by the records of that link.

use std::{
    env,
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
    process,
};

use anyhow::{Context, Result, bail};
use weir_integration_tests::capture::{opened_of, sent_of};
use weir_schema::values::{Reporter, Vantage};
use weir_shipper::probe::{Capture, CaptureConfig, InterfaceConfig, LinkPattern};

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let ([cgroup, pins, log], rest) =
        arguments.split_first_chunk::<3>().context("three arguments are needed")?;
    let (rounds, die) = match rest {
        [] => (u64::MAX, ""),
        ["final"] => (3, ""),
        ["die", point] => (u64::MAX, *point),
        _ => bail!("unknown arguments {rest:?}"),
    };
    let (mut file, mut last) = open_log(log)?;
    let link = env::var("DRAIN_LINK").unwrap_or_default();
    let link = link.split_once(',');
    let interfaces = link.map(|(namespace, device)| InterfaceConfig {
        links: vec![LinkPattern::Name(device.to_owned())],
        namespaces: vec![namespace.to_owned()],
        ..InterfaceConfig::default()
    });
    let vantage = if interfaces.is_some() { Vantage::Interface } else { Vantage::Socket };
    let config = CaptureConfig {
        cgroup: Some(cgroup.into()),
        pin_directory: pins.into(),
        interfaces,
        ..CaptureConfig::default()
    };
    let mut capture = Capture::open(&config)?;
    let source = u128::from_be_bytes(capture.source_id());
    println!("ready");
    for round in 0..rounds {
        let die_at = |point: &str| {
            if die == point && round == 3 {
                process::abort();
            }
        };
        let interval = capture.frozen()?.context("intervals begin at 1")?;
        if last != Some((source, interval)) {
            let drained = capture.read(interval)?;
            die_at("read");
            let side = || {
                let records = drained.records.iter().filter(|record| record.vantage == vantage);
                records.filter(|record| record.reporter != Reporter::Destination)
            };
            let ((up, down), opened) =
                (sent_of(6, side()), opened_of(side().filter(|record| record.protocol == 6)));
            let (up, down) = ((up.packets, up.bytes), (down.packets, down.bytes));
            writeln!(file, "{source} {interval} {opened} {} {} {} {}", up.0, up.1, down.0, down.1)?;
            file.sync_data()?;
            last = Some((source, interval));
            die_at("append");
        }
        capture.release(interval)?;
        die_at("release");
    }
    Ok(())
}

/// The log without a torn last line, and the interval that it ends with.
fn open_log(path: &str) -> Result<(File, Option<(u128, u64)>)> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let whole = text.rfind('\n').map_or(0, |at| at + 1);
    let last = text[..whole].lines().last().and_then(|line| {
        let mut words = line.split(' ');
        Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
    });
    let mut file =
        File::options().create(true).truncate(false).write(true).open(path).context("open the log")?;
    file.set_len(whole as u64)?;
    file.seek(SeekFrom::End(0))?;
    Ok((file, last))
}
