//! The order of rows within a row group: the kind's sort fields, then the order of arrival.
//!
//! Texts are dictionaries, so each distinct text is compared once and rows are sorted by numbers.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanBufferBuilder, DictionaryArray, RecordBatch, UInt32Array, new_null_array,
};
use arrow::buffer::NullBuffer;
use arrow::compute::{concat, take_record_batch};
use arrow::datatypes::{TimestampMicrosecondType, UInt32Type};
use arrow::error::ArrowError;
use weir_schema::Kind;

/// Joins conforming batches. Dictionaries are put one after the other as they are, with texts that stand in several:
/// merging them would look every text up, which the encoder does again.
pub(super) fn join(kind: Kind, batches: &[RecordBatch]) -> Result<RecordBatch, ArrowError> {
    let schema = kind.arrow_schema();
    let columns = (0..schema.fields().len()).map(|at| {
        let parts: Vec<&dyn Array> = batches.iter().map(|batch| batch.column(at).as_ref()).collect();
        let dictionaries: Option<Vec<&DictionaryArray<UInt32Type>>> =
            parts.iter().map(|part| part.as_dictionary_opt::<UInt32Type>()).collect();
        dictionaries.map_or_else(|| concat(&parts), |parts| join_dictionaries(&parts))
    });
    let columns = columns.collect::<Result<Vec<_>, _>>()?;
    RecordBatch::try_new(schema, columns)
}

fn join_dictionaries(parts: &[&DictionaryArray<UInt32Type>]) -> Result<ArrayRef, ArrowError> {
    if let Some(first) = parts.first().filter(|_| parts.iter().all(|part| part.null_count() == part.len())) {
        let rows = parts.iter().copied().map(Array::len).sum();
        return Ok(new_null_array(first.data_type(), rows));
    }
    let values: Vec<&dyn Array> = parts.iter().map(|part| part.values().as_ref()).collect();
    let mut keys = Vec::with_capacity(parts.iter().copied().map(Array::len).sum());
    let mut offset = 0;
    for part in parts {
        // What stands in the place of a null is no key: it must not become one beyond the end.
        match part.nulls().filter(|nulls| nulls.null_count() > 0) {
            None => keys.extend(part.keys().values().iter().map(|key| key + offset)),
            Some(nulls) => {
                let shifted = part.keys().values().iter().zip(nulls);
                keys.extend(shifted.map(|(key, there)| if there { key + offset } else { 0 }));
            }
        }
        offset += u32::try_from(part.values().len())
            .map_err(|_| ArrowError::InvalidArgumentError("more than 2^32 texts".to_owned()))?;
    }
    let nulls = parts.iter().any(|part| part.null_count() > 0).then(|| {
        let mut there = BooleanBufferBuilder::new(keys.len());
        for part in parts {
            match part.nulls() {
                Some(nulls) => there.append_buffer(nulls.inner()),
                None => there.append_n(part.len(), true),
            }
        }
        NullBuffer::new(there.finish())
    });
    let keys = UInt32Array::try_new(keys.into(), nulls)?;
    Ok(Arc::new(DictionaryArray::try_new(keys, concat(&values)?)?))
}

/// Sorts a conforming batch; nulls come first.
pub(super) fn sort(kind: Kind, batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let rows = u32::try_from(batch.num_rows())
        .map_err(|_| ArrowError::InvalidArgumentError("more than 2^32 rows".to_owned()))?;
    // At most two texts and a time: the texts' ranks share one word.
    let mut order: Vec<(u64, i64, u32)> = (0..rows).map(|row| (0, 0, row)).collect();
    for name in kind.sort_fields() {
        let Some(column) = batch.column_by_name(name) else { continue };
        if let Some(times) = column.as_primitive_opt::<TimestampMicrosecondType>() {
            for (entry, time) in order.iter_mut().zip(times.values()) {
                entry.1 = *time;
            }
        } else if let Some(ranks) = ranks(column) {
            for (entry, rank) in order.iter_mut().zip(ranks) {
                entry.0 = entry.0 << 32 | u64::from(rank);
            }
        }
    }
    if order.is_sorted() {
        return Ok(batch.clone());
    }
    order.sort_unstable();
    let indices = UInt32Array::from_iter_values(order.into_iter().map(|(_, _, row)| row));
    take_record_batch(batch, &indices)
}

/// For each row the rank of its text among the distinct texts, from 1; 0 for null.
fn ranks(column: &ArrayRef) -> Option<impl Iterator<Item = u32>> {
    let dictionary = column.as_dictionary_opt::<UInt32Type>()?;
    let values = dictionary.values().as_string_opt::<i32>()?;
    let mut by_text: Vec<usize> = (0..values.len()).collect();
    by_text.sort_unstable_by_key(|value| values.value(*value));
    let mut rank_of = vec![0; values.len()];
    let mut rank = 0;
    let mut previous = None;
    for value in by_text {
        let text = values.value(value);
        if previous != Some(text) {
            rank += 1;
            previous = Some(text);
        }
        rank_of[value] = rank;
    }
    Some(dictionary.keys().iter().map(move |key| key.map_or(0, |key| rank_of[key as usize])))
}
