//! Text columns of a row group, from Arrow dictionaries to Parquet's without hashing rows.
//!
//! The `parquet` crate looks every row's text up in a table of its own, which was the largest part of the sink's CPU time.
//! Here each entry of an Arrow dictionary is looked up once and rows copy numbers. One dictionary page and one data page (version 2) per
//! column and row group; where most texts are distinct the data page holds them plainly. `row_group` calls this.

use std::collections::HashMap;

use arrow::array::{Array, AsArray, DictionaryArray, StringArray};
use arrow::datatypes::UInt32Type;
use foldhash::fast::RandomState;
use parquet::basic::{Compression, Encoding, PageType, ZstdLevel};
use parquet::bloom_filter::Sbbf;
use parquet::column::page::{CompressedPage, Page, PageWriter};
use parquet::column::writer::ColumnCloseResult;
use parquet::data_type::ByteArray;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, PageEncodingStats};
use parquet::file::statistics::Statistics;
use parquet::file::writer::{SerializedPageWriter, TrackedWrite};
use parquet::schema::types::ColumnDescPtr;
use zstd::bulk::Compressor;

/// Encodes text columns; keeps what can be used again.
pub(super) struct TextEncoder {
    compressor: Compressor<'static>,
    /// For each value of the Arrow dictionary its number in the page's, or [`UNPLACED`].
    places: Vec<u32>,
    /// Number in the page's dictionary of each row that is not null.
    indices: Vec<u32>,
}

/// A column chunk, ready to be appended to a row group.
pub(super) struct Chunk {
    /// Its pages.
    pub bytes: bytes::Bytes,
    /// What the footer says of it.
    pub close: ColumnCloseResult,
}

/// What the pages of one column add up to.
#[derive(Default)]
struct Sizes {
    written: u64,
    compressed: i64,
    uncompressed: i64,
}

impl TextEncoder {
    pub(super) fn new() -> Result<Self, ParquetError> {
        let compressor = Compressor::new(LEVEL).map_err(external)?;
        Ok(Self { compressor, places: Vec::new(), indices: Vec::new() })
    }

