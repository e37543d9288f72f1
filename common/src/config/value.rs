//! One value: from YAML to what the program uses.

use std::time::Duration;

use serde_json::Value as Json;

use super::ValueKind;

/// A checked value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Parsed {
    Bool(bool),
    U64(u64),
    Duration(Duration),
    Text(String),
    Structure(Json),
}

impl Parsed {
    /// The value, or what was expected.
    pub(super) fn from_json(kind: ValueKind, json: &Json) -> Result<Self, String> {
        match kind {
            ValueKind::Bool => json.as_bool().map(Self::Bool).ok_or_else(|| "true or false".to_owned()),
            ValueKind::U64 { min, max } => in_range(json.as_u64(), min, max)
                .map(Self::U64)
                .ok_or_else(|| format!("a whole number from {min} to {max}")),
            ValueKind::Bytes { min, max } => {
                let bytes = json.as_u64().or_else(|| json.as_str().and_then(|text| scaled(text, SIZES)));
                let (low, high) = (size_text(min), size_text(max));
                in_range(bytes, min, max)
                    .map(Self::U64)
                    .ok_or_else(|| format!("a size from {low} to {high}, such as 64MiB"))
            }
            ValueKind::Duration { min_ms, max_ms } => {
                let span = json.as_str().and_then(|text| scaled(text, SPANS));
                let (low, high) = (span_text(min_ms), span_text(max_ms));
                in_range(span, min_ms, max_ms)
                    .map(|ms| Self::Duration(Duration::from_millis(ms)))
                    .ok_or_else(|| format!("a time span from {low} to {high}, such as 10s"))
            }
            ValueKind::Text => match json {
                Json::String(text) => Ok(Self::Text(text.clone())),
                Json::Number(number) => Ok(Self::Text(number.to_string())),
                _ => Err("a text".to_owned()),
            },
            ValueKind::Choice(choices) => match json.as_str() {
                Some(text) if choices.contains(&text) => Ok(Self::Text(text.to_owned())),
                _ => Err(format!("one of {}", choices.join(", "))),
            },
            ValueKind::Structure(form) => {
                if json.is_array() || json.is_object() {
                    Ok(Self::Structure(json.clone()))
                } else {
                    Err(form.to_owned())
                }
            }
        }
    }
}

fn in_range(value: Option<u64>, min: u64, max: u64) -> Option<u64> {
    value.filter(|value| (min..=max).contains(value))
}

/// Bytes by unit; the longer names first, so that `MiB` is not read as `B`.
const SIZES: &[(&str, u64)] =
    &[("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40), ("B", 1)];
/// Milliseconds by unit.
const SPANS: &[(&str, u64)] = &[("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (unit, scale) = units.iter().find(|(unit, _)| text.ends_with(unit))?;
    let number: u64 = text.strip_suffix(unit)?.trim_end().parse().ok()?;
    number.checked_mul(*scale)
}

pub(super) fn size_text(bytes: u64) -> String {
    let unit = SIZES[..4].iter().rev().find(|(_, scale)| bytes != 0 && bytes.is_multiple_of(*scale));
    unit.map_or_else(|| format!("{bytes}B"), |(unit, scale)| format!("{}{unit}", bytes / scale))
}

pub(super) fn span_text(ms: u64) -> String {
    let unit = SPANS.iter().rev().find(|(_, scale)| ms != 0 && ms.is_multiple_of(*scale));
    unit.map_or_else(|| format!("{ms}ms"), |(unit, scale)| format!("{}{unit}", ms / scale))
}
