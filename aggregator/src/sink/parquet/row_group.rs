//! One row group: texts by `text_column`, everything else by the `parquet` crate's writers. `file` calls this.

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::UInt32Type;
use parquet::arrow::arrow_writer::{ArrowRowGroupWriterFactory, compute_leaves};
use parquet::errors::ParquetError;
use parquet::file::writer::SerializedFileWriter;
use std::io::Write;

use super::properties::is_looked_up;
use super::text_column::TextEncoder;

/// Writes a sorted batch as the next row group. Columns are written one by one, so that only one is in memory encoded.
pub(super) fn write_row_group<W: Write + Send>(
    file: &mut SerializedFileWriter<W>,
    columns: &ArrowRowGroupWriterFactory,
    texts: &mut TextEncoder,
    batch: &RecordBatch,
) -> Result<(), ParquetError> {
    let mut writers = columns.create_column_writers(file.flushed_row_groups().len())?.into_iter();
    let descriptions = file.schema_descr().columns().to_vec();
    let mut descriptions = descriptions.iter();
    let mut group = file.next_row_group()?;
    let missing = || ParquetError::General("the schema has fewer columns than the batch".to_owned());
    for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        if let Some(column) = column.as_dictionary_opt::<UInt32Type>() {
            // The crate's writer for it stays unused.
            writers.next().ok_or_else(missing)?;
            let description = descriptions.next().ok_or_else(missing)?;
            let chunk = texts.encode(description, column, is_looked_up(field.name()))?;
            group.append_column(&chunk.bytes, chunk.close)?;
            continue;
        }
        for leaf in compute_leaves(field, column)? {
            let mut writer = writers.next().ok_or_else(missing)?;
            descriptions.next().ok_or_else(missing)?;
            writer.write(&leaf)?;
            writer.close()?.append_to_row_group(&mut group)?;
        }
    }
    group.close()?;
    Ok(())
}
