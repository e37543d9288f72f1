//! Waiting between attempts: exponential, capped, with full jitter, so that a thousand shippers do not come back at
//! once.

use std::time::Duration;

/// The state between attempts.
#[derive(Clone, Debug)]
pub(super) struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    pub(super) fn new(min: Duration, max: Duration) -> Self {
        Self { min, max: max.max(min), next: min }
    }

    /// The attempt before did well.
    pub(super) fn reset(&mut self) {
        self.next = self.min;
    }

    /// How long to wait now: evenly between the minimum and a bound that doubles each time.
    pub(super) fn delay(&mut self) -> Duration {
        let bound = self.next;
        self.next = (self.next * 2).min(self.max);
        self.between(bound)
    }

    /// The same at the cap, for what only a person can put right.
    pub(super) fn longest(&self) -> Duration {
        self.between(self.max)
    }

    fn between(&self, bound: Duration) -> Duration {
        let span = u64::try_from(bound.saturating_sub(self.min).as_millis()).unwrap_or(u64::MAX);
        // Without randomness the middle is as good as anything.
        let random = getrandom::u64().unwrap_or(u64::MAX / 2);
        self.min + Duration::from_millis(random % span.saturating_add(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_cap_and_start_anew() {
        let (min, max) = (Duration::from_millis(10), Duration::from_millis(100));
        let mut backoff = Backoff::new(min, max);
        assert_eq!(backoff.delay(), min);
        for _ in 0..50 {
            let delay = backoff.delay();
            assert!(delay >= min && delay <= max, "{delay:?}");
        }
        assert_eq!(backoff.next, max);
        backoff.reset();
        assert_eq!(backoff.delay(), min);
        assert!((0..50).all(|_| backoff.longest() <= max));
    }
}
