//! The live view: events as they are journaled, and a footer with rates, lag and losses.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::watch;
use weir_proto::v1::{ObserveReply, Status};

use super::metrics::Health;
use crate::line;
use crate::screen::Screen;
use crate::units;

/// Counters and lines of one run.
pub(super) struct Live {
    screen: Screen,
    /// Whether the reader of our output went away: nothing more is written.
    gone: bool,
    health: watch::Receiver<Health>,
    /// Process ids of Weir itself, whose lines are left out; empty to show them.
    own: Vec<u64>,
    started: Instant,
    /// What arrived in the last seconds.
    window: VecDeque<Sample>,
    seen: u64,
    hidden: u64,
    demo: u64,
    missed: u64,
    status: Status,
    footer_due: Instant,
    /// Lines may still be shown in the running second.
    allowance: u32,
    allowance_due: Instant,
    unshown: u64,
}

struct Sample {
    at: Instant,
    events: u64,
    bytes: u64,
}

impl Live {
    pub(super) fn new(own: Vec<u64>, health: watch::Receiver<Health>) -> Self {
        let now = Instant::now();
        Self {
            screen: Screen::new(),
            gone: false,
            health,
            own,
            started: now,
            window: VecDeque::new(),
            seen: 0,
            hidden: 0,
            demo: 0,
            missed: 0,
            status: Status::default(),
            footer_due: now + FOOTER_EVERY_LINE,
            allowance: LINES_PER_SECOND,
            allowance_due: now + Duration::from_secs(1),
            unshown: 0,
        }
    }

    /// Whether anybody still reads.
    pub(super) fn is_read(&self) -> bool {
        !self.gone
    }

    /// A line of our own.
    pub(super) fn say(&mut self, text: &str) {
        self.write(|screen| screen.line(text));
    }

    fn write(&mut self, write: impl FnOnce(&mut Screen) -> io::Result<()>) {
        self.gone = self.gone || write(&mut self.screen).is_err();
    }

    /// Shows what the aggregator sent.
    pub(super) fn reply(&mut self, reply: ObserveReply) {
        let ObserveReply { events, missed, status } = reply;
        self.missed += missed;
        if let Some(status) = status {
            self.status = status;
        }
        let style = self.screen.style();
        let mut sample = Sample { at: Instant::now(), events: 0, bytes: 0 };
        let mut lines = Vec::new();
        for event in &events {
            let value: Value = serde_json::from_str(&event.json).unwrap_or_default();
            self.seen += 1;
            sample.events += 1;
            sample.bytes += primary_bytes(&value);
            self.demo += u64::from(line::is_demo(&value));
            if self.is_own(&value) {
                self.hidden += 1;
            } else if self.allowance == 0 {
                self.unshown += 1;
            } else {
                self.allowance -= 1;
                lines.push(style.line(&event.kind, &value));
            }
        }
        // Lines begin with their time. The two ends of a connection come from different maps of one interval.
        lines.sort_unstable();
        self.window.push_back(sample);
        self.write(|screen| screen.lines(lines.iter().map(String::as_str)));
    }

    /// To be called several times a second.
    pub(super) fn tick(&mut self) {
        let now = Instant::now();
        while self.window.front().is_some_and(|sample| now - sample.at > WINDOW) {
            self.window.pop_front();
        }
        if now >= self.allowance_due {
            self.allowance = LINES_PER_SECOND;
            self.allowance_due = now + Duration::from_secs(1);
            if self.unshown > 0 {
                let unshown = units::count(std::mem::take(&mut self.unshown));
                self.say(&format!("             … {unshown} more, too many to read"));
            }
        }
        if self.screen.is_terminal() {
            let footer = format!(" {} ", self.footer(now));
            self.write(|screen| screen.footer(&footer));
        } else if now >= self.footer_due {
            self.footer_due = now + FOOTER_EVERY_LINE;
            self.say(&format!("-- {}", self.footer(now)));
        }
    }

    /// Takes the footer away and says what was seen in all.
    pub(super) fn finish(&mut self) {
        let Self { seen, hidden, demo, missed, status, .. } = self;
        let mut text = format!(
            "{} events journaled, {} lost; {} seen here",
            units::count(status.journaled_events),
            units::count(status.lost_events),
            units::count(*seen),
        );
        if *demo > 0 {
            text.push_str(&format!(", {} of them the demo's", units::count(*demo)));
        }
        if *hidden > 0 {
            text.push_str(&format!(", {} Weir's own (--own shows them)", units::count(*hidden)));
        }
        if *missed > 0 {
            text.push_str(&format!("; {} passed by unseen", units::count(*missed)));
        }
        self.write(|screen| screen.footer(""));
        self.say(&text);
    }

    fn footer(&self, now: Instant) -> String {
        let span = WINDOW.min(now - self.started).as_secs_f64().max(1.0);
        let events: u64 = self.window.iter().map(|sample| sample.events).sum();
        let bytes: u64 = self.window.iter().map(|sample| sample.bytes).sum();
        let Health { journal, parquet, dropped } = *self.health.borrow();
        format!(
            "{:.1} events/s  {}/s | oldest not journaled: {:.1} s, not in Parquet: {:.1} s | dropped {}, lost {}",
            events as f64 / span,
            units::bytes((bytes as f64 / span) as u64),
            journal.as_secs_f64(),
            parquet.as_secs_f64(),
            units::count(dropped),
            units::count(self.status.lost_events),
        )
    }

    fn is_own(&self, event: &Value) -> bool {
        ["src_pid", "dst_pid"]
            .iter()
            .any(|key| event[*key].as_u64().is_some_and(|pid| self.own.contains(&pid)))
    }
}

/// Bytes both ways of a record that counts: of a capture file each does.
fn primary_bytes(event: &Value) -> u64 {
    if event["primary"].as_bool() != Some(true) && event["time_quality"].as_str() != Some("replayed") {
        return 0;
    }
    ["src_bytes", "dst_bytes"].iter().filter_map(|key| event[*key].as_u64()).sum()
}

/// Over which rates are taken.
const WINDOW: Duration = Duration::from_secs(5);
/// How often the footer is a line of its own where it can't be redrawn.
const FOOTER_EVERY_LINE: Duration = Duration::from_secs(5);
/// More nobody can read.
const LINES_PER_SECOND: u32 = 200;
