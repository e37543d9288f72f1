//! Which partition a row belongs to, and the division of a record batch among partitions.
//!
//! Called by the sink for each batch of a journal record. Knows nothing of files.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::{TimestampMicrosecondType, UInt32Type};
use weir_schema::{Kind, SCHEMA_VERSION};

/// A folder `kind=…/cluster=…/date=YYYY-MM-DD/hour=HH`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PartitionKey {
    /// The kind of its rows.
    pub kind: Kind,
    /// The cluster of its rows; a legal path component.
    pub cluster: Arc<str>,
    /// Hours since the Unix epoch, UTC.
    pub hour: i64,
}

impl fmt::Display for PartitionKey {
    /// The folder, relative to the root of the data.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = civil_date(self.hour.div_euclid(24));
        let hour = self.hour.rem_euclid(24);
        let (kind, cluster) = (self.kind.as_str(), &self.cluster);
        write!(f, "kind={kind}/cluster={cluster}/date={year:04}-{month:02}-{day:02}/hour={hour:02}")
    }
}

impl PartitionKey {
    /// The key of a folder as `Display` writes it; `None` for any other text.
    pub fn parse(folder: &str) -> Option<Self> {
        let mut parts = folder.split('/');
        let kind = Kind::from_name(parts.next()?.strip_prefix("kind=")?)?;
        let cluster = parts.next()?.strip_prefix("cluster=")?;
        let date = parts.next()?.strip_prefix("date=")?;
        let hour: i64 = parts.next()?.strip_prefix("hour=")?.parse().ok()?;
        let mut date = date.splitn(3, '-').map(str::parse::<i64>);
        let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
        if parts.next().is_some() || !(0..10_000).contains(&year) {
            return None;
        }
        let key =
            Self { kind, cluster: cluster.into(), hour: days_from_civil(year, month, day)? * 24 + hour };
        (key.to_string() == folder && is_cluster(cluster)).then_some(key)
    }
}

/// Rows of one batch that belong to one partition.
#[derive(Debug)]
pub(super) struct Part {
    /// Where they belong.
    pub key: PartitionKey,
    /// The rows, in their order.
    pub batch: RecordBatch,
    /// Smallest and greatest time of the kind's time field, microseconds since the Unix epoch.
    pub times: (i64, i64),
}

/// When a row's own time is not believed.
#[derive(Clone, Copy, Debug)]
pub(super) struct TimeRule {
    /// When the aggregator appended the record, nanoseconds since the Unix epoch.
    pub append_time_ns: i64,
    /// Rows older than this before the append time go to the receive hour, except replayed ones.
    pub oldest: Option<Duration>,
}

/// Rows further ahead of the append time than this go to the receive hour.
pub const AHEAD_MAX: Duration = Duration::from_mins(10);

/// Where rows of a cluster go whose name is not one (`[a-z0-9.-]{1,63}`): the aggregator refuses such names at its
/// door, so this is for journals written by something else. The rows keep the name.
const INVALID_CLUSTER: &str = "_invalid";

impl TimeRule {
    /// The hour of a row. `quality` is the row's own `time_quality`, where its kind has one.
    fn hour(&self, time_us: i64, quality: Option<&str>) -> i64 {
        let received = self.append_time_ns.div_euclid(1000);
        let believed = match quality {
            Some("skewed") => false,
            Some("replayed") => true,
            _ => {
                let ahead = time_us.saturating_sub(received) > micros(AHEAD_MAX);
                let beyond =
                    self.oldest.is_some_and(|oldest| received.saturating_sub(time_us) > micros(oldest));
                !ahead && !beyond
            }
        };
        // A year that a four-digit date can't state is nobody's time.
        if believed && YEARS_US.contains(&time_us) { hour_of(time_us) } else { self.received_hour() }
    }

    /// The hour in which the record was appended.
    fn received_hour(&self) -> i64 {
        hour_of(self.append_time_ns.div_euclid(1000))
    }
}

