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
            (2, Wire::Bytes(event)) => rows += DNS.scan(event)?,
            (3, Wire::Bytes(event)) => rows += ANOMALY.scan(event)?,
            (4, Wire::Bytes(event)) => rows += LOSS.scan(event)?,
            _ => return Err(BatchError::UnknownField { message: "BatchBody", tag }),
        }
        at_most("rows", rows, limits.rows_max)?;
    }
    Ok(())
}

fn scan_flows(flows: &[u8], limits: &Limits) -> Result<u64, BatchError> {
    let mut counts = [0_u64; 64];
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
                    .filter(|_| COLUMN_TAGS.iter().any(|tags| tags.contains(&tag)))
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

/// A message that is one row.
struct RowMessage {
    name: &'static str,
    /// Its fields are numbered 1 to this.
    tag_max: u32,
    /// Its repeated field and how many elements that may have; 0 for none.
    repeated: (u32, &'static str, u64),
}

const DNS: RowMessage =
    RowMessage { name: "DnsEvent", tag_max: 21, repeated: (11, "dns.answers", ANSWERS_MAX) };
const ANOMALY: RowMessage =
    RowMessage { name: "AnomalyEvent", tag_max: 14, repeated: (13, "anomalies.evidence", EVIDENCE_MAX) };
const LOSS: RowMessage = RowMessage { name: "LossEvent", tag_max: 6, repeated: (0, "", 0) };

impl RowMessage {
    fn scan(&self, event: &[u8]) -> Result<u64, BatchError> {
        let (repeated, what, max) = self.repeated;
        let mut elements = 0;
        for field in Fields(event) {
            let (tag, _) = field?;
            if tag > self.tag_max {
                return Err(BatchError::UnknownField { message: self.name, tag });
            }
            if tag == repeated {
                elements += 1;
                at_most(what, elements, max)?;
            }
        }
        Ok(1)
    }
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

/// The columns of `FlowColumns`; what lies between is not given out.
const COLUMN_TAGS: [std::ops::RangeInclusive<u32>; 3] = [10..=46, 50..=54, 60..=63];
/// `flow_id_high` and `flow_id_low` are fixed64.
const FIXED_TAG_MAX: u32 = 11;
/// process, cgroup, container, pod and interface; each row refers to so many texts at most.
const STRINGS_PER_ROW: u64 = 5;
/// src, dst, both of a translation and both of a tunnel.
const ADDRESSES_PER_ROW: u64 = 6;
/// Answers of one DNS exchange; what a 64 KiB message could hold is far more, and no name server sends it.
const ANSWERS_MAX: u64 = 256;
/// The catalogue's bound on `evidence`.
const EVIDENCE_MAX: u64 = 20;

#[cfg(test)]
mod tests {
    use prost::Message;
    use weir_proto::v1::BatchBody;

    use super::*;

    /// A body whose message `kind` holds nothing but the field `tag` as a varint 1.
    fn with_field(kind: u8, tag: u32) -> Vec<u8> {
        let key = tag << 3;
        let field =
            [if key < 0x80 { vec![key as u8] } else { vec![key as u8 | 0x80, (key >> 7) as u8] }, vec![1]];
        let field = field.concat();
        [vec![kind << 3 | 2, field.len() as u8], field].concat()
    }

    #[test]
    fn fields_that_are_not_known_are_refused() {
        let unknown: [(u8, &str, &[u32]); 4] = [
            (1, "FlowColumns", &[5, 9, 47, 49, 55, 59, 64, 200]),
            (2, "DnsEvent", &[22, 200]),
            (3, "AnomalyEvent", &[15, 200]),
            (4, "LossEvent", &[7, 200]),
        ];
        for (kind, name, tags) in unknown {
            for tag in tags {
                let body = with_field(kind, *tag);
                BatchBody::decode(body.as_slice()).expect("protobuf itself skips it");
                let found = scan(&body, &Limits::default());
                let refused = matches!(found, Err(BatchError::UnknownField { message, tag: found })
                    if message == name && found == *tag);
                assert!(refused, "{name} {tag}: {found:?}");
            }
        }
        for (kind, tag) in [(1, 10), (1, 46), (1, 50), (1, 54), (1, 60), (1, 63), (2, 21), (3, 14), (4, 6)] {
            scan(&with_field(kind, tag), &Limits::default()).expect("a field of the wire format");
        }
    }
}
