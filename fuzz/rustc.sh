#!/usr/bin/env bash
# Compiles one crate of this repository with the coverage that libFuzzer reads. Cargo calls it for
# our own crates alone (RUSTC_WORKSPACE_WRAPPER), so that other people's are compiled once for the
# fuzzer and for everything else.
set -euo pipefail
case " $* " in
*" --crate-name build_script_"* | *" --crate-name ___ "*) exec "$@" ;;
# The daemon, mostly generated messages, takes minutes to optimize.
*" --crate-name cofferdam "*) optimize=0 ;;
*" --crate-name "*) optimize=1 ;;
*) exec "$@" ;;
esac
exec "$@" -Cpasses=sancov-module -Copt-level=$optimize -Cdebug-assertions=on -Coverflow-checks=on \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares
