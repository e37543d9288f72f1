//! The sample file and the reference page, from the table of keys.

use std::fmt::Write as _;

use super::value::{size_text, span_text};
use super::{Key, ValueKind};

/// A YAML file with every key at its default, each with its doc, commented out: as it stands it changes nothing.
pub fn sample_yaml(title: &str, keys: &[Key]) -> String {
    let mut out = format!(
        "# {title}\n# Every key with its default. Environment variables and flags win over this file.\n"
    );
    let mut open: Vec<&str> = Vec::new();
    for key in keys {
        let parts: Vec<&str> = key.path.split('.').collect();
        let (sections, name) = parts.split_at(parts.len() - 1);
        let shared = open.iter().zip(sections).take_while(|(a, b)| a == b).count();
        open.truncate(shared);
        let _ = writeln!(out);
        for section in &sections[shared..] {
            let _ = writeln!(out, "# {}{section}:", "  ".repeat(open.len()));
            open.push(section);
        }
        let indent = "  ".repeat(open.len());
        let _ = writeln!(out, "# {indent}# {}", key.doc);
        let _ = writeln!(out, "# {indent}{}: {}", name[0], yaml_default(key));
    }
    out
}

fn yaml_default(key: &Key) -> String {
    match key.kind {
        ValueKind::Text | ValueKind::Choice(_) => format!("{:?}", key.default),
        _ => key.default.to_owned(),
    }
}

/// The reference of all keys, in Markdown.
pub fn reference_markdown(title: &str, env_prefix: &str, keys: &[Key]) -> String {
    let mut out = format!(
        "# {title}\n\nGenerated from the table of keys by `make generate`. Later wins: default, file (`--config`), \
         environment, flags\n(`--set key=value`). Environment variables are `{env_prefix}` and the path in capitals, \
         with `.` written `__`.\nSizes are written `64MiB`, time spans `500ms`, `10s`, `5m`, `1h`, `7d`.\n\n\
         | key | values | default | meaning |\n|---|---|---|---|\n"
    );
    for key in keys {
        let default =
            if key.default.is_empty() { "(empty)".to_owned() } else { format!("`{}`", key.default) };
        let doc = key.doc.replace('|', "\\|");
        let _ = writeln!(out, "| `{}` | {} | {default} | {doc} |", key.path, values(key.kind));
    }
    out
}

fn values(kind: ValueKind) -> String {
    match kind {
        ValueKind::Bool => "true, false".to_owned(),
        ValueKind::U64 { min, max } => format!("{min} to {max}"),
        ValueKind::Bytes { min, max } => format!("{} to {}", size_text(min), size_text(max)),
        ValueKind::Duration { min_ms, max_ms } => format!("{} to {}", span_text(min_ms), span_text(max_ms)),
        ValueKind::Text => "text".to_owned(),
        ValueKind::Choice(choices) => choices.join(", "),
        ValueKind::Structure(form) => form.replace('|', "\\|"),
    }
}
