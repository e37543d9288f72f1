//! Puts columns together in the catalogue's order, by name: a column that is missing, out of its place or of another
//! type is an error, which the tests of this module's callers would see.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanArray, FixedSizeBinaryArray, RecordBatch, TimestampMicrosecondArray, UInt8Array,
    UInt16Array, UInt32Array, UInt64Array, new_null_array,
};
use arrow::error::ArrowError;
use weir_schema::Kind;

/// Collects the columns of one batch.
pub(super) struct Assembler {
    kind: Kind,
    rows: usize,
    columns: Vec<ArrayRef>,
    misplaced: Option<String>,
}

impl Assembler {
    pub(super) fn new(kind: Kind, rows: usize) -> Self {
        Self { kind, rows, columns: Vec::with_capacity(kind.fields().len()), misplaced: None }
    }

    /// The next column, which must be `name` in the catalogue.
    pub(super) fn add(&mut self, name: &str, column: impl Array + 'static) -> &mut Self {
        self.add_ref(name, Arc::new(column))
    }

    pub(super) fn add_ref(&mut self, name: &str, column: ArrayRef) -> &mut Self {
        let expected = self.kind.fields().get(self.columns.len()).map_or("nothing", |field| field.name);
        if expected != name && self.misplaced.is_none() {
            self.misplaced = Some(format!("column {name} stands where the catalogue has {expected}"));
        }
        self.columns.push(column);
        self
    }

    /// The next columns, which nothing fills yet.
    pub(super) fn add_nulls(&mut self, names: &[&str]) -> &mut Self {
        let schema = self.kind.arrow_schema();
        for name in names {
            if let Ok(field) = schema.field_with_name(name) {
                self.add_ref(name, new_null_array(field.data_type(), self.rows));
            } else {
                self.misplaced = Some(format!("column {name} is not in the catalogue"));
            }
        }
        self
    }

    pub(super) fn finish(self) -> Result<RecordBatch, ArrowError> {
        match self.misplaced {
            Some(message) => Err(ArrowError::SchemaError(message)),
            None => RecordBatch::try_new(self.kind.arrow_schema(), self.columns),
        }
    }
}

/// 16 bytes a row.
pub(super) fn uuids(bytes: Vec<u8>) -> Result<FixedSizeBinaryArray, ArrowError> {
    FixedSizeBinaryArray::try_new(16, bytes.into(), None)
}

/// Microseconds since the epoch, from nanoseconds, rounded down.
pub(super) fn times(nanoseconds: impl IntoIterator<Item = i64>) -> TimestampMicrosecondArray {
    let micros = nanoseconds.into_iter().map(|ns| ns.div_euclid(1000));
    TimestampMicrosecondArray::from_iter_values(micros).with_timezone("UTC")
}

pub(super) fn bools(values: Vec<bool>) -> BooleanArray {
    BooleanArray::from(values)
}

/// The checks of ingest keep values in range; `as` would hide a mistake, so what is out of range becomes the maximum.
pub(super) fn u8s(values: impl IntoIterator<Item = u32>) -> UInt8Array {
    UInt8Array::from_iter_values(values.into_iter().map(|value| u8::try_from(value).unwrap_or(u8::MAX)))
}

pub(super) fn u16s(values: impl IntoIterator<Item = u32>) -> UInt16Array {
    UInt16Array::from_iter_values(values.into_iter().map(|value| u16::try_from(value).unwrap_or(u16::MAX)))
}

/// 0 is null.
pub(super) fn u16s_or_null(values: impl IntoIterator<Item = u32>) -> UInt16Array {
    let values = values.into_iter().map(|value| u16::try_from(value).ok().filter(|value| *value != 0));
    values.collect()
}

/// 0 is null.
pub(super) fn u32s_or_null(values: impl IntoIterator<Item = u32>) -> UInt32Array {
    values.into_iter().map(|value| Some(value).filter(|value| *value != 0)).collect()
}

/// The wire's value + 1; 0 is null.
pub(super) fn u32s_shifted(values: impl IntoIterator<Item = u32>) -> UInt32Array {
    values.into_iter().map(|value| value.checked_sub(1)).collect()
}

/// The wire's value + 1 in 64 bits, since the value takes all of 32; 0 is null.
pub(super) fn wide_u32s_shifted(values: impl IntoIterator<Item = u64>) -> UInt32Array {
    let value = |value: u64| value.checked_sub(1).map(|value| u32::try_from(value).unwrap_or(u32::MAX));
    values.into_iter().map(value).collect()
}

pub(super) fn u64s(values: Vec<u64>) -> UInt64Array {
    UInt64Array::from(values)
}
