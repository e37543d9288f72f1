//! One event as canonical JSON: the catalogue's names in its order, null left out, times in RFC 3339 with microseconds,
//! UUIDs as their usual text.

use arrow::array::cast::AsArray;
use arrow::array::{Array, RecordBatch};
use arrow::datatypes::{
    Float64Type, TimestampMicrosecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use serde_json::Value;
use weir_common::id::uuid_text;
use weir_schema::{Field, Kind, Type};

/// The event in row `row` of a batch with the kind's columns.
pub fn event_json(kind: Kind, batch: &RecordBatch, row: usize) -> String {
    let mut out = String::with_capacity(1024);
    out.push('{');
    for (field, column) in kind.fields().iter().zip(batch.columns()) {
        let Some(value) = json_value(field, column.as_ref(), row) else { continue };
        if out.len() > 1 {
            out.push(',');
        }
        // Names are plain ASCII by a test of the catalogue.
        out.push('"');
        out.push_str(field.name);
        out.push_str("\":");
        out.push_str(&value.to_string());
    }
    out.push('}');
    out
}

fn json_value(field: &Field, column: &dyn Array, row: usize) -> Option<Value> {
    if column.is_null(row) {
        return None;
    }
    Some(match field.ty {
        Type::Uuid => uuid(column.as_fixed_size_binary_opt()?.value(row)),
        Type::Text | Type::Ip => {
            let dictionary = column.as_dictionary_opt::<UInt32Type>()?;
            let values = dictionary.values().as_string_opt::<i32>()?;
            values.value(dictionary.key(row)?).into()
        }
        Type::Time => rfc3339(column.as_primitive_opt::<TimestampMicrosecondType>()?.value(row)).into(),
        Type::U8 => column.as_primitive_opt::<UInt8Type>()?.value(row).into(),
        Type::U16 => column.as_primitive_opt::<UInt16Type>()?.value(row).into(),
        Type::U32 => column.as_primitive_opt::<UInt32Type>()?.value(row).into(),
        Type::U64 => column.as_primitive_opt::<UInt64Type>()?.value(row).into(),
        Type::Bool => column.as_boolean_opt()?.value(row).into(),
        // JSON has no NaN and no infinity; they come out as null.
        Type::F64 => column.as_primitive_opt::<Float64Type>()?.value(row).into(),
        Type::TextList => {
            let items = column.as_list_opt::<i32>()?.value(row);
            let items = items.as_string_opt::<i32>()?;
            Value::Array(items.iter().flatten().map(Value::from).collect())
        }
        Type::UuidList => {
            let items = column.as_list_opt::<i32>()?.value(row);
            let items = items.as_fixed_size_binary_opt()?;
            Value::Array(items.iter().flatten().map(uuid).collect())
        }
    })
}

fn uuid(bytes: &[u8]) -> Value {
    <[u8; 16]>::try_from(bytes).map_or(Value::Null, |id| uuid_text(&id).into())
}

/// A time in microseconds since the epoch as `YYYY-MM-DDThh:mm:ss.ffffffZ` (RFC 3339), any year that 64 bits reach.
pub(crate) fn rfc3339(micros: i64) -> String {
    let (seconds, fraction) = (micros.div_euclid(1_000_000), micros.rem_euclid(1_000_000));
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{fraction:06}Z")
}

/// Year, month and day of a day since 1970-01-01 in the proleptic Gregorian calendar (Howard Hinnant, "chrono-Compatible
/// Low-Level Date Algorithms", `civil_from_days`).
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(rfc3339(-1), "1969-12-31T23:59:59.999999Z");
        assert_eq!(rfc3339(951_827_696_000_123), "2000-02-29T12:34:56.000123Z");
        assert_eq!(rfc3339(1_795_270_440_500_000), "2026-11-21T14:14:00.500000Z");
        assert!(rfc3339(i64::MAX).starts_with("+294247").then_some(()).is_none());
    }
}
