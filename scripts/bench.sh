#!/usr/bin/env bash
# Measures speed: `make bench`. First whole processes (tests/integration/src/bench), then the crates' own benchmarks.
#
#   scripts/bench.sh                     everything
#   scripts/bench.sh pipeline recovery   these runs of weir-bench alone; its flags go here too
#
# BENCH_PROFILE=dev takes the build of the tests (with overflow checks) instead of the optimised one; the file of
# figures is BENCH_JSON (.cache/bench.json).
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"

cd "$root"
"$root/scripts/setup.sh" run
profile=${BENCH_PROFILE:-release}
json=${BENCH_JSON:-$cache/bench.json}
mkdir -p "$(dirname "$json")"
cargo build --locked --profile "$profile" --package weir-integration-tests --bins
built=${CARGO_TARGET_DIR:-$root/target}/${profile/#dev/debug}
WEIR_SCALE=${WEIR_SCALE:-soak} WEIR_LOG=${WEIR_LOG:-warn} "$built/weir-bench" --json "$json" "$@"
if [ $# = 0 ]; then
    cargo bench --locked --workspace --features weir-aggregator/crash-points --benches
fi
