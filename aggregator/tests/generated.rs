//! The committed sample and reference are what the table of keys gives. `WEIR_REGENERATE=1 cargo test -p
//! weir-aggregator` renews them.

use std::path::PathBuf;
use std::{env, fs};

use weir_aggregator::config::{Config, ENV_PREFIX, KEYS};
use weir_common::config::{LoadOptions, Values, reference_markdown, sample_yaml};

#[test]
fn generated_files_are_current() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let files = [
        (root.join("deploy/config/aggregator.yaml"), sample_yaml("Configuration of weir-aggregator.", KEYS)),
        (
            root.join("docs/configuration/aggregator.md"),
            reference_markdown("Configuration of the aggregator", ENV_PREFIX, KEYS),
        ),
    ];
    for (path, fresh) in files {
        if env::var_os("WEIR_REGENERATE").is_some() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &fresh).unwrap();
        }
        let current = fs::read_to_string(&path).unwrap_or_default();
        assert!(current == fresh, "{} is stale: run make generate", path.display());
    }
}

#[test]
fn the_sample_is_a_configuration() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), sample_yaml("Sample.", KEYS)).unwrap();
    let options = LoadOptions { file: Some(file.path()), ..LoadOptions::default() };
    Config::parse(&Values::load_with(KEYS, options, &[]).unwrap()).unwrap();
}