/// Divides a batch with the kind's columns among partitions, in the order of their keys. Rows keep their order.
/// `left` is how many partitions the record may still open: rows that would open more go to the receive hour, which
/// depends on nothing but the record. The error is the reason alone.
pub(super) fn split(
    kind: Kind,
    batch: &RecordBatch,
    rule: TimeRule,
    left: &mut usize,
) -> Result<Vec<Part>, String> {
    if batch.schema_ref().fields() != kind.arrow_schema().fields() {
        return Err(format!("its columns are not those of schema_version {SCHEMA_VERSION}"));
    }
    let column = |name: &str| batch.column_by_name(name).ok_or_else(|| format!("column {name} is missing"));
    let times = column(kind.time_field())?;
    let times =
        times.as_primitive_opt::<TimestampMicrosecondType>().ok_or("the time column is not a time")?;
    let clusters = Labels::of(column("cluster")?)?;
    let qualities = batch.column_by_name("time_quality").map(Labels::of).transpose()?;
    if times.is_empty() {
        return Ok(Vec::new());
    }

    let mut names: Vec<Arc<str>> = Vec::new();
    // Dictionaries may hold a text twice: what counts is the text.
    let name_of: Vec<u32> = clusters.values().map(|name| index_of(&mut names, path_name(name))).collect();
    let missing = index_of(&mut names, INVALID_CLUSTER);
    let place = |row: usize| {
        let quality = qualities.as_ref().and_then(|labels| labels.text(row));
        let name = clusters.key(row).map_or(missing, |key| name_of[key]);
        (name, rule.hour(times.value(row), quality))
    };

    let mut open = |wanted: (u32, i64)| {
        // The receive hour is always open: there is one for each cluster.
        let hour = if *left == 0 { rule.received_hour() } else { wanted.1 };
        *left = left.saturating_sub(1);
        (wanted.0, hour)
    };
    let first = place(0);
    let key =
        |(name, hour): (u32, i64)| PartitionKey { kind, cluster: Arc::clone(&names[name as usize]), hour };
    let values = times.values();
    if (1..times.len()).all(|row| place(row) == first) {
        let range = min_max(values.iter().copied());
        return Ok(vec![Part { key: key(open(first)), batch: batch.clone(), times: range }]);
    }
    let mut rows: BTreeMap<(u32, i64), Vec<u32>> = BTreeMap::new();
    for row in 0..times.len() {
        let (wanted, row) = (place(row), u32::try_from(row).map_err(|_| "more than 2^32 rows")?);
        match rows.get_mut(&wanted) {
            Some(rows) => rows.push(row),
            None => rows.entry(open(wanted)).or_default().push(row),
        }
    }
    let mut parts = Vec::with_capacity(rows.len());
    for (place, rows) in rows {
        let range = min_max(rows.iter().map(|row| values[*row as usize]));
        let batch = take_record_batch(batch, &UInt32Array::from(rows)).map_err(|error| error.to_string())?;
        parts.push(Part { key: key(place), batch, times: range });
    }
    parts.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(parts)
}

/// Whether a text is a cluster's name, or the name that stands for those that are none.
fn is_cluster(name: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'.' || byte == b'-';
    name == INVALID_CLUSTER || (1..=63).contains(&name.len()) && name.bytes().all(legal)
}

fn path_name(name: Option<&str>) -> &str {
    name.filter(|name| is_cluster(name)).unwrap_or(INVALID_CLUSTER)
}

fn index_of(names: &mut Vec<Arc<str>>, name: &str) -> u32 {
    let index = names.iter().position(|known| &**known == name).unwrap_or_else(|| {
        names.push(name.into());
        names.len() - 1
    });
    index as u32
}

/// A dictionary column of text.
struct Labels<'a> {
    keys: &'a UInt32Array,
    values: &'a StringArray,
}

impl<'a> Labels<'a> {
    fn of(column: &'a ArrayRef) -> Result<Self, String> {
        let dictionary =
            column.as_dictionary_opt::<UInt32Type>().ok_or("a text column is not a dictionary")?;
        let values = dictionary.values().as_string_opt::<i32>().ok_or("a dictionary is not of text")?;
        Ok(Self { keys: dictionary.keys(), values })
    }

