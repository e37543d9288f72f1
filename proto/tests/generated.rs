//! The committed code is what the `.proto` files give. `WEIR_REGENERATE=1 cargo test -p weir-proto` renews it.

use std::{env, fs, path::Path};

#[test]
fn generated_code_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = ["ingest", "observe", "journal"].map(|name| format!("weir/v1/{name}.proto"));
    let descriptors = protox::compile(&files, [root]).unwrap();
    let out = tempfile::tempdir().unwrap();
    tonic_prost_build::configure()
        .bytes(".weir.v1.Batch.payload")
        .out_dir(out.path())
        .compile_fds(descriptors)
        .unwrap();
    let fresh = fs::read_to_string(out.path().join("weir.v1.rs")).unwrap();
    let committed = root.join("src/generated/weir.v1.rs");
    if env::var_os("WEIR_REGENERATE").is_some() {
        fs::write(&committed, &fresh).unwrap();
    }
    let current = fs::read_to_string(&committed).unwrap();
    assert!(
        current == fresh,
        "{} is stale: run WEIR_REGENERATE=1 cargo test -p weir-proto",
        committed.display()
    );
}
