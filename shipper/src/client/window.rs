//! What was sent on one stream and is not acknowledged, against what the aggregator allows.

use std::collections::VecDeque;

/// Sent frames, oldest first.
#[derive(Debug)]
pub(super) struct Window {
    batches_max: usize,
    bytes_max: u64,
    frames: VecDeque<(u64, u64)>,
    bytes: u64,
    last_sent: u64,
}

/// An acknowledgement of something that was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the aggregator acknowledged {number}; only {last_sent} was sent")]
pub struct NotSent {
    /// What it acknowledged.
    pub number: u64,
    /// The last number sent.
    pub last_sent: u64,
}

impl Window {
    /// `last` is what was journaled before the stream began.
    pub(super) fn new(batches_max: usize, bytes_max: u64, last: u64) -> Self {
        Self {
            batches_max: batches_max.max(1),
            bytes_max,
            frames: VecDeque::new(),
            bytes: 0,
            last_sent: last,
        }
    }

    /// Whether a frame of this size may be sent now. One always may, however large.
    pub(super) fn takes(&self, bytes: u64) -> bool {
        self.frames.is_empty()
            || (self.frames.len() < self.batches_max && self.bytes.saturating_add(bytes) <= self.bytes_max)
    }

    /// A frame whose last number is `number` was sent.
    pub(super) fn sent(&mut self, number: u64, bytes: u64) {
        self.frames.push_back((number, bytes));
        self.bytes += bytes;
        self.last_sent = number;
    }

    /// All numbers up to this one are journaled.
    pub(super) fn acked(&mut self, number: u64) -> Result<(), NotSent> {
        if number > self.last_sent {
            return Err(NotSent { number, last_sent: self.last_sent });
        }
        while let Some((_, bytes)) = self.frames.pop_front_if(|(sent, _)| *sent <= number) {
            self.bytes -= bytes;
        }
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.frames.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_bounds_hold_and_acknowledgements_are_cumulative() {
        let mut window = Window::new(3, 100, 7);
        assert!(window.takes(1000), "one may always be sent");
        window.sent(8, 60);
        assert!(!window.takes(41));
        assert!(window.takes(40));
        window.sent(9, 20);
        window.sent(12, 0);
        assert!(!window.takes(0), "three are under way");
        assert_eq!(window.acked(13), Err(NotSent { number: 13, last_sent: 12 }));
        window.acked(9).unwrap();
        window.acked(9).unwrap();
        assert_eq!((window.len(), window.bytes), (1, 0));
        window.acked(12).unwrap();
        assert!(window.is_empty());
    }
}
