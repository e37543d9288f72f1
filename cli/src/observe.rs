//! `weir observe`: events of a running aggregator, through its Observe service. Also the connection that `up` uses.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use tonic::Streaming;
use weir_common::exit;
use weir_common::tls::ServerName;
use weir_common::tls::client::Dialer;
use weir_common::tls::config::TlsConfig;
use weir_common::tls::files::TlsFiles;
use weir_common::tls::plaintext::is_loopback;
use weir_proto::channel;
use weir_proto::v1::observe_client::ObserveClient;
use weir_proto::v1::{ObserveReply, ObserveRequest};

use crate::arguments::{Observe, Output, Tls};
use crate::screen::{self, Screen};

pub(crate) fn run(arguments: &Observe) -> anyhow::Result<u8> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(watch(arguments))
}

/// Opens a stream of events of an aggregator on this host, without TLS.
pub(crate) async fn connect_here(
    aggregator: SocketAddr,
    request: ObserveRequest,
) -> anyhow::Result<Streaming<ObserveReply>> {
    connect(&aggregator.to_string(), &Dialer::Plain { anywhere: false }, request).await
}

/// Opens a stream of events.
async fn connect(
    aggregator: &str,
    dialer: &Dialer,
    request: ObserveRequest,
) -> anyhow::Result<Streaming<ObserveReply>> {
    let link = dialer.dial(aggregator, PATIENCE).await?;
    let failure = link.failure();
    let reply = async {
        let channel = channel::over(link, |endpoint| endpoint)
            .await
            // The transport repeats its source's words in its own.
            .map_err(|error| anyhow::Error::from(error).root_cause().to_string())
            .map_err(anyhow::Error::msg)
            .with_context(|| format!("connect to the aggregator at {aggregator}"))?;
        ObserveClient::new(channel)
            .max_decoding_message_size(REPLY_BYTES_MAX)
            .observe(request)
            .await
            .map_err(|status| anyhow::anyhow!("{}", status.message()))
            .with_context(|| format!("observe the aggregator at {aggregator}"))
    };
    match (reply.await, failure.met()) {
        (Ok(reply), _) => Ok(reply.into_inner()),
        // A refused certificate is known with the first answer only.
        (Err(_), Some(failure)) => Err(failure).with_context(|| format!("TLS with {aggregator}")),
        (Err(error), None) => Err(error),
    }
}

/// How the aggregator is reached, and as whom.
fn dialer(aggregator: &str, tls: &Tls) -> anyhow::Result<Dialer> {
    let Tls { tls_ca, tls_certificate, tls_key, tls_server_name, insecure_plaintext } = tls;
    let name = tls_server_name.clone().map(ServerName::try_from).transpose();
    let name = name.context("--tls-server-name is neither a DNS name nor an IP address")?;
    let config = match (tls_certificate, tls_key, tls_ca) {
        (Some(certificate), Some(key), Some(ca)) => TlsConfig::Files {
            files: TlsFiles { certificate: certificate.clone(), key: key.clone(), ca: ca.clone() },
            reload_interval: Duration::from_secs(60),
        },
        _ if *insecure_plaintext => TlsConfig::Plaintext,
        _ if is_loopback(aggregator) => TlsConfig::Loopback,
        _ => anyhow::bail!(
            "{aggregator} is not on this host: give --tls-ca, --tls-certificate and --tls-key, or \
             --insecure-plaintext"
        ),
    };
    Dialer::open(&config, name, |_| {}).context("set up TLS")
}

async fn watch(arguments: &Observe) -> anyhow::Result<u8> {
    let Observe { aggregator, tls, last, follow, kind, output } = arguments;
    let request = ObserveRequest { kinds: kind.clone(), last: *last, follow: *follow };
    let dialer = dialer(aggregator, tls)?;
    let mut replies = connect(aggregator, &dialer, request).await?;
    let mut screen = Screen::new();
    loop {
        let reply = tokio::select! {
            reply = replies.message() => reply,
            signal = tokio::signal::ctrl_c() => { signal?; break }
        };
        let Some(reply) = reply
            .map_err(|status| anyhow::anyhow!("the aggregator ended the stream: {}", status.message()))?
        else {
            break;
        };
        match show(&mut screen, &reply, *output) {
            Err(error) if screen::is_closed(&error) => break,
            result => result?,
        }
    }
    Ok(exit::OK)
}

fn show(screen: &mut Screen, reply: &ObserveReply, output: Output) -> std::io::Result<()> {
    let style = screen.style();
    let mut lines = Vec::with_capacity(reply.events.len() + 1);
    for event in &reply.events {
        lines.push(match output {
            Output::Json => with_kind(&event.kind, &event.json),
            Output::Compact => match serde_json::from_str(&event.json) {
                Ok(value) => style.line(&event.kind, &value),
                Err(_) => format!("{} {}", event.kind, event.json),
            },
        });
    }
    screen.lines(lines.iter().map(String::as_str))?;
    if reply.missed > 0 {
        // Not among the events: a JSON reader must be able to trust each line.
        eprintln!("weir: {} events passed by faster than they could be shown", reply.missed);
    }
    Ok(())
}

/// The event with its kind as the first member, so that a line says all by itself.
fn with_kind(kind: &str, json: &str) -> String {
    match json.strip_prefix('{') {
        Some(rest) if rest.trim_start() == "}" => format!("{{\"kind\":\"{kind}\"}}"),
        Some(rest) => format!("{{\"kind\":\"{kind}\",{rest}"),
        None => json.to_owned(),
    }
}

/// For a connection.
const PATIENCE: Duration = Duration::from_secs(5);
/// Ten thousand events of a kilobyte each, with room.
const REPLY_BYTES_MAX: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_stands_in_the_json() {
        assert_eq!(with_kind("flow", r#"{"a":1}"#), r#"{"kind":"flow","a":1}"#);
        assert_eq!(with_kind("loss", "{}"), r#"{"kind":"loss"}"#);
    }
}
