#!/usr/bin/env bash
# Runs DuckDB's command line, installing it first where it is missing; arguments go to it:
#
#   scripts/duckdb.sh -c "SELECT count(*) FROM read_parquet('data/**/*.parquet', hive_partitioning = true, union_by_name = true)"
#   scripts/duckdb.sh --inet -c "SELECT '10.0.0.1'::INET"    with the extension `inet` loaded, without the network
#
# WEIR_DUCKDB names another DuckDB to use.
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"

# DuckDB fetches extensions from its own server; PyPI has them too, `inet` last for this version.
duckdb_inet_version=1.5.5

main() {
    if [ "${1:-}" = --inet ]; then
        shift
        inet_venv
        local extension
        extension=$(find "$cache/venv-inet" -name inet.duckdb_extension | head -n 1)
        [ -n "$extension" ] || die "duckdb-extension-inet $duckdb_inet_version has no inet.duckdb_extension"
        exec "$cache/venv-inet/bin/duckdb" -cmd "LOAD '$extension'" "$@"
    fi
    if [ -z "${WEIR_DUCKDB:-}" ]; then
        [ -x "$cache/venv/bin/duckdb" ] || "$root/scripts/setup.sh" run
        WEIR_DUCKDB=$cache/venv/bin/duckdb
    fi
    exec "$WEIR_DUCKDB" "$@"
}

inet_venv() {
    local venv=$cache/venv-inet
    [ -e "$venv/complete" ] && return
    say "installing DuckDB $duckdb_inet_version with its extension inet into ${venv#"$root"/}"
    python3 -m venv --clear "$venv" || die "python3 could not make $venv"
    "$venv/bin/pip" --quiet --disable-pip-version-check install "duckdb==$duckdb_inet_version" \
        "duckdb-cli==$duckdb_inet_version" "duckdb-extension-inet==$duckdb_inet_version" >&2 ||
        die "pip could not install DuckDB's extension inet $duckdb_inet_version, which tests that addresses are addresses"
    touch "$venv/complete"
}

main "$@"
