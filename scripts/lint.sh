#!/usr/bin/env bash
# Layout and lints, and the dependencies' licences and sources: `make lint`.
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"

"$root/scripts/setup.sh" ci
cd "$root"
cargo fmt --all --check
cargo clippy --locked --workspace --all-targets -- -D warnings
cargo deny --locked check --hide-inclusion-graph bans licenses sources