    fn key(&self, row: usize) -> Option<usize> {
        self.keys.is_valid(row).then(|| self.keys.value(row) as usize)
    }

    fn text(&self, row: usize) -> Option<&'a str> {
        self.key(row).map(|key| self.values.value(key))
    }

    fn values(&self) -> impl Iterator<Item = Option<&'a str>> {
        self.values.iter()
    }
}

fn min_max(times: impl Iterator<Item = i64>) -> (i64, i64) {
    times.fold((i64::MAX, i64::MIN), |(min, max), time| (min.min(time), max.max(time)))
}

fn hour_of(time_us: i64) -> i64 {
    time_us.clamp(*YEARS_US.start(), *YEARS_US.end()).div_euclid(HOUR_US)
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// Year, month and day of a number of days since the Unix epoch, in the proleptic Gregorian calendar.
pub(super) fn civil_date(days: i64) -> (i64, i64, i64) {
    // Eras of 400 years of 146,097 days, years that begin in March.
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

/// The inverse of [`civil_date`]; `None` for a date that is none.
fn days_from_civil(year: i64, month: i64, day: i64) -> Option<i64> {
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let year_from_march = year - i64::from(month <= 2);
    let (era, year_of_era) = (year_from_march.div_euclid(400), year_from_march.rem_euclid(400));
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let days =
        era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468;
    (civil_date(days) == (year, month, day)).then_some(days)
}

const HOUR_US: i64 = 3_600_000_000;
/// From the year 0 to the end of 9999.
const YEARS_US: std::ops::RangeInclusive<i64> = -62_167_219_200_000_000..=253_402_300_799_999_999;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_the_calendars() {
        for (days, date) in
            [(0, (1970, 1, 1)), (-1, (1969, 12, 31)), (19_782, (2024, 2, 29)), (20_089, (2025, 1, 1))]
        {
            assert_eq!(civil_date(days), date);
            assert_eq!(days_from_civil(date.0, date.1, date.2), Some(days));
        }
        assert_eq!(days_from_civil(2023, 2, 29), None);
        let edges = [*YEARS_US.start(), *YEARS_US.end()].map(|us| civil_date(us.div_euclid(HOUR_US * 24)));
        assert_eq!(edges, [(0, 1, 1), (9999, 12, 31)]);
    }

    #[test]
    fn folders_are_read_back_and_nothing_else_is() {
        let key = PartitionKey { kind: Kind::Flow, cluster: "prod-1.eu".into(), hour: 20_089 * 24 + 7 };
        assert_eq!(key.to_string(), "kind=flow/cluster=prod-1.eu/date=2025-01-01/hour=07");
        assert_eq!(PartitionKey::parse(&key.to_string()), Some(key));
        for wrong in [
            "kind=flow/cluster=a/date=2025-01-01/hour=7",
            "kind=flow/cluster=a/date=2025-01-01/hour=24",
            "kind=flow/cluster=a/date=2025-02-30/hour=01",
            "kind=flow/cluster=../date=2025-01-01/hour=01/..",
            "kind=flow/cluster=A/date=2025-01-01/hour=01",
            "kind=x/cluster=a/date=2025-01-01/hour=01",
            "",
        ] {
            assert_eq!(PartitionKey::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn times_that_are_not_believed_go_to_the_receive_hour() {
        let hour = 3_600_000_000_i64;
        let received = 500_000 * hour;
        let rule = TimeRule { append_time_ns: received * 1000, oldest: Some(Duration::from_hours(24)) };
        let at = |offset: i64, quality| rule.hour(received + offset, quality);
        assert_eq!(at(-1, Some("ok")), 499_999);
        assert_eq!(at(-24 * hour, Some("ok")), 499_976);
        assert_eq!(at(-24 * hour - 1, Some("ok")), 500_000);
        assert_eq!(at(600_000_000, None), 500_000);
        assert_eq!(at(2 * hour, None), 500_000);
        assert_eq!(at(2 * hour, Some("replayed")), 500_002);
        assert_eq!(at(-hour, Some("skewed")), 500_000);
        assert_eq!(rule.hour(i64::MAX, Some("replayed")), 500_000);
    }
}
