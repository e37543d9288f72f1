//! Wall-clock time as Weir writes it: signed nanoseconds since the Unix epoch.

use std::time::{SystemTime, UNIX_EPOCH};

/// Now, in nanoseconds since the Unix epoch; negative before it.
pub fn now_ns() -> i64 {
    unix_ns(SystemTime::now())
}

/// A system time in nanoseconds since the Unix epoch, saturating in the years 1677 and 2262.
pub fn unix_ns(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |nanos| -nanos),
    }
}
