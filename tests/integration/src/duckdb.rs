//! DuckDB on Weir's files, as a user runs it: a query in, rows out. For tests that read Parquet back.
//!
//! `make setup` installs it; where it is missing a test fails in CI and is skipped, with the reason, elsewhere.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Map, Value};

/// A row: column name to value. 64-bit numbers are texts in DuckDB's JSON: see [`number`].
pub type Row = Map<String, Value>;

/// DuckDB's command line.
#[derive(Clone, Debug)]
pub struct DuckDb {
    program: PathBuf,
    arguments: Vec<String>,
}

impl DuckDb {
    /// The DuckDB of `WEIR_DUCKDB`, else of the checkout's `.cache`, else on PATH. `None`, with the reason printed,
    /// where there is none.
    ///
    /// # Panics
    /// When there is none and `CI` is set.
    pub fn find() -> Option<Self> {
        let cached = root().join(".cache/venv/bin/duckdb");
        let program = match std::env::var_os("WEIR_DUCKDB") {
            Some(program) => PathBuf::from(program),
            None if cached.exists() => cached,
            None => PathBuf::from("duckdb"),
        };
        let found = Self { program, arguments: Vec::new() };
        found.or_skip("scripts/setup.sh installs it")
    }

    /// One with the extension `inet`, which `scripts/duckdb.sh` installs; otherwise as `find`.
    ///
    /// # Panics
    /// When there is none and `CI` is set.
    pub fn find_with_inet() -> Option<Self> {
        let program = root().join("scripts/duckdb.sh");
        let found = Self { program, arguments: vec!["--inet".to_owned()] };
        found.or_skip("it comes from PyPI")
    }

    fn or_skip(self, how: &str) -> Option<Self> {
        let Err(problem) = self.try_query("SELECT 1 AS one") else { return Some(self) };
        assert!(std::env::var_os("CI").is_none(), "DuckDB is missing ({how}): {problem}");
        eprintln!("skipped: DuckDB is missing ({how}): {problem}");
        None
    }

    /// The rows of a query.
    ///
    /// # Panics
    /// When DuckDB refuses the query; with its words.
    #[track_caller]
    pub fn query(&self, sql: &str) -> Vec<Row> {
        self.try_query(sql).unwrap_or_else(|problem| panic!("{problem}\n  in: {sql}"))
    }

    /// The only value of a query of one row and one column.
    ///
    /// # Panics
    /// When it has another shape, or DuckDB refuses it.
    #[track_caller]
    pub fn value(&self, sql: &str) -> Value {
        let mut rows = self.query(sql);
        assert!(rows.len() == 1 && rows[0].len() == 1, "not one value: {rows:?}\n  in: {sql}");
        rows.remove(0).into_iter().next().map(|(_, value)| value).unwrap_or_default()
    }

    /// What DuckDB prints for a statement that gives no rows, such as `EXPLAIN ANALYZE`.
    ///
    /// # Panics
    /// When DuckDB refuses it; with its words.
    #[track_caller]
    pub fn text(&self, sql: &str) -> String {
        self.output(sql).unwrap_or_else(|problem| panic!("{problem}\n  in: {sql}"))
    }

    fn try_query(&self, sql: &str) -> Result<Vec<Row>, String> {
        let text = self.output(sql)?;
        if text.trim().is_empty() {
            return Ok(Vec::new());
        }
        serde_json::from_str(&text).map_err(|error| format!("{error} in DuckDB's answer: {text}"))
    }

    fn output(&self, sql: &str) -> Result<String, String> {
        // Times are printed in the session's zone.
        let sql = format!("SET TimeZone = 'UTC'; {sql}");
        let mut command = Command::new(&self.program);
        // Nothing of the user's: no start-up file.
        command.args(&self.arguments).args(["-init", "/dev/null", "-json", "-c", &sql]);
        let output = command.output().map_err(|error| format!("{}: {error}", self.program.display()))?;
        if !output.status.success() {
            return Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// The one call that reads everything below a folder, as the documentation gives it.
pub fn read_all(data: &Path) -> String {
    let data = data.display();
    format!("read_parquet('{data}/**/*.parquet', hive_partitioning = true, union_by_name = true)")
}

/// An integer, however DuckDB prints it.
///
/// # Panics
/// When it is none.
#[track_caller]
pub fn number(value: &Value) -> i128 {
    let parsed = match value {
        Value::String(text) => text.parse().ok(),
        value => value.as_i64().map(i128::from),
    };
    parsed.unwrap_or_else(|| panic!("{value} is not an integer"))
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}
