#!/usr/bin/env bash
# What a cluster has beside Kubernetes' own programs, built by Go's ordinary client: CoreDNS,
# metrics-server and kube-network-policies, from the versions that tools-*/go.mod pin. Prints the
# folder that holds them.
#
#   e2e/node/build-addons.sh
set -euo pipefail
name=addons
cd "$(dirname "$0")"
. ./lib.sh

out=$cache/addons-$(hash_of build-addons.sh tools-coredns tools-metrics-server tools-network-policies)
lock addons
if [ ! -d "$out" ]; then
    command -v go >/dev/null || die "Go is missing; install Go 1.26 or newer"
    rm -rf "$out.new"
    mkdir -p "$out.new"
    # program FOLDER PROGRAM PACKAGE
    program() { (cd "$1" && CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$out.new/$2" "$3"); }
    build() {
        program tools-coredns coredns . &&
            program tools-metrics-server metrics-server sigs.k8s.io/metrics-server/cmd/metrics-server &&
            program tools-network-policies kube-network-policies sigs.k8s.io/kube-network-policies/cmd
    }
    in_time "building CoreDNS, metrics-server and kube-network-policies (about 4 minutes)" "$cache/addons.log" build ||
        die "go build; is the Go module proxy reachable?"
    "$out.new/coredns" -version >&2
    mv "$out.new" "$out"
fi
echo "$out"
