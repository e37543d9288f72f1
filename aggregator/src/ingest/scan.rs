//! A look over an encoded `BatchBody` before it is decoded, which bounds what decoding may allocate.
//!
//! Protobuf can expand: an empty repeated message takes 2 bytes on the wire and over 200 in memory. So elements are
//! counted here, without allocating, and too many of them are refused. What the values mean is `check.rs`'s.

use super::error::BatchError;
use super::limits::Limits;

/// Refuses a body whose tables or rows are over the limits, or that has fields which this version does not know.
pub(super) fn scan(body: &[u8], limits: &Limits) -> Result<(), BatchError> {
    let mut rows = 0_u64;
    let mut flows_seen = false;
    for field in Fields(body) {
        let (tag, wire) = field?;
        match (tag, wire) {
            (1, Wire::Bytes(flows)) => {
                if std::mem::replace(&mut flows_seen, true) {
                    return Err(BatchError::Malformed { what: "flows stand twice" });
                }
                rows += scan_flows(flows, limits)?;
            }
            (2, Wire::Bytes(event)) => rows += scan_row(event, 11, "dns.answers", ANSWERS_MAX)?,
            (3, Wire::Bytes(event)) => rows += scan_row(event, 13, "anomalies.evidence", EVIDENCE_MAX)?,
            (4, Wire::Bytes(_)) => rows += 1,
            _ => return Err(BatchError::UnknownField { message: "BatchBody", tag }),
        }
        at_most("rows", rows, limits.rows_max)?;
    }
    Ok(())
}

fn scan_flows(flows: &[u8], limits: &Limits) -> Result<u64, BatchError> {
    let mut counts = [0_u64; COLUMN_TAG_MAX + 1];
    let (mut rows, mut strings, mut addresses) = (0, 0_u64, 0_u64);
    for field in Fields(flows) {
        match field? {
            (1, Wire::Varint(stated)) => rows = stated,
            (2, Wire::Bytes(text)) => {
                strings += 1;
                at_most("flows.strings (bytes of one)", text.len() as u64, limits.string_bytes_max)?;
            }
            (3, Wire::Bytes(bytes)) => addresses = bytes.len() as u64 / 16,
            (4, Wire::Varint(_)) => {}
            (tag, wire) => {
                let count = counts
                    .get_mut(tag as usize)
                    .filter(|_| tag >= COLUMN_TAG_MIN)
                    .ok_or(BatchError::UnknownField { message: "FlowColumns", tag })?;
                *count += match wire {
                    Wire::Varint(_) | Wire::Fixed => 1,
                    // Fixed columns are two of 8 bytes an element; counted as varints they can only seem longer.
                    Wire::Bytes(packed) if tag <= FIXED_TAG_MAX => packed.len() as u64 / 8,
                    Wire::Bytes(packed) => packed.iter().filter(|byte| **byte < 0x80).count() as u64,
                };
                at_most("elements of a column", *count, limits.rows_max)?;
            }
        }
    }
    at_most("flows.rows", rows, limits.rows_max)?;
    at_most("flows.strings", strings, rows * STRINGS_PER_ROW + 1)?;
    at_most("flows.addresses", addresses, rows * ADDRESSES_PER_ROW + 1)?;
    Ok(rows)
}

/// One row-wise event, whose repeated field `tag` may have `max` elements.
fn scan_row(event: &[u8], tag: u32, name: &'static str, max: u64) -> Result<u64, BatchError> {
    let mut elements = 0;
    for field in Fields(event) {
        if field?.0 == tag {
            elements += 1;
            at_most(name, elements, max)?;
        }
    }
    Ok(1)
}

fn at_most(what: &'static str, value: u64, max: u64) -> Result<(), BatchError> {
    if value > max { Err(BatchError::TooMany { what, value, max }) } else { Ok(()) }
}

/// The fields of an encoded message (protobuf encoding, "Message Structure"). Ends after the first error.
struct Fields<'a>(&'a [u8]);

enum Wire<'a> {
    Varint(u64),
    Fixed,
    Bytes(&'a [u8]),
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<(u32, Wire<'a>)> {
        let key = self.varint()?;
        let tag = u32::try_from(key >> 3).ok().filter(|tag| *tag != 0)?;
        let wire = match key & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => self.take(8).map(|_| Wire::Fixed)?,
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Wire::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Wire::Fixed)?,
            _ => return None,
        };
        Some((tag, wire))
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if *byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Wire<'a>), BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field.ok_or(BatchError::Malformed { what: "the body is no protobuf message" }))
    }
}

const COLUMN_TAG_MIN: u32 = 10;
const COLUMN_TAG_MAX: usize = 63;
/// `flow_id_high` and `flow_id_low` are fixed64.
const FIXED_TAG_MAX: u32 = 11;
/// process, cgroup, container and pod, one to spare; each row refers to so many texts at most.
const STRINGS_PER_ROW: u64 = 5;
/// src, dst and both of a translation.
const ADDRESSES_PER_ROW: u64 = 4;
/// Answers of one DNS exchange; what a 64 KiB message could hold is far more, and no name server sends it.
const ANSWERS_MAX: u64 = 256;
/// The catalogue's bound on `evidence`.
const EVIDENCE_MAX: u64 = 20;
