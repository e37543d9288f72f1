# Sourced by the other scripts: where things are, and how root is had. Not a program of its own.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=$root/.cache
rust_minimum=1.95
duckdb_version=1.5.6
moto_version=5.2.5
cargo_deny_version=0.20.2
cargo_fuzz_version=0.13.2

# ip, nft and ethtool live in sbin, which an ordinary user's PATH lacks.
export PATH="$cache/tools/bin:$cache/rust/bin:${CARGO_HOME:-$HOME/.cargo}/bin:$PATH:/usr/local/sbin:/usr/sbin:/sbin"

have() { command -v "$1" >/dev/null 2>&1; }

say() { printf '%s\n' "$*" >&2; }

die() {
    say "error: $*"
    exit 1
}

# as_root COMMAND...: runs it as root, by sudo where we are not.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif have sudo; then
        sudo "$@"
    else
        die "needs root and there is no sudo: $*"
    fi
}

# rust_suffices RUSTC CARGO: whether both are there and new enough.
rust_suffices() {
    local version
    have "$2" || return 1
    version=$("$1" --version 2>/dev/null | sed -n 's/^rustc \([0-9]*\.[0-9]*\).*/\1/p')
    [ -n "$version" ] && [ "$(printf '%s\n%s\n' "$rust_minimum" "$version" | sort -V | head -n 1)" = "$rust_minimum" ]
}
