//! The catalogue of Weir's fields, and every schema that is generated from it.
//!
//! One field, one name, everywhere: protobuf field, JSON key, Parquet column, documentation. To add a field, add its
//! row to [`catalogue`], fill it where events become columns, and run `make generate`.

mod arrow_schema;
pub mod catalogue;
pub mod generate;
pub mod protocol;
pub mod values;

pub use arrow_schema::SCHEMA_VERSION_KEY;
pub use catalogue::{Cardinality, Field, Kind, SCHEMA_VERSION, Type};