    /// Encodes a column; with a Bloom filter of its texts where these are looked up one by one.
    pub(super) fn encode(
        &mut self,
        descr: &ColumnDescPtr,
        column: &DictionaryArray<UInt32Type>,
        looked_up: bool,
    ) -> Result<Chunk, ParquetError> {
        let values = column.values().as_string_opt::<i32>();
        let values =
            values.ok_or_else(|| ParquetError::General("a dictionary that is not of texts".to_owned()))?;
        let (rows, nulls) = (column.len(), column.null_count());
        // Of more texts a dictionary would be larger than what it saves.
        let (texts, plain) = match self.number(column, values) {
            Some(texts) => (texts, false),
            None => (every(column, values), true),
        };

        let mut sink = TrackedWrite::new(Vec::with_capacity(rows / 2 + 1024));
        let mut sizes = Sizes::default();
        let mut pages = SerializedPageWriter::new(&mut sink);
        let dictionary = (!plain).then_some(sizes.written);
        if !plain {
            let page = self.dictionary(&texts)?;
            add(&mut pages, page, &mut sizes)?;
        }
        let data_offset = sizes.written;
        let mut levels = Vec::new();
        if descr.max_def_level() > 0 {
            put_levels(column, &mut levels);
        }
        let page = self.data(&texts, levels, rows, nulls, plain)?;
        add(&mut pages, page, &mut sizes)?;
        pages.close()?;

        let encoding = if plain { Encoding::PLAIN } else { Encoding::RLE_DICTIONARY };
        let mut stats = vec![PageEncodingStats { page_type: PageType::DATA_PAGE_V2, encoding, count: 1 }];
        if !plain {
            let (page_type, encoding) = (PageType::DICTIONARY_PAGE, Encoding::PLAIN);
            stats.push(PageEncodingStats { page_type, encoding, count: 1 });
        }
        let metadata = ColumnChunkMetaData::builder(descr.clone())
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(LEVEL)?))
            .set_encodings(if plain {
                vec![Encoding::PLAIN, Encoding::RLE]
            } else {
                vec![Encoding::PLAIN, Encoding::RLE, Encoding::RLE_DICTIONARY]
            })
            .set_page_encoding_stats(stats)
            .set_total_compressed_size(sizes.compressed)
            .set_total_uncompressed_size(sizes.uncompressed)
            .set_num_values(rows as i64)
            .set_data_page_offset(data_offset as i64)
            .set_dictionary_page_offset(dictionary.map(|offset| offset as i64))
            .set_statistics(statistics(&texts, nulls))
            .build()?;
        let bloom_filter = if looked_up && !texts.is_empty() {
            let mut filter = Sbbf::new_with_ndv_fpp(texts.len() as u64, BLOOM_FALSE_POSITIVES)?;
            texts.iter().for_each(|text| filter.insert(*text));
            Some(filter)
        } else {
            None
        };
        let close = ColumnCloseResult {
            bytes_written: sizes.written,
            rows_written: rows as u64,
            metadata,
            bloom_filter,
            column_index: None,
            offset_index: None,
        };
        Ok(Chunk { bytes: sink.into_inner()?.into(), close })
    }

    /// Numbers the texts of a column in the order of their first row, and each row by its text; `None` when most texts
    /// are distinct, as the first [`SAMPLE_ROWS`] tell, or all.
    fn number<'a>(
        &mut self,
        column: &DictionaryArray<UInt32Type>,
        values: &'a StringArray,
    ) -> Option<Vec<&'a str>> {
        let Self { compressor: _, places, indices } = self;
        places.clear();
        places.resize(values.len(), UNPLACED);
        indices.clear();
        let mut texts = Vec::new();
        // Batches that were joined may bring a text more than once.
        let mut known: HashMap<&str, u32, RandomState> = HashMap::default();
        let keys = column.keys();
        for key in keys.iter().flatten() {
            let place = &mut places[key as usize];
            if *place == UNPLACED {
                let text = values.value(key as usize);
                *place = *known.entry(text).or_insert_with(|| {
                    texts.push(text);
                    texts.len() as u32 - 1
                });
            }
            indices.push(*place);
            if indices.len() == SAMPLE_ROWS && texts.len() > SAMPLE_ROWS / 8 * 7 {
                return None;
            }
        }
        let distinct = texts.len() > PLAIN_MIN && texts.len() > indices.len() / 2;
        (!distinct).then_some(texts)
    }

    fn dictionary(&mut self, texts: &[&str]) -> Result<CompressedPage, ParquetError> {
        let mut page = Vec::with_capacity(texts.iter().map(|text| 4 + text.len()).sum());
        texts.iter().for_each(|text| put_plain(text, &mut page));
        let uncompressed = page.len();
        let buf = self.compressor.compress(&page).map_err(external)?.into();
        let num_values = texts.len() as u32;
        let page = Page::DictionaryPage { buf, num_values, encoding: Encoding::PLAIN, is_sorted: false };
        Ok(CompressedPage::new(page, uncompressed))
    }

    fn data(
        &mut self,
        texts: &[&str],
        levels: Vec<u8>,
        rows: usize,
        nulls: usize,
        plain: bool,
    ) -> Result<CompressedPage, ParquetError> {
        let mut page = levels;
        let levels_bytes = page.len();
        let mut body = Vec::with_capacity(rows * 2);
        if plain {
            texts.iter().for_each(|text| put_plain(text, &mut body));
        } else {
            let width = u32::BITS - (texts.len().saturating_sub(1) as u32).leading_zeros();
            body.push(width as u8);
            hybrid(&self.indices, width, &mut body);
        }
        let uncompressed = levels_bytes + body.len();
        page.extend_from_slice(&self.compressor.compress(&body).map_err(external)?);
        let page = Page::DataPageV2 {
            buf: page.into(),
            num_values: rows as u32,
            encoding: if plain { Encoding::PLAIN } else { Encoding::RLE_DICTIONARY },
            num_nulls: nulls as u32,
            num_rows: rows as u32,
            def_levels_byte_len: levels_bytes as u32,
            rep_levels_byte_len: 0,
            is_compressed: true,
            statistics: None,
        };
        Ok(CompressedPage::new(page, uncompressed))
    }
}

