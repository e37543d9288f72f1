//! Texts made from the catalogue: JSON Schema and the reference page. The test `generated` compares them with the
//! committed files; `make generate` renews those.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use crate::catalogue::{Cardinality, Kind, SCHEMA_VERSION, Type};

/// JSON Schema (draft 2020-12) of one event of a kind, as sinks write it in JSON: null fields are left out.
pub fn json_schema(kind: Kind) -> String {
    let mut properties = Map::new();
    for field in kind.fields() {
        let mut property = json_type(field.ty);
        property.insert("description".to_owned(), field.doc.into());
        properties.insert(field.name.to_owned(), Value::Object(property));
    }
    let required: Vec<&str> =
        kind.fields().iter().filter(|field| !field.nullable).map(|field| field.name).collect();
    let schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": format!("Weir {} event, schema_version {SCHEMA_VERSION}", kind.as_str()),
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    });
    format!("{schema:#}\n")
}

fn json_type(ty: Type) -> Map<String, Value> {
    let value = match ty {
        Type::Uuid => json!({"type": "string", "format": "uuid"}),
        Type::Text => json!({"type": "string"}),
        Type::Ip => json!({"type": "string", "anyOf": [{"format": "ipv4"}, {"format": "ipv6"}]}),
        Type::Time => json!({"type": "string", "format": "date-time"}),
        Type::U8 => json!({"type": "integer", "minimum": 0, "maximum": u8::MAX}),
        Type::U16 => json!({"type": "integer", "minimum": 0, "maximum": u16::MAX}),
        Type::U32 => json!({"type": "integer", "minimum": 0, "maximum": u32::MAX}),
        Type::U64 => json!({"type": "integer", "minimum": 0}),
        Type::Bool => json!({"type": "boolean"}),
        Type::F64 => json!({"type": "number"}),
        Type::TextList => json!({"type": "array", "items": {"type": "string"}}),
        Type::UuidList => json!({"type": "array", "items": {"type": "string", "format": "uuid"}}),
    };
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// The reference page of all fields, in Markdown.
pub fn reference_page() -> String {
    let mut page = String::from(
        "# Fields\n\nGenerated from the catalogue (`schemas/src/catalogue.rs`) by `make generate`. One name \
         everywhere: protobuf,\nJSON, Parquet, this page. *Label* says whether the field can be a label in Loki or \
         Prometheus.\n",
    );
    for kind in Kind::ALL {
        let _ = write!(
            page,
            "\n## {}\n\n| field | type | null | label | meaning |\n|---|---|---|---|---|\n",
            kind.as_str()
        );
        for field in kind.fields() {
            let null = if field.nullable { "yes" } else { "no" };
            let label = match field.cardinality {
                Cardinality::Fine => "fine",
                Cardinality::Careful => "careful",
                Cardinality::Avoid => "avoid",
            };
            let doc = field.doc.replace('|', "\\|");
            let _ =
                writeln!(page, "| `{}` | {} | {null} | {label} | {doc} |", field.name, sql_type(field.ty));
        }
    }
    page
}

/// The type as DuckDB names it when it reads Weir's Parquet files.
pub fn sql_type(ty: Type) -> &'static str {
    match ty {
        Type::Uuid => "UUID",
        Type::Text | Type::Ip => "VARCHAR",
        Type::Time => "TIMESTAMP WITH TIME ZONE",
        Type::U8 => "UTINYINT",
        Type::U16 => "USMALLINT",
        Type::U32 => "UINTEGER",
        Type::U64 => "UBIGINT",
        Type::Bool => "BOOLEAN",
        Type::F64 => "DOUBLE",
        Type::TextList => "VARCHAR[]",
        Type::UuidList => "UUID[]",
    }
}
