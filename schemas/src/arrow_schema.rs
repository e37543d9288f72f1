//! The Arrow schema of each kind.
//!
//! Text is dictionary-encoded with 32-bit keys: names repeat, and sinks read the dictionaries once.

use std::sync::{Arc, LazyLock};

use arrow_schema::extension::Uuid;
use arrow_schema::{DataType, Field as ArrowField, Schema, SchemaRef, TimeUnit};

use crate::catalogue::{Field, Kind, SCHEMA_VERSION, Type};

/// The metadata key under which a schema states its `schema_version`.
pub const SCHEMA_VERSION_KEY: &str = "weir.schema_version";

impl Kind {
    /// The Arrow schema of the kind's record batches; one shared copy.
    pub fn arrow_schema(self) -> SchemaRef {
        static SCHEMAS: LazyLock<[SchemaRef; 4]> = LazyLock::new(|| Kind::ALL.map(build));
        Arc::clone(&SCHEMAS[self as usize - 1])
    }
}

fn build(kind: Kind) -> SchemaRef {
    let fields: Vec<ArrowField> = kind.fields().iter().map(arrow_field).collect();
    let version = (SCHEMA_VERSION_KEY.to_owned(), SCHEMA_VERSION.to_string());
    Arc::new(Schema::new_with_metadata(fields, [version]))
}

fn arrow_field(field: &Field) -> ArrowField {
    let text = || DataType::Dictionary(Box::new(DataType::UInt32), Box::new(DataType::Utf8));
    let uuid = |name: &str, nullable| {
        ArrowField::new(name, DataType::FixedSizeBinary(16), nullable).with_extension_type(Uuid)
    };
    let data_type = match field.ty {
        Type::Uuid => return uuid(field.name, field.nullable),
        Type::Text | Type::Ip => text(),
        Type::Time => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        Type::U8 => DataType::UInt8,
        Type::U16 => DataType::UInt16,
        Type::U32 => DataType::UInt32,
        Type::U64 => DataType::UInt64,
        Type::Bool => DataType::Boolean,
        Type::F64 => DataType::Float64,
        Type::TextList => DataType::List(Arc::new(ArrowField::new("item", DataType::Utf8, true))),
        Type::UuidList => DataType::List(Arc::new(uuid("item", true))),
    };
    ArrowField::new(field.name, data_type, field.nullable)
}
