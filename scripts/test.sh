#!/usr/bin/env bash
# Runs every test of the workspace: `make test` (WEIR_SCALE=ci) and, through soak.sh, `make soak`.
# Arguments go to cargo test. The last line says how many passed.
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"

"$root/scripts/setup.sh" test
export WEIR_SCALE=${WEIR_SCALE:-ci}
export WEIR_DUCKDB=${WEIR_DUCKDB:-$cache/venv/bin/duckdb}
export WEIR_PYTHON=${WEIR_PYTHON:-$cache/venv/bin/python}

# Namespaces and the kernel's programs need root: only the test programs get it, not the build.
if [ "$(id -u)" != 0 ] && have sudo; then
    host=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
    export "CARGO_TARGET_${host}_RUNNER=sudo --preserve-env"
fi

log=${WEIR_TEST_LOG:-$cache/test.log}
mkdir -p "$(dirname "$log")"
cd "$root"
code=0
[ $# != 0 ] || set -- --no-fail-fast
cargo test --locked --workspace "$@" </dev/null 2>&1 | tee "$log" || code=$?

# Every test program ends with "test result: ok. 3 passed; 0 failed; 1 ignored; …".
awk '/^test result:/ { for (i = 1; i < NF; i++) { word = $(i + 1); sub(/;$/, "", word); count[word] += $i } }
     END { printf "%d passed, %d failed, %d ignored\n", count["passed"], count["failed"], count["ignored"]
           exit count["passed"] == 0 }' "$log" >"$log.count" || code=1
tee -a "$log" <"$log.count"
rm "$log.count"
exit "$code"
