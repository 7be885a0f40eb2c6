#!/usr/bin/env bash
# What `make test` runs in node VMs, in two lanes side by side, since a node in emulation leaves a processor idle for much of
# its time: the suite in one; critest with each handler, the kubelet and a short round in a cluster in
# the other. They take about as long. `make cluster-test` is the whole cluster.
#
#   e2e/everything.sh
set -euo pipefail
cd "$(dirname "$0")/.."
unset VM
# Made once, before the lanes would both make it.
e2e/node/build-image.sh >/dev/null

upstream() {
    local status=0
    e2e/in-node.sh critest host || { status=1; echo "[test] failed: critest host (make critest HANDLER=host)"; }
    e2e/in-node.sh critest vm || { status=1; echo "[test] failed: critest vm (make critest HANDLER=vm)"; }
    e2e/in-node.sh kubelet || { status=1; echo "[test] failed: the kubelet (make kubelet-smoke)"; }
    e2e/in-cluster.sh short || { status=1; echo "[test] failed: the short round in a cluster (e2e/in-cluster.sh short)"; }
    return $status
}

upstream &
lane=$!
trap 'kill $lane 2>/dev/null || true' EXIT
failed=()
e2e/in-node.sh test || failed+=("the suite (make e2e)")
wait $lane || failed+=("critest, the kubelet or the cluster, see above")
trap - EXIT
if [ ${#failed[@]} != 0 ]; then
    printf '[test] failed: %s\n' "${failed[@]}"
    exit 1
fi
echo "[test] the suite, critest with both handlers, the kubelet and the short round in a cluster passed"
