//! How columns are encoded. The choices were measured: see docs/parquet.md.

use std::sync::{Arc, LazyLock};

use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};
use parquet::schema::types::ColumnPath;
use weir_schema::{Kind, Type};

/// Rows of a row group at most: so many are buffered, sorted and written together.
pub(super) const ROW_GROUP_ROWS: usize = 128 << 10;

/// The writer's properties for a kind.
pub(super) fn writer_properties(kind: Kind) -> Arc<WriterProperties> {
    static PROPERTIES: LazyLock<[Arc<WriterProperties>; 4]> = LazyLock::new(|| Kind::ALL.map(build));
    Arc::clone(&PROPERTIES[kind as usize - 1])
}

fn build(kind: Kind) -> Arc<WriterProperties> {
    let mut builder = WriterProperties::builder()
        .set_writer_version(WriterVersion::PARQUET_2_0)
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_offset_index_disabled(true)
        .set_created_by(concat!("weir-aggregator ", env!("CARGO_PKG_VERSION")).to_owned());
    for field in kind.fields() {
        let column = ColumnPath::from(field.name);
        let encoding = match field.ty {
            Type::Uuid => Some(Encoding::PLAIN),
            Type::Time | Type::U64 => Some(Encoding::DELTA_BINARY_PACKED),
            Type::U32 | Type::U16 if MEASURES.contains(&field.name) => Some(Encoding::DELTA_BINARY_PACKED),
            _ => None,
        };
        if let Some(encoding) = encoding {
            builder = builder
                .set_column_dictionary_enabled(column.clone(), false)
                .set_column_encoding(column.clone(), encoding);
        }
    }
    Arc::new(builder.build())
}

/// Whether people look single values of a column up, so that it has a Bloom filter.
pub(super) fn is_looked_up(column: &str) -> bool {
    LOOKED_UP.contains(&column)
}

/// Numbers that rarely repeat.
const MEASURES: &[&str] = &[
    "src_port",
    "client_port",
    "handshake_us",
    "rtt_us",
    "rtt_min_us",
    "rtt_max_us",
    "latency_us",
    "answer_ttl_s",
];

/// Columns that people look single values up in.
const LOOKED_UP: &[&str] =
    &["src_ip", "dst_ip", "src_pod", "dst_pod", "client_ip", "client_pod", "query_name"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_columns_exist() {
        for name in MEASURES.iter().chain(LOOKED_UP) {
            let known = Kind::ALL.iter().flat_map(|kind| kind.fields()).any(|field| field.name == *name);
            assert!(known, "{name}");
        }
    }
}
