//! Configuration from one table of keys: defaults, then a YAML file, then environment variables, then flags; the later
//! wins. From the same table come the sample file and the reference page.
//!
//! Loading reads one file and nothing else. All problems are reported together, each with its source, key, value and
//! what was expected.

mod document;
mod value;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use document::{reference_markdown, sample_yaml};
use serde_json::Value as Json;
use value::Parsed;

/// A configuration file may have this many bytes.
pub const FILE_BYTES_MAX: u64 = 1 << 20;

/// One key.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Dotted path, such as `spool.bytes_max`.
    pub path: &'static str,
    /// What values it takes.
    pub kind: ValueKind,
    /// As one would write it in YAML.
    pub default: &'static str,
    /// What it does; one sentence or two, for the sample file and the reference.
    pub doc: &'static str,
}

/// What values a key takes. Limits are inclusive.
#[derive(Clone, Copy, Debug)]
pub enum ValueKind {
    /// `true` or `false`.
    Bool,
    /// A whole number.
    U64 {
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
    /// A number of bytes: `65536`, `64KiB`, `1GiB`.
    Bytes {
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
    /// A time span: `500ms`, `10s`, `5m`, `1h`, `7d`.
    Duration {
        /// Smallest, milliseconds.
        min_ms: u64,
        /// Largest, milliseconds.
        max_ms: u64,
    },
    /// Any text.
    Text,
    /// One of these.
    Choice(&'static [&'static str]),
    /// A list or map; its owner checks what is in it and reports with [`ConfigErrors::push`].
    Structure(&'static str),
}

/// Where values come from, besides the defaults.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadOptions<'a> {
    /// A YAML file.
    pub file: Option<&'a Path>,
    /// Variables `<prefix><PATH>` count, with `.` written `__`: `WEIR_SHIPPER_SPOOL__BYTES_MAX`. Empty: none.
    pub env_prefix: &'a str,
    /// Path and value, as given on the command line.
    pub flags: &'a [(String, String)],
}

/// Every key's value. Accessors take the path of a key in the table.
#[derive(Clone, Debug)]
pub struct Values(BTreeMap<&'static str, Parsed>);

impl Values {
    /// Loads and checks all values.
    pub fn load(keys: &'static [Key], options: LoadOptions<'_>) -> Result<Self, ConfigErrors> {
        // Whatever is not text can't be one of ours.
        let env: Vec<(String, String)> = std::env::vars_os()
            .filter_map(|(name, value)| {
                Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
            })
            .collect();
        Self::load_with(keys, options, &env)
    }

    /// The same with these environment variables.
    pub fn load_with(
        keys: &'static [Key],
        options: LoadOptions<'_>,
        env: &[(String, String)],
    ) -> Result<Self, ConfigErrors> {
        let mut loader = Loader { keys, values: BTreeMap::new(), errors: ConfigErrors::default() };
        for key in keys {
            loader.set_text("default", key.path, key.default);
        }
        if let Some(path) = options.file {
            loader.file(path);
        }
        for (name, value) in env {
            if options.env_prefix.is_empty() {
                break;
            }
            if let Some(path) = name.strip_prefix(options.env_prefix).filter(|path| !is_service_link(path)) {
                loader.set_text(name, &path.replace("__", ".").to_ascii_lowercase(), value);
            }
        }
        for (path, value) in options.flags {
            loader.set_text("command line", path, value);
        }
        if loader.errors.is_empty() { Ok(Self(loader.values)) } else { Err(loader.errors) }
    }

    fn value(&self, path: &str) -> &Parsed {
        self.0.get(path).expect("the key is in the table that was loaded")
    }

    /// A truth value.
    pub fn bool(&self, path: &str) -> bool {
        matches!(self.value(path), Parsed::Bool(true))
    }

    /// A whole number, or a number of bytes.
    pub fn u64(&self, path: &str) -> u64 {
        match self.value(path) {
            Parsed::U64(number) => *number,
            other => unreachable_kind(path, other),
        }
    }

    /// A number of bytes.
    pub fn bytes(&self, path: &str) -> u64 {
        self.u64(path)
    }

    /// A time span.
    pub fn duration(&self, path: &str) -> Duration {
        match self.value(path) {
            Parsed::Duration(span) => *span,
            other => unreachable_kind(path, other),
        }
    }

    /// A text or a choice.
    pub fn text(&self, path: &str) -> &str {
        match self.value(path) {
            Parsed::Text(text) => text,
            other => unreachable_kind(path, other),
        }
    }

    /// A text as a path; `None` when it is empty.
    pub fn path(&self, path: &str) -> Option<PathBuf> {
        Some(self.text(path)).filter(|text| !text.is_empty()).map(PathBuf::from)
    }

    /// A list or map.
    pub fn structure(&self, path: &str) -> &Json {
        match self.value(path) {
            Parsed::Structure(json) => json,
            other => unreachable_kind(path, other),
        }
    }
}

/// Whether a variable is one that Kubernetes sets in every pod beside a Service of the program's own name, such as
/// `WEIR_AGGREGATOR_SERVICE_HOST` and `WEIR_AGGREGATOR_PORT_9464_TCP`. No key may begin like that.
fn is_service_link(path: &str) -> bool {
    path.starts_with("SERVICE_") || path == "PORT" || path.starts_with("PORT_")
}

/// The table decides the kind, so only a wrong accessor in the program comes here; tests load every key.
fn unreachable_kind(path: &str, parsed: &Parsed) -> ! {
    unreachable!("key {path} is read as another kind than the table's: {parsed:?}")
}

struct Loader {
    keys: &'static [Key],
    values: BTreeMap<&'static str, Parsed>,
    errors: ConfigErrors,
}

impl Loader {
    fn file(&mut self, path: &Path) {
        let source = path.display().to_string();
        let text = match read_limited(path) {
            Ok(text) => text,
            Err(error) => return self.errors.push(&source, "", "", &error),
        };
        match serde_norway::from_str::<Json>(&text) {
            Ok(Json::Null) => {}
            Ok(Json::Object(map)) => self.map(&source, "", &map),
            Ok(_) => self.errors.push(&source, "", "", "a map of keys"),
            Err(error) => self.errors.push(&source, "", "", &format!("YAML: {error}")),
        }
    }

    fn map(&mut self, source: &str, prefix: &str, map: &serde_json::Map<String, Json>) {
        for (name, json) in map {
            let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            match json {
                Json::Object(inner) if self.key(&path).is_none() && self.is_section(&path) => {
                    self.map(source, &path, inner);
                }
                _ => self.set_json(source, &path, json),
            }
        }
    }

    fn key(&self, path: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.path == path)
    }

    fn is_section(&self, path: &str) -> bool {
        self.keys.iter().any(|key| key.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
    }

    fn set_text(&mut self, source: &str, path: &str, text: &str) {
        // Bare words, sizes and spans are YAML strings; numbers, lists and maps come out as what they are.
        let json = match self.key(path).map(|key| key.kind) {
            Some(ValueKind::Text | ValueKind::Choice(_)) => Json::String(text.to_owned()),
            _ => serde_norway::from_str(text).unwrap_or_else(|_| Json::String(text.to_owned())),
        };
        self.set_json(source, path, &json);
    }

    fn set_json(&mut self, source: &str, path: &str, json: &Json) {
        let shown = match json {
            Json::String(text) => text.clone(),
            other => other.to_string(),
        };
        let Some(key) = self.key(path) else {
            let hint = if self.is_section(path) {
                "it holds other keys; give it a map"
            } else {
                "no such key; see the reference"
            };
            return self.errors.push(source, path, &shown, hint);
        };
        match Parsed::from_json(key.kind, json) {
            Ok(parsed) => {
                self.values.insert(key.path, parsed);
            }
            Err(expected) => self.errors.push(source, path, &shown, &expected),
        }
    }
}

fn read_limited(path: &Path) -> Result<String, String> {
    let size = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    if size > FILE_BYTES_MAX {
        return Err(format!("a file of at most {FILE_BYTES_MAX} bytes; this one has {size}"));
    }
    std::fs::read_to_string(path).map_err(|error| error.to_string())
}

/// Every problem of a configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigErrors(Vec<ConfigError>);

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// File, environment variable, or `command line`.
    pub source: String,
    /// The key's path; empty when the whole source is meant.
    pub key: String,
    /// What stands there.
    pub value: String,
    /// What was expected.
    pub expected: String,
}

impl ConfigErrors {
    /// Adds a problem.
    pub fn push(&mut self, source: &str, key: &str, value: &str, expected: &str) {
        let [source, key, value, expected] = [source, key, value, expected].map(str::to_owned);
        self.0.push(ConfigError { source, key, value, expected });
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The problems, in the order of the sources.
    pub fn iter(&self) -> std::slice::Iter<'_, ConfigError> {
        self.0.iter()
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, ConfigError { source, key, value, expected }) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{source}: ")?;
            if !key.is_empty() {
                write!(f, "{key}: `{value}`: expected ")?;
            }
            write!(f, "{expected}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

#[cfg(test)]
mod tests;
