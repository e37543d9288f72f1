use std::io::Write as _;

use super::*;

const KEYS: &[Key] = &[
    Key { path: "node", kind: ValueKind::Text, default: "", doc: "Name." },
    Key {
        path: "spool.bytes_max",
        kind: ValueKind::Bytes { min: 1 << 20, max: 1 << 40 },
        default: "1GiB",
        doc: "Budget.",
    },
    Key { path: "spool.sync", kind: ValueKind::Bool, default: "true", doc: "Sync." },
    Key {
        path: "interval",
        kind: ValueKind::Duration { min_ms: 100, max_ms: 60_000 },
        default: "10s",
        doc: "How often.",
    },
    Key { path: "log.format", kind: ValueKind::Choice(&["human", "json"]), default: "human", doc: "Look." },
    Key { path: "networks", kind: ValueKind::Structure("a list"), default: "[]", doc: "Networks." },
];

fn load(yaml: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Values, ConfigErrors> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(yaml.as_bytes()).unwrap();
    let own = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
        pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    };
    let options = LoadOptions { file: Some(file.path()), env_prefix: "WEIR_T_", flags: &own(flags) };
    Values::load_with(KEYS, options, &own(env))
}

#[test]
fn later_sources_win() {
    let yaml = "spool: {bytes_max: 2MiB, sync: false}\nnetworks: [{name: a}]\nnode: from-file";
    let values =
        load(yaml, &[("WEIR_T_SPOOL__BYTES_MAX", "3MiB"), ("WEIR_T_NODE", "17")], &[("interval", "250ms")])
            .unwrap();
    assert_eq!(values.bytes("spool.bytes_max"), 3 << 20);
    assert!(!values.bool("spool.sync"));
    assert_eq!(values.text("node"), "17");
    assert_eq!(values.duration("interval"), Duration::from_millis(250));
    assert_eq!(values.text("log.format"), "human");
    assert_eq!(values.structure("networks")[0]["name"], "a");
}

#[test]
fn variables_of_a_service_of_the_same_name_are_not_ours() {
    load(
        "",
        &[("WEIR_T_SERVICE_HOST", "10.0.0.1"), ("WEIR_T_PORT", "tcp://"), ("WEIR_T_PORT_9464_TCP", "x")],
        &[],
    )
    .unwrap();
}

#[test]
fn all_problems_are_reported_together() {
    let yaml = "spool: {bytes_max: 1KiB, typo: 1}\ninterval: 10\nlog: {format: xml}\nspool.sync: 3";
    let errors = load(yaml, &[("WEIR_T_NOPE", "1")], &[("node.name", "x")]).unwrap_err();
    let mut keys: Vec<&str> = errors.iter().map(|error| error.key.as_str()).collect();
    keys.sort_unstable();
    assert_eq!(
        keys,
        ["interval", "log.format", "node.name", "nope", "spool.bytes_max", "spool.sync", "spool.typo"]
    );
    let text = errors.to_string();
    assert!(
        text.contains("spool.bytes_max: `1KiB`: expected a size from 1MiB to 1TiB, such as 64MiB"),
        "{text}"
    );
    assert!(text.contains("command line: node.name: `x`"), "{text}");
}

#[test]
fn yaml_that_does_not_parse_is_one_error_with_the_file() {
    let errors = load("a: [", &[], &[]).unwrap_err();
    assert_eq!(errors.iter().count(), 1);
    assert!(errors.to_string().contains("YAML: "));
}

#[test]
fn the_sample_is_valid_and_uncommented_gives_the_defaults() {
    let sample = sample_yaml("Test", KEYS);
    load(&sample, &[], &[]).unwrap();
    let uncommented: String =
        sample.lines().skip(2).map(|line| format!("{}\n", line.strip_prefix("# ").unwrap_or(line))).collect();
    let values = load(&uncommented, &[], &[]).unwrap();
    assert_eq!(values.bytes("spool.bytes_max"), 1 << 30);
    assert_eq!(values.duration("interval"), Duration::from_secs(10));
    assert!(
        reference_markdown("T", "WEIR_T_", KEYS)
            .contains("| `spool.bytes_max` | 1MiB to 1TiB | `1GiB` | Budget. |")
    );
}
