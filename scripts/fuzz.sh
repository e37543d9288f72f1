#!/usr/bin/env bash
# Runs every fuzz target for a while: `make fuzz` (SECONDS_EACH=60, or TARGET=one to run only that one).
# A crash leaves its input in fuzz/artifacts and fails the run.
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"

"$root/scripts/setup.sh" ci
cd "$root"
targets=(fuzz/fuzz_targets/*.rs)
[ -e "${targets[0]}" ] || die "there is no target in fuzz/fuzz_targets"
for file in "${targets[@]}"; do
    target=$(basename "$file" .rs)
    [ -z "${TARGET:-}" ] || [ "$TARGET" = "$target" ] || continue
    say "fuzzing $target for ${SECONDS_EACH:-60} s"
    # New inputs go to the first folder, which is not committed; the second holds the seeds.
    mkdir -p "$cache/corpus/$target"
    seeds=()
    [ -d "fuzz/corpus/$target" ] && seeds=("fuzz/corpus/$target")
    # No sanitizer: what is fuzzed forbids unsafe code, and so the stable compiler does.
    cargo fuzz run --sanitizer none "$target" "$cache/corpus/$target" "${seeds[@]}" -- \
        -max_total_time="${SECONDS_EACH:-60}" -rss_limit_mb=2048 -verbosity=0 -print_final_stats=1 </dev/null
done