/// The text of every row that is not null.
fn every<'a>(column: &DictionaryArray<UInt32Type>, values: &'a StringArray) -> Vec<&'a str> {
    column.keys().iter().flatten().map(|key| values.value(key as usize)).collect()
}

fn add(
    pages: &mut SerializedPageWriter<'_, Vec<u8>>,
    page: CompressedPage,
    sizes: &mut Sizes,
) -> Result<(), ParquetError> {
    let spec = pages.write_page(page)?;
    sizes.written = spec.offset + spec.bytes_written;
    sizes.compressed += spec.compressed_size as i64;
    sizes.uncompressed += spec.uncompressed_size as i64;
    Ok(())
}

fn statistics(texts: &[&str], nulls: usize) -> Statistics {
    // A long text would be written twice for little: readers do without.
    let bound = |text: Option<&&str>| {
        text.filter(|text| text.len() <= STATISTICS_BYTES_MAX)
            .map(|text| ByteArray::from(text.as_bytes().to_vec()))
    };
    Statistics::byte_array(
        bound(texts.iter().min()),
        bound(texts.iter().max()),
        None,
        Some(nulls as u64),
        false,
    )
}

fn put_plain(text: &str, page: &mut Vec<u8>) {
    page.extend_from_slice(&(text.len() as u32).to_le_bytes());
    page.extend_from_slice(text.as_bytes());
}

/// Parquet's hybrid of run lengths and bit packing ("RLE" in the format's Encodings.md), without a length before it.
fn hybrid(values: &[u32], width: u32, out: &mut Vec<u8>) {
    let mut from = 0;
    let mut at = 0;
    while at < values.len() {
        let value = values[at];
        let run = values[at..].iter().take_while(|next| **next == value).count();
        // Packed values go in eights: a run gives what the ones before it lack.
        let lack = (8 - (at - from) % 8) % 8;
        if run >= lack + RUN_MIN {
            pack(&values[from..at + lack], width, out);
            put_varint(((run - lack) as u64) << 1, out);
            out.extend_from_slice(&value.to_le_bytes()[..width.div_ceil(8) as usize]);
            from = at + run;
        }
        at += run;
    }
    pack(&values[from..], width, out);
}

/// The definition levels of a column that is null or not: the same hybrid one bit wide, whose packed form is Arrow's bitmap.
fn put_levels(column: &DictionaryArray<UInt32Type>, out: &mut Vec<u8>) {
    let rows = column.len();
    let Some(nulls) = column.nulls().filter(|nulls| nulls.null_count() > 0) else {
        put_varint((rows as u64) << 1, out);
        out.push(1);
        return;
    };
    let bitmap = nulls.inner().sliced();
    let (whole, rest) = (&bitmap[..rows / 8], rows % 8);
    let mut from = 0;
    let mut at = 0;
    while at < whole.len() {
        let byte = whole[at];
        let run = whole[at..].iter().take_while(|next| **next == byte).count();
        if run >= LEVEL_RUN_MIN && matches!(byte, 0 | 0xff) {
            put_bitmap(&whole[from..at], out);
            put_varint((run as u64 * 8) << 1, out);
            out.push(byte & 1);
            from = at + run;
        }
        at += run;
    }
    put_bitmap(&whole[from..], out);
    if rest > 0 {
        put_bitmap(&[bitmap[rows / 8] & ((1 << rest) - 1)], out);
    }
}

fn put_bitmap(bytes: &[u8], out: &mut Vec<u8>) {
    if !bytes.is_empty() {
        put_varint((bytes.len() as u64) << 1 | 1, out);
        out.extend_from_slice(bytes);
    }
}

