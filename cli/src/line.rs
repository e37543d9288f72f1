//! One event as one line: time, kind, process, from, to, protocol, bytes and packets each way, how it stands, times.
//!
//! Called by `observe` and by the live view of `up`. Reads the catalogue's names from the event's JSON; what is not
//! there is left blank, so an aggregator with more fields than this program knows is still shown.

use std::net::IpAddr;

use serde_json::Value;

use crate::units;

/// How lines look.
#[derive(Clone, Copy)]
pub(crate) struct Style {
    /// With terminal colours.
    pub(crate) color: bool,
}

impl Style {
    /// The event as one line, without the newline. Times are UTC; `↑` is what src sent, `↓` what dst sent.
    pub(crate) fn line(self, kind: &str, event: &Value) -> String {
        match kind {
            "flow" => self.flow(event),
            "dns" => self.plain(kind, event, "time", &dns(event), None),
            "anomaly" => self.plain(kind, event, "last_seen", &anomaly(event), Some(Color::Yellow)),
            "loss" => self.plain(kind, event, "last_time", &loss(event), Some(Color::Red)),
            _ => self.plain(kind, event, "time", &event.to_string(), None),
        }
    }

    fn flow(self, event: &Value) -> String {
        let accepted = text(event, "reporter") == "destination";
        let side = if accepted { "dst" } else { "src" };
        let (standing, color) = standing(event);
        let mut line = format!(
            "{} flow  {:<5} {:<24} {:<3} {:>21} -> {:<21} {:<5} {:>13}↑ {:>13}↓  {} {}",
            self.dim(&clock(text(event, "end_time"))),
            tag(event, side),
            process(event, side),
            match text(event, "reporter") {
                "transit" => "via",
                _ if accepted => "in",
                _ => "out",
            },
            endpoint(event, "src"),
            endpoint(event, "dst"),
            text(event, "protocol"),
            volume(event, "src"),
            volume(event, "dst"),
            self.paint(&format!("{standing:<20}"), color),
            times(event),
        );
        line.truncate(line.trim_end().len());
        line
    }

    fn plain(self, kind: &str, event: &Value, time: &str, words: &str, color: Option<Color>) -> String {
        format!("{} {kind:<7} {}", self.dim(&clock(text(event, time))), self.paint(words, color))
    }

    /// Grey, for what is always there.
    pub(crate) fn dim(self, text: &str) -> String {
        if self.color { format!("\x1b[2m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn paint(self, text: &str, color: Option<Color>) -> String {
        match color {
            Some(color) if self.color => format!("\x1b[{}m{text}\x1b[0m", color as u8),
            _ => text.to_owned(),
        }
    }
}

/// Codes of ECMA-48, section 8.3.117.
#[derive(Clone, Copy)]
enum Color {
    Red = 31,
    Green = 32,
    Yellow = 33,
}

/// The cgroups of the demo's processes begin so: see `demo::hosts`.
pub(crate) const DEMO_CGROUP: &str = "/weir-demo-";

/// Whether the event was recorded at a process of the demo.
pub(crate) fn is_demo(event: &Value) -> bool {
    ["src_cgroup", "dst_cgroup"].iter().any(|key| text(event, key).contains(DEMO_CGROUP))
}

fn tag(event: &Value, side: &str) -> &'static str {
    match text(event, if side == "src" { "src_cgroup" } else { "dst_cgroup" }) {
        cgroup if cgroup.contains(DEMO_CGROUP) => "demo",
        _ => "",
    }
}

/// `12:04:05.123` of an RFC 3339 time in UTC.
fn clock(time: &str) -> String {
    let clock = time.split_once(['T', ' ']).map_or(time, |(_, clock)| clock).trim_end_matches('Z');
    let (seconds, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    format!("{seconds:<8}.{:0<3}", fraction.get(..3).unwrap_or(fraction))
}

/// `curl[123]` of the side that was recorded.
fn process(event: &Value, side: &str) -> String {
    let name = printable(text(event, &format!("{side}_process")));
    match number(event, &format!("{side}_pid")) {
        Some(pid) => format!("{name}[{pid}]"),
        None if name.is_empty() => "-".to_owned(),
        None => name,
    }
}

fn endpoint(event: &Value, side: &str) -> String {
    let port = number(event, &format!("{side}_port")).unwrap_or(0);
    let has_ports = matches!(text(event, "protocol"), "tcp" | "udp" | "sctp" | "udplite" | "dccp");
    match text(event, &format!("{side}_ip")).parse::<IpAddr>() {
        Ok(address) if !has_ports => address.to_string(),
        Ok(IpAddr::V4(address)) => format!("{address}:{port}"),
        Ok(IpAddr::V6(address)) => format!("[{address}]:{port}"),
        Err(_) => "*".to_owned(),
    }
}

fn volume(event: &Value, side: &str) -> String {
    let [bytes, packets] =
        ["bytes", "packets"].map(|unit| number(event, &format!("{side}_{unit}")).unwrap_or(0));
    format!("{}/{packets}", units::bytes(bytes))
}

/// The most telling of: why it failed, how it ended, that it is new, its state.
fn standing(event: &Value) -> (String, Option<Color>) {
    let [error, end, state] = ["connect_error", "end_reason", "tcp_state"].map(|key| text(event, key));
    let new = number(event, "opened") == Some(1);
    if text(event, "orientation") == "overflow" {
        ("flow map full".to_owned(), Some(Color::Red))
    } else if !error.is_empty() {
        (format!("failed: {error}"), Some(Color::Red))
    } else if matches!(end, "reset" | "aborted" | "timed_out" | "connect_failed") {
        (end.to_owned(), Some(Color::Yellow))
    } else if !end.is_empty() {
        (if new { format!("opened, {end}") } else { end.to_owned() }, Some(Color::Green))
    } else if new {
        ("opened".to_owned(), Some(Color::Green))
    } else {
        (state.to_owned(), None)
    }
}

fn times(event: &Value) -> String {
    let mut parts = Vec::new();
    for (key, name) in [("handshake_us", "handshake"), ("rtt_us", "rtt")] {
        if let Some(micros) = number(event, key) {
            parts.push(format!("{name} {}", units::micros(micros)));
        }
    }
    for key in ["src_retransmits", "dst_retransmits"] {
        if let Some(segments) = number(event, key).filter(|segments| *segments > 0) {
            parts.push(format!("{segments} retransmitted"));
        }
    }
    parts.join(", ")
}

fn dns(event: &Value) -> String {
    let answer = if event.get("timed_out").and_then(Value::as_bool) == Some(true) {
        "no answer".to_owned()
    } else {
        text(event, "rcode").to_owned()
    };
    format!(
        "{} {} {} -> {}: {answer} {}",
        printable(text(event, "client_process")),
        printable(text(event, "query_name")),
        text(event, "query_type"),
        text(event, "server_ip"),
        number(event, "latency_us").map(units::micros).unwrap_or_default(),
    )
}

fn anomaly(event: &Value) -> String {
    format!(
        "{} {} {}: {}",
        printable(text(event, "severity")),
        printable(text(event, "type")),
        printable(text(event, "state")),
        printable(text(event, "summary"))
    )
}

fn loss(event: &Value) -> String {
    format!(
        "{} events lost at {} on {}: {}{}",
        number(event, "count").map_or_else(|| "unknown".to_owned(), units::count),
        text(event, "stage"),
        printable(text(event, "node")),
        text(event, "reason"),
        number(event, "bytes").map(|bytes| format!(", {}", units::bytes(bytes))).unwrap_or_default(),
    )
}

fn text<'a>(event: &'a Value, key: &str) -> &'a str {
    event.get(key).and_then(Value::as_str).unwrap_or("")
}

