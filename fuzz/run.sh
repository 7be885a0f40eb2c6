#!/usr/bin/env bash
# Fuzzes each target for FUZZ_SECONDS (60), or the one that TARGET names, guided by coverage.
#
#   fuzz/run.sh            what brings coverage is kept in target/fuzz/NAME, crashes in target/fuzz
#   fuzz/run.sh --merge    puts what brings coverage into fuzz/corpus
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${FUZZ_SECONDS:-60}
out=${CARGO_TARGET_DIR:-target}/fuzz
mkdir -p "$out"
out=$(cd "$out" && pwd)

# Debug assertions and overflow checks are on in this profile. The compiled dependencies are those
# of `cargo test --workspace`.
build() {
    RUSTC_WORKSPACE_WRAPPER=$PWD/fuzz/rustc.sh CARGO_INCREMENTAL=0 cargo test --quiet --locked --workspace --no-run \
        --features cofferdam-fuzz/libfuzzer --test libfuzzer --message-format json "$@" |
        sed -n 's/.*"executable":"\([^"]*libfuzzer[^"]*\)".*/\1/p' | tail -n 1
}

fuzzer=$(build)
[ -x "$fuzzer" ] || { echo "the fuzzer was not built"; exit 1; }
# Threads of file servers and disks are not the fuzzer's to wait for; a unit that hangs is a fault.
options=(-timeout=20 -rss_limit_mb=2048 -print_final_stats=1)
failed=()
for corpus in fuzz/corpus/*/; do
    name=$(basename "$corpus")
    [ -z "${TARGET:-}" ] || [ "$TARGET" = "$name" ] || continue
    export COFFERDAM_FUZZ_TARGET=$name
    mkdir -p "$out/$name"
    if [ "${1:-}" = --merge ]; then
        "$fuzzer" -merge=1 "${options[@]}" "$PWD/$corpus" "$out/$name" >"$out/$name.merge" 2>&1 || failed+=("$name")
        continue
    fi
    echo "[fuzz] $name for $seconds s"
    if ! "$fuzzer" -max_total_time="$seconds" "${options[@]}" -artifact_prefix="$out/$name-" \
        "$out/$name" "$PWD/$corpus" >"$out/$name.log" 2>&1; then
        failed+=("$name")
        tail -n 40 "$out/$name.log"
    fi
    grep -E '^#[0-9]+.*(DONE|pulse|NEW|REDUCE|INITED)' "$out/$name.log" | tail -n 1
done
if [ ${#failed[@]} != 0 ]; then
    printf '[fuzz] failed: %s\n' "${failed[*]}"
    exit 1
fi
