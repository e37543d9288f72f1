//! Generated files are current. `WEIR_REGENERATE=1 cargo test -p weir-shipper --test generated` renews them.
#![expect(clippy::unwrap_used, reason = "tests panic where they fail")]

use std::path::Path;
use std::{env, fs};

use weir_common::config::{LoadOptions, Values, reference_markdown, sample_yaml};
use weir_shipper::config::{Config, ENV_PREFIX, KEYS};

#[test]
fn sample_and_reference_are_current() {
    golden("deploy/config/shipper.yaml", &sample_yaml("Configuration of weir-shipper.", KEYS));
    golden(
        "docs/configuration/shipper.md",
        &reference_markdown("Configuration of weir-shipper", ENV_PREFIX, KEYS),
    );
}

#[test]
fn the_sample_is_a_configuration_also_with_every_line_in_force() {
    let sample = sample_yaml("Configuration of weir-shipper.", KEYS);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("shipper.yaml");
    // Comments of the sample are `# key: value` or `# # text`.
    let in_force: String = sample
        .lines()
        .skip_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix("# ").filter(|line| !line.trim_start().starts_with('#')))
        .map(|line| format!("{line}\n"))
        .collect();
    for text in [sample.as_str(), in_force.as_str()] {
        fs::write(&file, text).unwrap();
        let options = LoadOptions { file: Some(&file), env_prefix: "", flags: &[] };
        Values::load(KEYS, options).unwrap_or_else(|errors| panic!("{errors}\n{text}"));
        Config::load(Some(&file), &[]).unwrap_or_else(|errors| panic!("{errors}\n{text}"));
    }
}

fn golden(path: &str, fresh: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    if env::var_os("WEIR_REGENERATE").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, fresh).unwrap();
    }
    let current = fs::read_to_string(&path).unwrap_or_default();
    assert!(current == fresh, "{} is stale: run make generate", path.display());
}
