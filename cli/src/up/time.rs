//! RFC 3339 in UTC, both ways; only what the live view and the summary need.

/// Microseconds since the Unix epoch of `2026-11-21T12:04:05.123456Z`; `None` for anything but UTC.
pub(super) fn parse_micros(text: &str) -> Option<i64> {
    let (date, clock) = text.strip_suffix('Z')?.split_once('T')?;
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let [year, month, day] = numbers::<3>(date, '-')?;
    let [hour, minute, second] = numbers::<3>(clock, ':')?;
    if fraction.is_empty() || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let micros: i64 = format!("{fraction:0<6.6}").parse().ok()?;
    let seconds = days_from_civil(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second;
    Some(seconds * 1_000_000 + micros)
}

/// The time as `2026-11-21T12:04:05Z`, rounded down to seconds.
pub(super) fn text_of_seconds(unix: i64) -> String {
    let (days, seconds) = (unix.div_euclid(86_400), unix.rem_euclid(86_400));
    let (year, month, day) = civil_from_days(days);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", seconds / 3_600, seconds / 60 % 60, seconds % 60)
}

fn numbers<const N: usize>(text: &str, separator: char) -> Option<[i64; N]> {
    let parts: Vec<i64> = text.split(separator).map(|part| part.parse::<u32>().ok().map(i64::from)).collect::<Option<_>>()?;
    parts.try_into().ok()
}

/// Days since 1970-01-01 in the Gregorian calendar: years begin in March, so that leap days come last.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day_of_year - EPOCH_DAY
}

fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + EPOCH_DAY;
    let era = days.div_euclid(146_097);
    let in_era = days.rem_euclid(146_097);
    let year = (in_era - in_era / 1_460 + in_era / 36_524 - in_era / 146_096) / 365;
    let day_of_year = in_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    (year + era * 400 + i64::from(month <= 2), month, day)
}

/// 1970-01-01 in days since 0000-03-01.
const EPOCH_DAY: i64 = 719_468;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_round_trip_over_leap_years() {
        for text in ["1970-01-01T00:00:00Z", "2000-02-29T23:59:59Z", "2026-11-21T12:04:05Z", "2100-03-01T00:00:00Z"] {
            let micros = parse_micros(text).unwrap();
            assert_eq!(text_of_seconds(micros / 1_000_000), text);
        }
        assert_eq!(parse_micros("2026-11-21T12:04:05.5Z").unwrap() % 1_000_000, 500_000);
        assert_eq!(parse_micros("1970-01-02T00:00:00.000001Z"), Some(86_400_000_001));
        assert_eq!(parse_micros("2026-11-21T12:04:05+01:00"), None);
    }
}
