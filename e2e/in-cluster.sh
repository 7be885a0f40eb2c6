#!/usr/bin/env bash
# A Kubernetes cluster whose only node runs Cofferdam, and something that uses it.
#
#   e2e/in-cluster.sh test [FILTER]   the tests of cofferdam-e2e cluster
#   e2e/in-cluster.sh conformance vm|host|containerd [FOCUS]
#                                     Kubernetes' own tests of a node; containerd instead of
#                                     Cofferdam, to compare with
#   e2e/in-cluster.sh shell           a shell with kubectl; the cluster ends with it
#
# etcd, the API server, the controller manager and the scheduler run on this machine, the kubelet,
# kube-proxy and Cofferdam in a node VM.
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:?usage: e2e/in-cluster.sh test|conformance|shell}
shift
case $what in
test | shell) ;;
conformance)
    handler=${1:-}
    case $handler in
    vm | host | containerd) ;;
    *) echo "conformance knows no handler '$handler': say HANDLER=vm, HANDLER=host or HANDLER=containerd" >&2; exit 2 ;;
    esac
    ;;
*) echo "unknown: $what; say test, conformance or shell" >&2; exit 2 ;;
esac
export VM=${VM:-cluster} NODE=node,10.0.2.15 FORWARD=10.0.2.15:10250 REBOOTS=1
node=e2e/node/vm
dir=$PWD/target/cluster
product=target/product-$VM
say() { printf '\033[1m[cluster] %s\033[0m\n' "$*"; }

say "preparing the node's image and the programs of Kubernetes (15 minutes the first time, then cached in ${COFFERDAM_CACHE:-$HOME/.cache/cofferdam})"
e2e/node/build-image.sh >/dev/null
bin=$(e2e/node/build-kubernetes.sh)
addons=$(e2e/node/build-addons.sh)
[ "$what" != conformance ] || conformance=$(e2e/node/build-conformance.sh)

. e2e/product.sh
lay_out_product
# With hairpinMode: a pod reaches itself through its own Service.
install -D -m 644 e2e/cluster/network.conflist "$product/etc/cni/net.d/00-cluster.conflist"
for program in kubelet kube-proxy; do install -D -m 755 "$bin/$program" "$product/usr/local/bin/$program"; done
PYTHONDONTWRITEBYTECODE=1 e2e/cluster/add-image.py "$product/var/lib/docker-registry" coredns/coredns:lab "$addons/coredns"
[ "$what" != conformance ] || . e2e/conformance/product.sh

# The API server reaches the kubelet at the node's own address. Packets from that address itself would
# be dropped in the node, hence the source.
address() {
    ip addr show dev lo | grep -q 10.0.2.15/32 || ip addr add 10.0.2.15/32 dev lo
    ip route replace local 10.0.2.15 dev lo table local proto kernel scope host src 127.0.0.1
}

finish() {
    e2e/cluster/control-plane.sh stop "$dir" || true
    "$node" stop >/dev/null 2>&1 || true
    ip addr del 10.0.2.15/32 dev lo 2>/dev/null || true
}
trap finish EXIT
rm -rf "$dir"
mkdir -p "$dir"
address
e2e/cluster/certificates.sh "$dir/pki" node=10.0.2.15
say "starting the node VM and the control plane"
"$node" start --product "$product"
e2e/cluster/control-plane.sh start "$dir" "$bin" "$addons"
"$node" wait
say "installing Cofferdam in the node and starting cofferdam.service and the kubelet"
install_product
[ "$what" != conformance ] || prepare_conformance
e2e/cluster/join.sh "$dir" "$bin"

export KUBECONFIG=$dir/pki/admin.conf PATH=$bin:$PATH
status=0
case $what in
test) "${CARGO_TARGET_DIR:-target}/release/cofferdam-e2e" cluster --node "$node" ${1:+"$1"} || status=$? ;;
conformance) e2e/conformance/run.sh "$handler" "$conformance" "${2:-}" || status=$? ;;
shell)
    say "kubectl speaks with the cluster; 'VM=$VM e2e/node/vm shell' is a shell on its node; leave this shell to end both"
    "${SHELL:-bash}" || true
    ;;
esac
if [ $status != 0 ]; then
    for unit in cofferdam containerd kubelet kube-proxy; do "$node" run "journalctl -u $unit -o short-precise --no-pager" >"$dir/$unit.log" 2>&1 || true; done
    say "failed; the logs of every program of the cluster are in $dir"
fi
exit $status
