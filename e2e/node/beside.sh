#!/usr/bin/env bash
# Runs a command while the node's image is made beside it: downloads and package scripts fit between compilations.
#
#   e2e/node/beside.sh COMMAND...
set -euo pipefail
cd "$(dirname "$0")"
log=${COFFERDAM_CACHE:-$HOME/.cache/cofferdam}/beside.log
mkdir -p "$(dirname "$log")"
nice ./build-image.sh >"$log" 2>&1 </dev/null &
image=$!
status=0
(cd ../.. && "$@") || status=$?
if [ $status = 0 ]; then
    if kill -0 $image 2>/dev/null; then echo "[beside] the node's image is not ready yet; its log so far, then the rest:" && tail -n 3 "$log"; fi
    # A failure shows its reason and what to do where it is started again, in front of everybody.
    wait $image || echo "[beside] the node's image failed; trying again"
else
    kill $image 2>/dev/null || true
fi
exit $status
