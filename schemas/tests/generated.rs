//! The committed schema files are what the catalogue gives. `WEIR_REGENERATE=1 cargo test -p weir-schema` renews them.

use std::{env, fs, path::PathBuf};

use weir_schema::{Kind, generate};

#[test]
fn generated_files_are_current() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<(PathBuf, String)> = Kind::ALL
        .into_iter()
        .map(|kind| (root.join(format!("json/{}.schema.json", kind.as_str())), generate::json_schema(kind)))
        .collect();
    files.push((root.join("../docs/fields.md"), generate::reference_page()));
    for (path, fresh) in files {
        if env::var_os("WEIR_REGENERATE").is_some() {
            fs::write(&path, &fresh).unwrap();
        }
        let current = fs::read_to_string(&path).unwrap_or_default();
        assert!(current == fresh, "{} is stale: run make generate", path.display());
    }
}

#[test]
fn arrow_schemas_have_every_field_in_order() {
    for kind in Kind::ALL {
        let schema = kind.arrow_schema();
        let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        let expected: Vec<&str> = kind.fields().iter().map(|field| field.name).collect();
        assert_eq!(names, expected);
    }
}
