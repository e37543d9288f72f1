//! From the kernel's boot time to wall-clock time: wall = boot + an offset that is sampled again for each interval.

/// A step of the wall clock that is worth a warning.
const STEP_NS: u64 = 500_000_000;

/// The offset between the two clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    offset_ns: i64,
}

impl Clock {
    /// A clock from one sample of both, in nanoseconds.
    pub(crate) fn new(boot_ns: u64, wall_ns: u64) -> Self {
        Self { offset_ns: wall_ns.wrapping_sub(boot_ns).cast_signed() }
    }

    /// Takes a new sample. Returns by how far the wall clock was stepped, when that is more than half a second.
    pub(crate) fn sample(&mut self, boot_ns: u64, wall_ns: u64) -> Option<i64> {
        let next = Self::new(boot_ns, wall_ns);
        let step = next.offset_ns.wrapping_sub(self.offset_ns);
        *self = next;
        (step.unsigned_abs() > STEP_NS).then_some(step)
    }

    /// Unix nanoseconds of a boot time.
    pub(crate) fn unix_ns(self, boot_ns: u64) -> i64 {
        boot_ns.cast_signed().saturating_add(self.offset_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_wall_clock_and_tells_its_steps() {
        let mut clock = Clock::new(1_000, 1_700_000_000_000_000_000);
        assert_eq!(clock.unix_ns(1_500), 1_700_000_000_000_000_500);
        assert_eq!(clock.sample(2_000, 1_700_000_000_100_001_000), None);
        assert_eq!(clock.sample(3_000, 1_700_000_002_100_002_000), Some(2_000_000_000));
        assert_eq!(clock.sample(4_000, 1_700_000_001_000_003_000), Some(-1_100_000_000));
        assert_eq!(clock.unix_ns(4_000), 1_700_000_001_000_003_000);
    }
}
