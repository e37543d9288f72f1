//! How old the oldest event is that has not arrived, from two counters: events that entered and events that left.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// What had entered at which time; only what has not left.
#[derive(Default)]
pub(super) struct Lag {
    entered: VecDeque<(Instant, u64)>,
}

impl Lag {
    /// Takes both counters at a time and gives the age of the oldest event that has not left, as exact as this is
    /// called often. Zero when all have left.
    pub(super) fn update(&mut self, now: Instant, entered: u64, left: u64) -> Duration {
        if self.entered.back().is_none_or(|(_, last)| *last < entered) {
            self.entered.push_back((now, entered));
        }
        while self.entered.front().is_some_and(|(_, count)| *count <= left) {
            self.entered.pop_front();
        }
        // An hour of seconds; beyond it the answer is "over an hour" all the same.
        while self.entered.len() > 3600 {
            self.entered.remove(1);
        }
        self.entered.front().map_or(Duration::ZERO, |(since, _)| now - *since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_age_is_that_of_the_oldest_missing() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut lag = Lag::default();
        assert_eq!(lag.update(at(0), 10, 10), Duration::ZERO);
        assert_eq!(lag.update(at(1), 20, 10), Duration::ZERO);
        assert_eq!(lag.update(at(2), 30, 10), Duration::from_secs(1));
        assert_eq!(lag.update(at(5), 30, 20), Duration::from_secs(3));
        assert_eq!(lag.update(at(6), 30, 30), Duration::ZERO);
    }
}
