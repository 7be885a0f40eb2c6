#!/usr/bin/env bash
# A Kubernetes cluster whose node runs Cofferdam, and something that uses it.
#
#   e2e/in-cluster.sh test [FILTER]   the tests of cofferdam-e2e cluster
#   e2e/in-cluster.sh short           a few of them, without add-ons: what `make test` runs
#   e2e/in-cluster.sh nodes           its tests that need two nodes, with two
#   e2e/in-cluster.sh installer       the tests of the installer, on a node whose kubelet uses containerd
#   e2e/in-cluster.sh bench           rows of docs/benchmarks.md: from kubectl apply to Ready
#   e2e/in-cluster.sh conformance vm|host|containerd [FOCUS]
#                                     Kubernetes' own tests of a node; containerd instead of
#                                     Cofferdam, to compare with
#   e2e/in-cluster.sh shell           a shell with kubectl; the cluster ends with it
#
# etcd, the API server, the controller manager and the scheduler run on this machine, the kubelet,
# kube-proxy and Cofferdam in a node VM.
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:?usage: e2e/in-cluster.sh test|short|nodes|installer|bench|conformance|shell}
shift
case $what in
test | short | nodes | bench | shell) ;;
installer) export RUNTIME=containerd ;;
conformance)
    handler=${1:-}
    case $handler in
    vm | host) ;;
    containerd) export RUNTIME=containerd ;;
    *) echo "conformance knows no handler '$handler': say HANDLER=vm, HANDLER=host or HANDLER=containerd" >&2; exit 2 ;;
    esac
    ;;
*) echo "unknown: $what; say test, short, nodes, installer, bench, conformance or shell" >&2; exit 2 ;;
esac
export VM=${VM:-cluster} REBOOTS=1
nodes=(node,10.0.2.15)
[ "$what" != nodes ] || nodes+=(node2,10.0.2.16)
# on NODE,ADDRESS COMMAND...: with the variables by which scripts know that node and its VM
on() {
    local name=${1%,*} address=${1#*,}
    shift
    VM=$VM${name#node} NODE=$name,$address FORWARD=$address:10250 "$@"
}
node=e2e/node/vm
dir=$PWD/target/cluster
product=target/product-$VM
say() { printf '\033[1m[cluster] %s\033[0m\n' "$*"; }

say "preparing the node's image and the programs of Kubernetes (15 minutes the first time, then cached in ${COFFERDAM_CACHE:-$HOME/.cache/cofferdam})"
e2e/node/build-image.sh >/dev/null
bin=$(e2e/node/build-kubernetes.sh)
addons=
case $what in short | installer) ;; *) addons=$(e2e/node/build-addons.sh) ;; esac
[ "$what" != conformance ] || conformance=$(e2e/node/build-conformance.sh)

. e2e/product.sh
if [ "$what" = installer ]; then
    # The node has no Cofferdam, but the configuration that an administrator puts there before.
    rm -rf "$product"
    install -D -m 644 e2e/node-config.toml "$product/etc/cofferdam/conf.d/50-e2e.toml"
    e2e/cluster/versions.sh target/cluster-versions "$product/var/lib/docker-registry"
else
    lay_out_product
fi
# With hairpinMode: a pod reaches itself through its own Service.
install -D -m 644 e2e/cluster/network.conflist "$product/etc/cni/net.d/00-cluster.conflist"
for program in kubelet kube-proxy; do install -D -m 755 "$bin/$program" "$product/usr/local/bin/$program"; done
for program in ${addons:+coredns/coredns networking/kube-network-policies}; do
    PYTHONDONTWRITEBYTECODE=1 e2e/cluster/add-image.py "$product/var/lib/docker-registry" "$program:lab" "$addons/${program#*/}"
done
[ "$what" != conformance ] || . e2e/conformance/product.sh

# The API server reaches a kubelet at its node's own address. Packets from that address itself would
# be dropped in the node, hence the source.
give_address() {
    ip addr show dev lo | grep -q "$1/32" || ip addr add "$1/32" dev lo
    ip route replace local "$1" dev lo table local proto kernel scope host src 127.0.0.1
}

finish() {
    local one
    e2e/cluster/control-plane.sh stop "$dir" || true
    for one in "${nodes[@]}"; do
        on "$one" "$node" stop >/dev/null 2>&1 || true
        ip addr del "${one#*,}/32" dev lo 2>/dev/null || true
    done
}
trap finish EXIT
rm -rf "$dir"
mkdir -p "$dir"
for one in "${nodes[@]}"; do give_address "${one#*,}"; done
e2e/cluster/certificates.sh "$dir/pki" "${nodes[@]/,/=}"
say "starting the node VM and the control plane"
for one in "${nodes[@]}"; do on "$one" "$node" start --product "$product"; done
e2e/cluster/control-plane.sh start "$dir" "$bin" ${addons:+"$addons"}
for one in "${nodes[@]}"; do
    on "$one" "$node" wait
    if [ "$what" = installer ]; then
        say "starting containerd and the kubelet"
        on "$one" "$node" run 'cp -a --no-preserve=ownership /product/. /'
    else
        say "installing Cofferdam in ${one%,*} and starting cofferdam.service and the kubelet"
        on "$one" install_product
    fi
    [ "$what" != conformance ] || on "$one" prepare_conformance
    on "$one" e2e/cluster/join.sh "$dir" "$bin"
done

export KUBECONFIG=$dir/pki/admin.conf PATH=$bin:$PATH
suite=${CARGO_TARGET_DIR:-target}/release/cofferdam-e2e
status=0
case $what in
test) "$suite" cluster --node "$node" ${1:+"$1"} || status=$? ;;
short) "$suite" cluster --node "$node" exec_cp,out_of_memory,jobs || status=$? ;;
nodes) "$suite" cluster --node "$node" --two-nodes || status=$? ;;
installer) "$suite" cluster --node "$node" --installer target/cluster-versions || status=$? ;;
bench) "$suite" cluster --node "$node" --bench "${ROUNDS:-5}" || status=$? ;;
conformance) NODE=${nodes[0]} e2e/conformance/run.sh "$handler" "$conformance" "${2:-}" || status=$? ;;
shell)
    say "kubectl speaks with the cluster; 'VM=$VM e2e/node/vm shell' is a shell on its node; leave this shell to end both"
    "${SHELL:-bash}" || true
    ;;
esac
if [ $status != 0 ]; then
    for one in "${nodes[@]}"; do
        for unit in cofferdam cofferdam-installer containerd kubelet kube-proxy; do
            on "$one" "$node" run "journalctl -u $unit -o short-precise --no-pager" >"$dir/${one%,*}-$unit.log" 2>&1 || true
        done
    done
    say "failed; the logs of every program of the cluster are in $dir"
fi
exit $status
