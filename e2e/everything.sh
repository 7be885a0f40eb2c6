#!/usr/bin/env bash
# What `make test` runs in node VMs, in two lanes side by side, since a node in emulation leaves a processor idle for much of
# its time: the suite and then the kubelet in one, critest with each handler in the other.
#
#   e2e/everything.sh
set -euo pipefail
cd "$(dirname "$0")/.."
unset VM
# Made once, before the lanes would both make it.
e2e/node/build-image.sh >/dev/null

critest() {
    local status=0
    e2e/in-node.sh critest host || status=$?
    e2e/in-node.sh critest vm || status=$?
    return $status
}

critest &
lane=$!
trap 'kill $lane 2>/dev/null || true' EXIT
failed=()
e2e/in-node.sh test || failed+=("the suite (make e2e)")
e2e/in-node.sh kubelet || failed+=("the kubelet (make kubelet-smoke)")
wait $lane || failed+=("critest (make critest)")
trap - EXIT
if [ ${#failed[@]} != 0 ]; then
    printf '[test] failed: %s\n' "${failed[@]}"
    exit 1
fi
echo "[test] the suite, the kubelet and critest with both handlers passed"
