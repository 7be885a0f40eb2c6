#!/usr/bin/env bash
# The programs of a Kubernetes cluster, built by Go's ordinary client from the versions that
# tools-kubernetes/go.mod pins. Prints the folder that holds them.
#
#   e2e/node/build-kubernetes.sh kubelet    the kubelet alone, for the kubelet's smoke test
#   e2e/node/build-kubernetes.sh            that, and all that a cluster needs
#
# They are built apart from crictl and critest, which are built in a minute and change with the
# suites: these take minutes and do not change.
set -euo pipefail
name=kubernetes
cd "$(dirname "$0")"
. ./lib.sh

only=${1:-}
out=$cache/kubernetes-$(hash_of build-kubernetes.sh tools-kubernetes)
programs=(kubelet)
[ "$only" = kubelet ] || programs+=(kube-apiserver kube-controller-manager kube-proxy kube-scheduler kubectl etcd)

# Without this stamp a program says that it is of version v0.0.0.
version=$(sed -n 's/^\tk8s.io\/kubernetes v//p' tools-kubernetes/go.mod)
[ -n "$version" ] || die "tools-kubernetes/go.mod does not require k8s.io/kubernetes vX.Y.Z"
stamp=k8s.io/component-base/version
flags="-s -w -X $stamp.gitVersion=v$version -X $stamp.gitMajor=${version%%.*} -X $stamp.gitMinor=$(cut -d. -f2 <<<"$version")"

build() {
    local package=k8s.io/kubernetes/cmd/$1
    [ "$1" != etcd ] || package=go.etcd.io/etcd/server/v3
    cd tools-kubernetes
    CGO_ENABLED=0 go build -trimpath -ldflags "$flags" -o "$out/$1.new" "$package" && mv "$out/$1.new" "$out/$1"
}

lock kubernetes
mkdir -p "$out"
for program in "${programs[@]}"; do
    [ ! -x "$out/$program" ] || continue
    command -v go >/dev/null || die "Go is missing; install Go 1.26 or newer"
    in_time "building $program (the kubelet takes about 3 minutes, the others 1 each)" "$cache/kubernetes.log" build "$program" ||
        die "go build of $program; is the Go module proxy reachable?"
    "$out/$program" --version >&2 2>/dev/null || "$out/$program" version --client >&2
done
echo "$out"
