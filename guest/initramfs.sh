#!/usr/bin/env bash
# Packs the guest's initramfs: the agent as /init, the console, and the directories that it mounts on.
#
#   guest/initramfs.sh AGENT OUT
#
# The same agent makes the same bytes: fixed owners, times, inode numbers and order.
set -euo pipefail
agent=${1:?usage: guest/initramfs.sh AGENT OUT}
out=${2:?usage: guest/initramfs.sh AGENT OUT}
[ -f "$agent" ] || { echo "there is no agent at $agent" >&2; exit 1; }
if readelf -l "$agent" 2>/dev/null | grep -q INTERP; then
    echo "$agent is not static: build it with RUSTFLAGS='-C target-feature=+crt-static' and --target" >&2
    exit 1
fi

# One entry of a "newc" archive: NAME MODE(octal) NLINK RDEVMAJOR RDEVMINOR [FILE]. Written by hand, so that a device
# node needs no root.
inode=0
entry() {
    local name=$1 mode=$2 nlink=$3 major=$4 minor=$5 file=${6:-} size=0
    [ -z "$file" ] || size=$(stat -Lc %s "$file")
    inode=$((inode + 1))
    printf '070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x' \
        "$inode" "$((8#$mode))" 0 0 "$nlink" 0 "$size" 0 0 "$major" "$minor" $((${#name} + 1)) 0
    printf '%s\0' "$name"
    pad $((110 + ${#name} + 1))
    if [ -n "$file" ]; then
        cat "$file"
        pad "$size"
    fi
}
pad() { head -c $(((4 - $1 % 4) % 4)) /dev/zero; }

{
    entry dev 040755 2 0 0
    entry dev/console 020600 1 5 1
    entry init 0100755 1 0 0 "$agent"
    entry 'TRAILER!!!' 0 1 0 0
} >"$out.new"
mv "$out.new" "$out"
