#!/usr/bin/env bash
# Installs what is missing on Debian 12 (or says what to install elsewhere), and is quick when nothing is.
#
#   scripts/setup.sh [run]    what building and `weir up` need (the default)
#   scripts/setup.sh test     also what the tests need
#   scripts/setup.sh kernels  also what `make test-kernels` needs: an emulator
#   scripts/setup.sh ci       all of that, and what .ci/run needs: linters, fuzzer
#
# Downloads go to .cache in the checkout; only Debian's packages are installed into the system.
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"

main() {
    local level=${1:-run}
    case $level in
    run | test | kernels | ci) ;;
    *) die "unknown level '$level': run, test, kernels or ci" ;;
    esac
    packages "$level"
    rust "$level"
    duckdb_venv
    [ "$level" = run ] || moto_venv
    if [ "$level" = ci ]; then
        cargo_tool cargo-deny "$cargo_deny_version" "checks licences and sources of dependencies"
        cargo_tool cargo-fuzz "$cargo_fuzz_version" "runs the fuzz targets"
    fi
}

# level|command|Debian package|why
needs='run|cc|build-essential|links Rust programs and compiles zstd
run|ip|iproute2|reads the addresses of this host and makes the demo'"'"'s network
run|python3|python3|runs the installer of DuckDB
test|nft|nftables|counts packets independently in the tests, and makes their NAT
test|iperf3|iperf3|loads the capture in the tests
test|ethtool|ethtool|switches segmentation offload off, so that counters are comparable
test|tshark|tshark|computes what a replay of captures must give
test|tcpdump|tcpdump|captures the traffic that a replay is compared with
test|sysctl|procps|sets forwarding in the tests'"'"' own namespaces
kernels|qemu-system-x86_64|qemu-system-x86|boots other kernels
kernels|busybox|busybox-static|is the guests'"'"' shell
kernels|cpio|cpio|packs the guests'"'"' file systems
kernels|xz|xz-utils|unpacks their modules
ci|git|git|names the commit in reports'

packages() {
    local missing=() reasons='' level command package why
    while IFS='|' read -r level command package why; do
        wanted "$level" "$1" || continue
        have "$command" && continue
        missing+=("$package")
        reasons+="  $package ($command): $why"$'\n'
    done <<<"$needs"
    if have python3 && ! python3 -c 'import venv, ensurepip' 2>/dev/null; then
        missing+=(python3-venv)
        reasons+='  python3-venv: a place of its own for DuckDB'$'\n'
    elif ! have python3; then
        missing+=(python3-venv)
    fi
    # Without certificates neither crates.io nor PyPI can be reached.
    if [ ! -e /etc/ssl/certs/ca-certificates.crt ]; then
        missing+=(ca-certificates)
        reasons+='  ca-certificates: to download crates over TLS'$'\n'
    fi
    [ ${#missing[@]} = 0 ] && return
    say "installing:"$'\n'"${reasons%$'\n'}"
    apt_install "${missing[@]}"
}

wanted() {
    case $2 in
    run) [ "$1" = run ] ;;
    test) [ "$1" = run ] || [ "$1" = test ] ;;
    kernels) [ "$1" != ci ] ;;
    ci) true ;;
    esac
}

apt_install() {
    have apt-get || die "this is not Debian: install these yourself: $*"
    local log=$cache/apt.log
    mkdir -p "$cache"
    # A fresh image has no package lists at all.
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q update </dev/null >"$log" 2>&1 &&
        as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install "$@" \
            </dev/null >>"$log" 2>&1 || {
        tail -n 20 "$log" >&2
        die "apt-get could not install: $*"
    }
}

# A cargo on PATH that is new enough is used as it is. Otherwise Debian's own: bookworm's rustc is too old, but its
# security archive carries a current one for building browsers.
rust() {
    if ! rust_suffices rustc cargo; then
        rust_suffices /usr/bin/rustc /usr/bin/cargo || {
            say "installing Rust from Debian (no cargo >= $rust_minimum on PATH)"
            apt_install rustc-web cargo-web
        }
        rust_suffices /usr/bin/rustc /usr/bin/cargo ||
            die "Rust >= $rust_minimum is needed to build Weir; $(/usr/bin/rustc --version 2>&1) is too old. Install it from https://rustup.rs"
        mkdir -p "$cache/rust/bin"
        local tool
        for tool in cargo rustc rustdoc rustfmt; do
            [ -x "/usr/bin/$tool" ] && ln -sf "/usr/bin/$tool" "$cache/rust/bin/$tool"
        done
    fi
    if [ "$1" = ci ]; then
        # Debian's compiler comes without these; rustup's has them.
        if [ -e "$cache/rust/bin/cargo" ] && ! [ -x /usr/bin/cargo-clippy ]; then
            apt_install rustfmt-web rust-web-clippy
            for tool in rustfmt cargo-fmt cargo-clippy clippy-driver; do
                [ -x "/usr/bin/$tool" ] && ln -sf "/usr/bin/$tool" "$cache/rust/bin/$tool"
            done
        fi
        cargo fmt --version >/dev/null 2>&1 || die "rustfmt is missing, which checks the layout: rustup component add rustfmt (Debian: rustfmt-web)"
        cargo clippy --version >/dev/null 2>&1 || die "clippy is missing, which lints: rustup component add clippy (Debian: rust-web-clippy)"
    fi
}

# DuckDB computes the summary of `weir up` and reads files back in the tests.
duckdb_venv() {
    local venv=$cache/venv
    if [ "$("$venv/bin/duckdb" --version 2>/dev/null | cut -d' ' -f1)" = "v$duckdb_version" ] &&
        "$venv/bin/python" -c "import duckdb; assert duckdb.__version__ == '$duckdb_version'" 2>/dev/null; then
        return
    fi
    say "installing DuckDB $duckdb_version into ${venv#"$root"/}"
    python3 -m venv --clear "$venv" || die "python3 could not make $venv"
    "$venv/bin/pip" --quiet --disable-pip-version-check install \
        "duckdb==$duckdb_version" "duckdb-cli==$duckdb_version" ||
        die "pip could not install DuckDB $duckdb_version, which computes the summary and reads files back in the tests"
}

# An S3 server for the tests, beside DuckDB.
moto_venv() {
    local venv=$cache/venv
    "$venv/bin/python" -c "import moto.server, boto3; assert moto.__version__ == '$moto_version'" 2>/dev/null && return
    say "installing the S3 server moto $moto_version into ${venv#"$root"/}"
    "$venv/bin/pip" --quiet --disable-pip-version-check install "moto[s3]==$moto_version" flask flask-cors ||
        die "pip could not install moto $moto_version, which the tests of object stores write to"
}

# cargo_tool NAME VERSION WHY
cargo_tool() {
    [ "$("$cache/tools/bin/$1" --version 2>/dev/null | awk '{print $NF}')" = "$2" ] && return
    say "installing $1 $2, which $3"
    cargo install --quiet --locked --root "$cache/tools" "$1" --version "$2" </dev/null ||
        die "cargo could not install $1 $2, which $3"
}

main "$@"
