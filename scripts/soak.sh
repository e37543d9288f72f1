#!/usr/bin/env bash
# Runs the tests at full size and writes docs/soak.md: `make soak`. A test reports its arithmetic by printing lines
# that begin with "SOAK ".
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"

log=$cache/soak.log
report=$root/docs/soak.md
started=$(date -u +%FT%TZ)
code=0
# One test at a time: what is measured must not compete with its neighbours.
WEIR_SCALE=soak WEIR_TEST_LOG=$log "$root/scripts/test.sh" --no-fail-fast -- --nocapture --test-threads=1 || code=$?

commit=$(git -C "$root" rev-parse HEAD)
[ -z "$(git -C "$root" status --porcelain --untracked-files=no)" ] || commit="$commit, with changes"
mkdir -p "$root/docs"
{
    echo '# Soak'
    echo
    echo 'Written by `make soak`: the tests at full size, with the sums that each of them checked.'
    echo
    echo '| | |'
    echo '|---|---|'
    echo "| commit | $commit |"
    echo "| from, to | $started, $(date -u +%FT%TZ) |"
    echo "| machine | $(nproc) × $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), $(awk '/^MemTotal/ { printf "%.0f GiB", $2 / 1048576 }' /proc/meminfo) |"
    echo "| kernel | $(uname -sr) |"
    echo "| compiler | $(rustc --version) |"
    echo "| result | $([ "$code" = 0 ] && echo passed || echo "**failed, exit code $code**") |"
    echo
    # Tests share the terminal with libtest, which may leave "test name ... " before the first word of a line.
    awk '/^     Running / { program = $2 == "unittests" ? $3 : $2 }
         match($0, /SOAK /) { if (program != shown) { if (shown != "") print "```\n"; print "## " program "\n\n```"; shown = program }
                              print substr($0, RSTART + 5) }
         END { print shown == "" ? "No test printed a sum." : "```" }' "$log"
} >"$report"
say "wrote ${report#"$root"/}"
exit "$code"
