//! Reads the counters of shipper and aggregator from their `/metrics`, over one connection each, so that looking adds as
//! little as possible to what is seen.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::lag::Lag;

/// What the footer says of the path's state.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Health {
    /// Age of the oldest event that is not journaled.
    pub(super) journal: Duration,
    /// Age of the oldest journaled event that is in no file.
    pub(super) parquet: Duration,
    /// Events that the shipper dropped.
    pub(super) dropped: u64,
}

/// Asks both again and again, until nobody listens. A program that does not answer leaves the last values, whose ages go on.
pub(super) fn follow(shipper: &Value, aggregator: &Value) -> watch::Receiver<Health> {
    let (sender, receiver) = watch::channel(Health::default());
    let address = |ready: &Value| ready["admin"].as_str().and_then(|text| text.parse().ok());
    let mut shipper = Endpoint { address: address(shipper), stream: None };
    let mut aggregator = Endpoint { address: address(aggregator), stream: None };
    tokio::spawn(async move {
        let (mut journal, mut parquet) = (Lag::default(), Lag::default());
        let (mut of_shipper, mut of_aggregator) = (String::new(), String::new());
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !sender.is_closed() {
            ticks.tick().await;
            of_shipper = shipper.metrics().await.unwrap_or(of_shipper);
            of_aggregator = aggregator.metrics().await.unwrap_or(of_aggregator);
            let now = Instant::now();
            let count = |name: &str| sum(&of_shipper, name);
            let dropped = count("weir_shipper_dropped_events_total");
            let entered =
                count("weir_shipper_captured_events_total") + count("weir_shipper_recovered_events_total");
            let left = count("weir_shipper_journaled_events_total") + dropped;
            let count = |name: &str| sum(&of_aggregator, name);
            let journaled = count("weir_aggregator_sink_journaled_events_total");
            let unwritten = count("weir_aggregator_sink_in_flight_events");
            let health = Health {
                journal: journal.update(now, entered, left),
                parquet: parquet.update(now, journaled, journaled.saturating_sub(unwritten)),
                dropped,
            };
            let _ = sender.send(health);
        }
    });
    receiver
}

struct Endpoint {
    address: Option<SocketAddr>,
    stream: Option<TcpStream>,
}

impl Endpoint {
    async fn metrics(&mut self) -> Option<String> {
        let address = self.address?;
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => timeout(PATIENCE, TcpStream::connect(address)).await.ok()?.ok()?,
        };
        let body = timeout(PATIENCE, get(&mut stream, address)).await.ok()?.ok()?;
        self.stream = Some(stream);
        Some(body)
    }
}

/// One request on a connection that stays open (RFC 9112).
async fn get(stream: &mut TcpStream, address: SocketAddr) -> std::io::Result<String> {
    stream.write_all(format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    loop {
        if let Some((head, body)) = split(&answer) {
            let length = content_length(head).ok_or(std::io::ErrorKind::InvalidData)?;
            if body.len() >= length {
                return Ok(String::from_utf8_lossy(&body[..length]).into_owned());
            }
        }
        if stream.read_buf(&mut answer).await? == 0 || answer.len() > ANSWER_BYTES_MAX {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
    }
}

fn split(answer: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = answer.windows(4).position(|end| end == b"\r\n\r\n")?;
    Some((&answer[..end], &answer[end + 4..]))
}

fn content_length(head: &[u8]) -> Option<usize> {
    let head = std::str::from_utf8(head).ok()?;
    let mut fields = head.lines().filter_map(|line| line.split_once(':'));
    fields.find_map(|(name, value)| {
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    })
}

/// The sum over all labels of a metric in the Prometheus text format.
fn sum(text: &str, name: &str) -> u64 {
    let values = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        rest.starts_with([' ', '{']).then(|| rest.rsplit_once(' ')?.1.parse::<u64>().ok())?
    });
    values.sum()
}

/// Each question is two records of Weir's own: seldom enough not to fill the files with itself.
const EVERY: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(2);
const ANSWER_BYTES_MAX: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_summed_over_labels() {
        let text = "# TYPE a_total counter\na_total{r=\"x y\"} 2\na_total{r=\"z\"} 3\na_total_more 7\nb 1\n";
        assert_eq!((sum(text, "a_total"), sum(text, "b"), sum(text, "c")), (5, 1, 0));
    }

    #[test]
    fn answers_have_head_and_body() {
        let (head, body) = split(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc").unwrap();
        assert_eq!((content_length(head), body), (Some(3), &b"abc"[..]));
        assert_eq!(split(b"HTTP/1.1 200 OK\r\n"), None);
    }
}
