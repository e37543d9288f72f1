//! Finding DuckDB's command line.

use std::path::{Path, PathBuf};

/// The program: `WEIR_DUCKDB`, else `duckdb` on PATH, else what `make setup` put into the checkout that the working
/// folder or this program is in.
pub(crate) fn find() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("WEIR_DUCKDB") {
        return Some(PathBuf::from(path)).filter(|path| path.is_file());
    }
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&on_path).map(|folder| folder.join("duckdb"));
    let above = [std::env::current_dir(), std::env::current_exe()].into_iter().flatten();
    let in_checkout =
        above.flat_map(|start| start.ancestors().map(|folder| folder.join(IN_CHECKOUT)).collect::<Vec<_>>());
    on_path.chain(in_checkout).find(|path| path.is_file())
}

/// A text as an SQL literal.
pub(crate) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A file's path as shells read it back.
pub(crate) fn shell(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// Where `scripts/setup.sh` puts it.
const IN_CHECKOUT: &str = ".cache/venv/bin/duckdb";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoting_survives_quotes() {
        assert_eq!(literal("a'b"), "'a''b'");
        assert_eq!(shell(Path::new("/tmp/a b")), "'/tmp/a b'");
        assert_eq!(shell(Path::new("data/.weir/x")), "data/.weir/x");
    }
}
