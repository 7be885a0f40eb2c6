#!/usr/bin/env bash
# Keeps what cargo compiled of other people's crates, for the next fresh clone: most of what `make test` compiles.
#
#   e2e/node/dependencies.sh restore   into target/, if this clone has none yet
#   e2e/node/dependencies.sh save      from target/, if they are not kept yet
set -euo pipefail
name=dependencies
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
cd "$here/../.."
target=${CARGO_TARGET_DIR:-target}
# The same crates, compiled in the same way by the same compiler.
kept=$cache/dependencies-$({ cat Cargo.lock Cargo.toml */Cargo.toml */*/Cargo.toml; rustc -vV; } | sha256sum | cut -c1-16)

lock "$name"
case ${1:-} in
restore)
    [ ! -e "$target/debug" ] && [ ! -e "$target/release" ] && [ -e "$kept" ] || exit 0
    say "taking the dependencies that were compiled before from $kept"
    # Whole or not at all: cargo would take half a file of an interrupted copy for the compiled crate.
    new=$target/dependencies.new
    rm -rf "$new"
    mkdir -p "$new"
    cp -a "$kept/." "$new/"
    mv "$new"/* "$target/"
    rmdir "$new"
    ;;
save)
    [ ! -e "$kept" ] || exit 0
    say "keeping the compiled dependencies in $kept"
    rm -rf "$cache"/dependencies-*
    new=$kept.new.$$
    trap 'rm -rf "$new"' EXIT
    mkdir -p "$new"
    # Without our own crates, which cargo compiles anew in each clone, and without programs, which are all ours.
    (cd "$target" && find debug release x86_64-unknown-linux-gnu \
        \( -name incremental -o -name examples -o -name '*cofferdam*' -o -path '*/deps/*' -type f ! -name '*.*' \) -prune -o \( -type f -o -type l \) -print0 |
        tar --null -T - -cf -) | tar -xf - -C "$new"
    mv -T "$new" "$kept"
    ;;
*) die "usage: dependencies.sh restore|save" ;;
esac
