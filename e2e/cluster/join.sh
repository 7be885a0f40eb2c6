#!/usr/bin/env bash
# Makes a running node VM a node of the cluster: its kubelet and kube-proxy start and it is Ready.
#
#   VM=name NODE=NAME,ADDRESS e2e/cluster/join.sh DIR BIN  with the certificates in DIR/pki and kubectl in BIN
#
# The API server is at 198.51.100.1:6443 for the node and its pods: an address of the node's loopback,
# from where the connection of e2e/node/vm leads to this machine. A node that booted again wants
# `e2e/cluster/join.sh --again`. ENDPOINT is another runtime's than Cofferdam's.
set -euo pipefail
cd "$(dirname "$0")"
vm=../node/vm
api() {
    "$vm" run 'ip addr show dev lo | grep -q 198.51.100.1 || ip addr add 198.51.100.1/32 dev lo'
    "$vm" reverse 198.51.100.1 6443
}
if [ "${1:-}" = --again ]; then api; exit; fi
dir=${1:?usage: join.sh DIR BIN} bin=${2:?usage: join.sh DIR BIN} node=${NODE%%,*}
kubectl() { "$bin/kubectl" --kubeconfig="$dir/pki/admin.conf" "$@"; }

api
files=$(mktemp -d)
trap 'rm -rf "$files"' EXIT
pki=$dir/pki
mkdir -p "$files/etc/kubernetes/"{pki,manifests} "$files/var/lib/kubelet"
cp "$pki/ca.crt" "$pki/$node/kubelet-server."{crt,key} "$files/etc/kubernetes/pki/"
cp "$pki/$node/"{kubelet,kube-proxy}.conf kube-proxy.yaml "$files/etc/kubernetes/"
sed "s#^containerRuntimeEndpoint: .*#containerRuntimeEndpoint: ${ENDPOINT:-unix:///run/cofferdam/cofferdam.sock}#" kubelet.yaml >"$files/var/lib/kubelet/config.yaml"
echo "KUBELET_KUBEADM_ARGS=\"--hostname-override=$node --node-ip=${NODE##*,}\"" >"$files/var/lib/kubelet/kubeadm-flags.env"
tar -C "$files" -cf - . | "$vm" run 'tar -C / --no-same-owner --no-overwrite-dir -xf -'
tar -cf - kubelet.service kube-proxy.service | "$vm" run 'tar -C /etc/systemd/system --no-same-owner -xf -'
"$vm" run 'systemctl daemon-reload; systemctl enable --quiet --now kubelet kube-proxy'

started=$SECONDS said=20
until [ "$(kubectl get node "$node" -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}' 2>/dev/null)" = True ]; do
    if ((SECONDS - started >= said)); then said=$((said + 20)); echo "[cluster] ... waiting for node $node, $((SECONDS - started)) s"; fi
    if ((SECONDS - started >= 600)); then
        "$vm" run 'journalctl -u kubelet -o cat --no-pager | tail -30' >&2
        echo "[cluster] failed: the node $node is not Ready after 600 s; its kubelet's journal is above" >&2
        exit 1
    fi
    sleep 0.3
done
echo "[cluster] the node $node is Ready, $((SECONDS - started)) s after its kubelet's start"