fn number(event: &Value, key: &str) -> Option<u64> {
    event.get(key).and_then(Value::as_u64)
}

/// A process may choose its own name: control characters must not reach the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow() -> Value {
        serde_json::json!({
            "end_time": "2026-11-21T12:04:05.123456Z", "reporter": "source", "opened": 1, "protocol": "tcp",
            "src_ip": "192.0.2.1", "src_port": 40000, "dst_ip": "192.0.2.2", "dst_port": 80,
            "src_bytes": 412, "dst_bytes": 1260, "src_packets": 6, "dst_packets": 4,
            "src_process": "curl", "src_pid": 123, "src_cgroup": "/weir-demo-7/a",
            "tcp_state": "closed", "end_reason": "closed", "handshake_us": 40, "rtt_us": 1200,
        })
    }

    #[test]
    fn a_flow_is_one_aligned_line() {
        let line = Style { color: false }.line("flow", &flow());
        assert_eq!(
            line,
            "12:04:05.123 flow  demo  curl[123]                out       192.0.2.1:40000 -> 192.0.2.2:80          tcp  \
             \x20      412 B/6↑    1.23 KiB/4↓  opened, closed       handshake 40 µs, rtt 1.20 ms"
        );
    }

    #[test]
    fn failures_stand_out_and_missing_fields_are_blank() {
        let mut event = flow();
        event["connect_error"] = "refused".into();
        assert!(Style { color: true }.line("flow", &event).contains("\x1b[31mfailed: refused"));
        assert!(Style { color: false }.line("flow", &serde_json::json!({})).contains("* -> *"));
    }

    #[test]
    fn a_process_cannot_send_escapes_to_the_terminal() {
        let mut event = flow();
        event["src_process"] = "\x1b[2Jx".into();
        assert!(!Style { color: false }.line("flow", &event).contains('\x1b'));
    }

    #[test]
    fn losses_say_what_is_unknown() {
        let event = serde_json::json!({"last_time": "2026-11-21T12:04:05Z", "stage": "capture", "reason": "reboot", "node": "n"});
        let line = Style { color: false }.line("loss", &event);
        assert_eq!(line, "12:04:05.000 loss    unknown events lost at capture on n: reboot");
    }

    #[test]
    fn v6_addresses_have_brackets_and_icmp_no_ports() {
        let mut event = flow();
        event["src_ip"] = "2001:db8::1".into();
        assert_eq!(endpoint(&event, "src"), "[2001:db8::1]:40000");
        event["protocol"] = "icmp".into();
        assert_eq!(endpoint(&event, "dst"), "192.0.2.2");
    }
}
