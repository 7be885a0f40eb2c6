#!/usr/bin/env bash
# Runs a command while the node's image (and the Go programs of `make test`, if asked for) is made beside it: downloads and package scripts
# fit between compilations.
#
#   e2e/node/beside.sh [--with-tools] COMMAND...
set -euo pipefail
cd "$(dirname "$0")"
tools=
if [ "$1" = --with-tools ]; then
    tools=1
    shift
fi
log=${COFFERDAM_CACHE:-$HOME/.cache/cofferdam}/beside.log
mkdir -p "$(dirname "$log")"
build() {
    local disk
    disk=$(nice ./build-image.sh) || return
    [ -z "$tools" ] || { nice ./build-critest.sh "$disk" && nice ./build-kubernetes.sh; }
}
build >"$log" 2>&1 </dev/null &
image=$!
status=0
(cd ../.. && "$@") || status=$?
if [ $status = 0 ]; then
    if kill -0 $image 2>/dev/null; then echo "[beside] what is made beside it is not ready yet; its log so far, then the rest:" && tail -n 3 "$log"; fi
    # A failure shows its reason and what to do where it is started again, in front of everybody.
    wait $image || echo "[beside] what was made beside it failed; trying again"
else
    kill $image 2>/dev/null || true
fi
exit $status