/// One packed run; what is missing to a multiple of eight is 0.
fn pack(values: &[u32], width: u32, out: &mut Vec<u8>) {
    if values.is_empty() {
        return;
    }
    let groups = values.len().div_ceil(8);
    put_varint((groups as u64) << 1 | 1, out);
    let end = out.len() + groups * width as usize;
    let (mut bits, mut count) = (0_u64, 0);
    for value in values {
        bits |= u64::from(*value) << count;
        count += width;
        while count >= 8 {
            out.push(bits as u8);
            bits >>= 8;
            count -= 8;
        }
    }
    if count > 0 {
        out.push(bits as u8);
    }
    out.resize(end, 0);
}

fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn external(error: std::io::Error) -> ParquetError {
    ParquetError::External(Box::new(error))
}

const UNPLACED: u32 = u32::MAX;
const LEVEL: i32 = 1;
/// Runs shorter than this are packed.
const RUN_MIN: usize = 8;
/// The same of levels, in bytes of the bitmap.
const LEVEL_RUN_MIN: usize = 4;
/// A dictionary of so few is never in the way.
const PLAIN_MIN: usize = 1024;
/// After so many rows it is told whether texts repeat.
const SAMPLE_ROWS: usize = 16 << 10;
const STATISTICS_BYTES_MAX: usize = 64;
const BLOOM_FALSE_POSITIVES: f64 = 0.05;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads what `hybrid` wrote.
    fn read(bytes: &[u8], width: u32, count: usize) -> Vec<u32> {
        let (mut at, mut values) = (0, Vec::new());
        while values.len() < count {
            let (mut head, mut shift) = (0_u64, 0);
            loop {
                let byte = bytes[at];
                at += 1;
                head |= u64::from(byte & 0x7f) << shift;
                shift += 7;
                if byte < 0x80 {
                    break;
                }
            }
            if head & 1 == 0 {
                let length = width.div_ceil(8) as usize;
                let mut value = [0; 4];
                value[..length].copy_from_slice(&bytes[at..at + length]);
                at += length;
                values.extend(std::iter::repeat_n(u32::from_le_bytes(value), (head >> 1) as usize));
            } else {
                let packed = &bytes[at..at + (head >> 1) as usize * width as usize];
                at += packed.len();
                let bit = |n: usize| u32::from(packed[n / 8] >> (n % 8) & 1);
                let width = width as usize;
                let value = |n: usize| (0..width).map(|b| bit(n * width + b) << b).sum::<u32>();
                values.extend((0..(head >> 1) as usize * 8).map(value));
            }
        }
        assert_eq!(at, bytes.len());
        values.truncate(count);
        values
    }

    #[test]
    fn levels_are_the_bitmap_in_runs() {
        for rows in [1, 7, 8, 64, 65, 1000, 4099] {
            for every in [1, 2, 3, 500] {
                let there =
                    |row: usize| every > 1 && (row / 100).is_multiple_of(2) != row.is_multiple_of(every);
                let column: DictionaryArray<UInt32Type> =
                    (0..rows).map(|row| there(row).then_some("text")).collect();
                let mut bytes = Vec::new();
                put_levels(&column, &mut bytes);
                let expected: Vec<u32> = (0..rows).map(|row| u32::from(there(row))).collect();
                assert_eq!(read(&bytes, 1, rows), expected, "{rows} rows, every {every}");
                let part = column.slice(rows / 3, rows - rows / 3);
                bytes.clear();
                put_levels(&part, &mut bytes);
                assert_eq!(
                    read(&bytes, 1, part.len()),
                    expected[rows / 3..],
                    "{rows} rows, every {every}, a part"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn runs_and_packed_values_are_read_back(runs in proptest::collection::vec((0..200_u32, 1..40_usize), 0..60), width in 8..20_u32) {
            let values: Vec<u32> = runs.iter().flat_map(|(value, run)| std::iter::repeat_n(*value, *run)).collect();
            let mut bytes = Vec::new();
            hybrid(&values, width, &mut bytes);
            prop_assert_eq!(read(&bytes, width, values.len()), values);
        }
    }
}
