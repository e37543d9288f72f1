#!/usr/bin/env bash
# Runs every benchmark of the workspace: `make bench`. Arguments go to the benchmarks.
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"

cd "$root"
benches=(*/benches/*.rs)
[ -e "${benches[0]}" ] || die "there is no benchmark yet"
"$root/scripts/setup.sh" run
say "$(git rev-parse --short HEAD 2>/dev/null || echo 'no commit'), $(nproc) × $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), $(uname -sr), $(rustc --version)"
cargo bench --locked --workspace --features weir-aggregator/crash-points --benches -- "$@"
