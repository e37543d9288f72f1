//! What `weir up` says at its end: DuckDB's answers from the Parquet files that were just written, and how to ask again.

use std::fs::{self, File};
use std::io::{Write, stdout};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context;

use crate::duckdb;

/// What is summed up.
pub(crate) enum Of<'a> {
    /// What this host's sockets did since a time (RFC 3339, UTC).
    Host { since: &'a str },
    /// A replay, told by the beginning of its `flow_id`s.
    Replay { flow_ids: &'a str },
}

/// Writes the script that computes the summary to `script`, runs it and prints it. A missing DuckDB is no error: the script says how to go on by hand.
pub(crate) fn print(data: &Path, of: &Of<'_>, script: &Path) -> anyhow::Result<()> {
    if !has_parquet(data) {
        writeln!(stdout(), "\nNothing was recorded: there is no Parquet file in {}.", data.display())?;
        return Ok(());
    }
    let sql = match of {
        Of::Host { since } => of_host(data, since),
        Of::Replay { flow_ids } => of_replay(data, flow_ids),
    };
    fs::write(script, &sql).with_context(|| format!("write {}", script.display()))?;
    let Some(program) = duckdb::find() else {
        writeln!(
            stdout(),
            "\nDuckDB is not here, so there is no summary. Get it with `make setup` or `pip install duckdb-cli`, then:"
        )?;
        writeln!(stdout(), "\n  duckdb -box < {}\n\n{sql}", duckdb::shell(script))?;
        return Ok(());
    };
    writeln!(stdout())?;
    // `-init /dev/null`: somebody's ~/.duckdbrc must not change the answer.
    let status = Command::new(&program)
        .args(["-init", "/dev/null", "-box"])
        .stdin(File::open(script).with_context(|| format!("open {}", script.display()))?)
        .stdout(Stdio::inherit())
        .status()
        .with_context(|| format!("start {}", program.display()))?;
    anyhow::ensure!(status.success(), "{} < {} failed: {status}", program.display(), script.display());
    writeln!(
        stdout(),
        "\nTo ask again: {} -box < {}\n\n{sql}",
        duckdb::shell(&program),
        duckdb::shell(script)
    )?;
    Ok(())
}

/// Asks the view `flow`, whatever is in it.
const BYTES_BY_PROTOCOL: &str = "\
.print
.print Bytes by protocol
SELECT protocol, sum(opened)::BIGINT AS connections, sum(src_packets + dst_packets)::BIGINT AS packets,
       formatReadableSize(sum(src_bytes + dst_bytes)::BIGINT) AS bytes
FROM flow GROUP BY protocol ORDER BY sum(src_bytes + dst_bytes) DESC;
";

/// The script; each statement after the view answers one question.
fn of_host(data: &Path, since: &str) -> String {
    let glob = glob(data);
    format!(
        "\
SET TimeZone = 'UTC';
CREATE TEMP VIEW flow AS
  SELECT *, coalesce(if(reporter = 'source', src_process, dst_process), '?') || CASE
           WHEN coalesce(src_cgroup, dst_cgroup) LIKE '%/weir-demo-%' THEN ' (demo)'
           WHEN coalesce(src_process, dst_process) IN ('weir', 'weir-shipper', 'weir-aggregator') THEN ' (Weir itself)'
           ELSE '' END AS process
  FROM read_parquet({glob}, hive_partitioning = true, union_by_name = true)
  WHERE kind = 'flow' AND \"primary\" AND end_time >= TIMESTAMPTZ '{since}';

.print Top talkers
SELECT process, if(reporter = 'source', 'to ' || dst_ip, 'from ' || src_ip) AS peer, dst_port AS port, protocol,
       sum(opened)::BIGINT AS connections,
       formatReadableSize(sum(if(reporter = 'source', src_bytes, dst_bytes))::BIGINT) AS sent,
       formatReadableSize(sum(if(reporter = 'source', dst_bytes, src_bytes))::BIGINT) AS received
FROM flow GROUP BY ALL ORDER BY sum(src_bytes + dst_bytes) DESC, process, peer, port LIMIT 10;

{BYTES_BY_PROTOCOL}
.print
.print Failed connections
SELECT process, dst_ip, dst_port, connect_error, count(*) AS times, max(end_time) AS last
FROM flow WHERE connect_error IS NOT NULL GROUP BY ALL ORDER BY times DESC, last LIMIT 10;
"
    )
}

/// Records of a capture file are never `primary`: which of two reports would count is not known. Each packet of the file
/// is in one record, so the replay's own records add up.
fn of_replay(data: &Path, flow_ids: &str) -> String {
    let (glob, flow_ids) = (glob(data), duckdb::literal(flow_ids));
    format!(
        "\
SET TimeZone = 'UTC';
-- The records of this replay alone. Each packet of the files is counted once where it was captured; one that was
-- captured at two interfaces is counted at both. \"primary\" is false on all of them.
CREATE TEMP VIEW flow AS
  SELECT * FROM read_parquet({glob}, hive_partitioning = true, union_by_name = true)
  WHERE kind = 'flow' AND time_quality = 'replayed' AND starts_with(flow_id::VARCHAR, {flow_ids});

.print What was replayed: each packet once where it was captured
SELECT coalesce(interface, '(unnamed)') AS interface, min(start_time) AS first, max(end_time) AS last,
       count(DISTINCT flow_id) AS flows, sum(src_packets + dst_packets)::BIGINT AS packets,
       formatReadableSize(sum(src_bytes + dst_bytes)::BIGINT) AS bytes
FROM flow GROUP BY ALL ORDER BY packets DESC, interface;

.print
.print Top talkers
SELECT src_ip, dst_ip, dst_port AS port, protocol, sum(opened)::BIGINT AS connections,
       formatReadableSize(sum(src_bytes)::BIGINT) AS sent, formatReadableSize(sum(dst_bytes)::BIGINT) AS received
FROM flow GROUP BY ALL ORDER BY sum(src_bytes + dst_bytes) DESC, src_ip, dst_ip, port LIMIT 10;

{BYTES_BY_PROTOCOL}
.print
.print Failed connections
SELECT src_ip, dst_ip, dst_port, connect_error, count(*) AS times, max(end_time) AS last
FROM flow WHERE connect_error IS NOT NULL GROUP BY ALL ORDER BY times DESC, last LIMIT 10;

.print
.print Servers by retransmissions
SELECT dst_ip, dst_port, sum(src_retransmits + dst_retransmits)::BIGINT AS retransmitted,
       (median(handshake_us) / 1000)::DECIMAL(12, 1) AS handshake_ms, (median(rtt_us) / 1000)::DECIMAL(12, 1) AS rtt_ms
FROM flow WHERE protocol = 'tcp' GROUP BY ALL HAVING retransmitted > 0 ORDER BY retransmitted DESC, dst_ip LIMIT 10;
"
    )
}

fn glob(data: &Path) -> String {
    duckdb::literal(&data.join("**/*.parquet").display().to_string())
}

/// Whether any file below the folder would match the glob.
fn has_parquet(folder: &Path) -> bool {
    let Ok(entries) = fs::read_dir(folder) else { return false };
    entries.flatten().any(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => has_parquet(&entry.path()),
        Ok(_) => entry.path().extension().is_some_and(|extension| extension == "parquet"),
        Err(_) => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parquet_files_are_found_at_any_depth() {
        let data = tempfile::tempdir().unwrap();
        assert!(!has_parquet(data.path()));
        fs::create_dir_all(data.path().join("kind=flow/hour=01")).unwrap();
        fs::write(data.path().join("kind=flow/hour=01/a.parquet.tmp"), "").unwrap();
        assert!(!has_parquet(data.path()));
        fs::write(data.path().join("kind=flow/hour=01/a.parquet"), "").unwrap();
        assert!(has_parquet(data.path()));
    }
}
