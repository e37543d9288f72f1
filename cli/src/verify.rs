//! `weir verify`: holds a Parquet tree against its manifest.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::anyhow;
use weir_aggregator::sink::parquet::{JournalReport, Problem, Report, StoreUrl, verify, verify_store};
use weir_common::exit;

use crate::arguments::Verify;
use crate::units;

/// Prints what is there and what is wrong; the code is 1 when anything is.
pub(crate) fn run(arguments: &Verify) -> anyhow::Result<u8> {
    let report = report(arguments)?;
    for journal in &report.journals {
        let JournalReport { journal_id, entries, next_position, files, rows, bytes, problems } = journal;
        println!(
            "journal {journal_id}: {} rows in {} files ({}), {} manifest entries, written up to position {next_position}",
            units::count(*rows),
            units::count(*files),
            units::bytes(*bytes),
            units::count(*entries),
        );
        for Problem { path, offset, reason } in problems {
            let offset = offset.map(|offset| format!(" at offset {offset}")).unwrap_or_default();
            println!("WRONG {}{offset}: {reason}", path.display());
        }
    }
    for path in &report.unlisted {
        println!("unlisted {}: no manifest names it, but readers of the glob see it", path.display());
    }
    if report.journals.is_empty() {
        println!("nothing was ever published in {}", arguments.root);
    }
    Ok(if report.is_sound() { exit::OK } else { exit::FAILED })
}

fn report(arguments: &Verify) -> anyhow::Result<Report> {
    let Verify { root, option } = arguments;
    if !StoreUrl::is_url(root) {
        return Ok(verify(Path::new(root))?);
    }
    let mut options = BTreeMap::new();
    for option in option {
        let (name, value) = option.split_once('=').ok_or_else(|| anyhow!("--option: expected NAME=VALUE"))?;
        options.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let url = StoreUrl::parse(root, options).map_err(|expected| anyhow!("{root}: expected {expected}"))?;
    Ok(verify_store(&url)?)
}
