#!/usr/bin/env bash
# A cluster's control plane as ordinary processes of this machine: only the nodes are emulated.
#
#   e2e/cluster/control-plane.sh start DIR BIN [ADDONS]   with the certificates in DIR/pki and the
#                                                         programs in the folders BIN and ADDONS
#   e2e/cluster/control-plane.sh stop DIR
#
# The API server listens on 127.0.0.1:6443 and tells pods that it is at 198.51.100.1:6443, where join.sh
# makes each node find it. Logs are in DIR.
set -euo pipefail
verb=${1:?usage: control-plane.sh start DIR BIN [ADDONS] | stop DIR}
dir=${2:?the folder is missing}
cd "$(dirname "$0")"
say() { printf '[cluster] %s\n' "$*"; }

# run PROGRAM ARGUMENT...: a program in the background
run() {
    local path=$1 program=${1##*/}
    shift
    setsid "$path" "$@" >"$dir/$program.log" 2>&1 </dev/null &
    echo "$! $program" >>"$dir/processes"
}

# until_true WHAT PROGRAM COMMAND...: waits, and fails with the program's log if it ends first
until_true() {
    local what=$1 program=$2 started=$SECONDS said=20
    shift 2
    until "$@" >/dev/null 2>&1; do
        if ! kill -0 "$(awk -v p="$program" '$2 == p {print $1}' "$dir/processes")" 2>/dev/null; then
            tail -n 20 "$dir/$program.log" >&2
            echo "[cluster] failed: $program ended before $what; its log is $dir/$program.log" >&2
            exit 1
        fi
        if ((SECONDS - started >= said)); then said=$((said + 20)); say "... waiting for $what, $((SECONDS - started)) s"; fi
        sleep 0.2
    done
}

start() {
    local bin=${3:?the folder of programs is missing} addons=${4:-}
    local pki=$dir/pki etcd=http://127.0.0.1:2379 peer=http://127.0.0.1:2380
    : >"$dir/processes"
    rm -rf "$dir/etcd"
    run "$bin/etcd" --name=lab --data-dir="$dir/etcd" --listen-client-urls=$etcd --advertise-client-urls=$etcd \
        --listen-peer-urls=$peer --initial-advertise-peer-urls=$peer --initial-cluster=lab=$peer \
        --unsafe-no-fsync --log-level=warn
    run "$bin/kube-apiserver" --etcd-servers=$etcd --bind-address=127.0.0.1 --secure-port=6443 \
        --advertise-address=198.51.100.1 --service-cluster-ip-range=10.96.0.0/16 \
        --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" \
        --client-ca-file="$pki/ca.crt" --kubelet-certificate-authority="$pki/ca.crt" \
        --kubelet-client-certificate="$pki/apiserver-kubelet-client.crt" \
        --kubelet-client-key="$pki/apiserver-kubelet-client.key" \
        --kubelet-preferred-address-types=InternalIP --allow-privileged=true \
        --service-account-issuer=https://kubernetes.default.svc.cluster.local \
        --service-account-key-file="$pki/sa.pub" --service-account-signing-key-file="$pki/sa.key" \
        --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
        --requestheader-client-ca-file="$pki/ca.crt" --requestheader-allowed-names=front-proxy-client \
        --requestheader-username-headers=X-Remote-User --requestheader-group-headers=X-Remote-Group \
        --requestheader-extra-headers-prefix=X-Remote-Extra- --enable-aggregator-routing=true \
        --proxy-client-cert-file="$pki/front-proxy-client.crt" --proxy-client-key-file="$pki/front-proxy-client.key"
    say "the API server starts"
    until_true "the API server's readiness" kube-apiserver "$bin/kubectl" --kubeconfig="$pki/admin.conf" get --raw /readyz
    run "$bin/kube-controller-manager" --kubeconfig="$pki/controller-manager.conf" --leader-elect=false \
        --use-service-account-credentials=false --service-account-private-key-file="$pki/sa.key" \
        --root-ca-file="$pki/ca.crt" --bind-address=127.0.0.1 --node-monitor-grace-period=120s \
        --kube-api-qps=50 --kube-api-burst=100
    run "$bin/kube-scheduler" --kubeconfig="$pki/scheduler.conf" --leader-elect=false --bind-address=127.0.0.1
    [ -z "$addons" ] || start_addons "$bin" "$addons"
    until_true "the first service account" kube-controller-manager "$bin/kubectl" --kubeconfig="$pki/admin.conf" get serviceaccount default
    say "the control plane is up"
}

# start_addons BIN ADDONS: metrics-server beside the API server, CoreDNS in the cluster
start_addons() {
    local bin=$1 addons=$2 pki=$dir/pki
    # kubectl top: the API server asks it at an address that is not the loopback's.
    ip addr show dev lo | grep -q 198.51.100.2/32 || ip addr add 198.51.100.2/32 dev lo
    run "$addons/metrics-server" --kubeconfig="$pki/admin.conf" --authentication-kubeconfig="$pki/admin.conf" \
        --authorization-kubeconfig="$pki/admin.conf" --bind-address=198.51.100.2 --secure-port=4443 \
        --cert-dir="$dir/metrics-server" --kubelet-preferred-address-types=InternalIP --kubelet-certificate-authority="$pki/ca.crt" --metric-resolution=15s
    "$bin/kubectl" --kubeconfig="$pki/admin.conf" apply -f addons >/dev/null
}

stop() {
    [ -f "$dir/processes" ] || return 0
    local pid program
    tac "$dir/processes" | while read -r pid program; do
        kill "$pid" 2>/dev/null || continue
        timeout 30 tail -s 0.1 --pid="$pid" -f /dev/null || { say "$program does not end; killing it"; kill -KILL "$pid"; }
    done
    rm -f "$dir/processes"
    ip addr del 198.51.100.2/32 dev lo 2>/dev/null || true
}

case $verb in
start | stop) "$verb" "$@" ;;
*) echo "unknown: $verb" >&2; exit 2 ;;
esac
