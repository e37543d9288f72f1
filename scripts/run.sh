#!/usr/bin/env bash
# Builds Weir and runs it on this host: `make run`.
#
#   DURATION=20   stop after that many seconds; without it, on Ctrl-C
#   PCAP=FILE     read a capture file instead of this host, without root
#   DEMO=0        without the two demo hosts
#   DATA=./data   where the Parquet files go
#   PROFILE=dev   a cargo profile that builds faster
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"

profile=${PROFILE:-release}
target=${CARGO_TARGET_DIR:-$root/target}
[ "$profile" = dev ] && folder=debug || folder=$profile

"$root/scripts/setup.sh" run
cargo build --locked --manifest-path "$root/Cargo.toml" --profile "$profile" --package weir

arguments=(up --data "${DATA:-$root/data}")
# Reading a file needs no privileges.
[ -n "${PCAP:-}" ] && exec "$target/$folder/weir" "${arguments[@]}" --pcap "$PCAP"
[ -n "${DURATION:-}" ] && arguments+=(--duration "$DURATION")
[ "${DEMO:-1}" = 0 ] && arguments+=(--no-demo)

# Loading programs into the kernel needs root; building did not.
if [ "$(id -u)" = 0 ]; then
    exec "$target/$folder/weir" "${arguments[@]}"
fi
have sudo || die "capturing needs root, and there is no sudo: run 'make run' as root"
say "capturing needs root: asking sudo"
exec sudo --preserve-env=NO_COLOR,WEIR_LOG "$target/$folder/weir" "${arguments[@]}"
