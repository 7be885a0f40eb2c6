#!/usr/bin/env bash
# The Go programs that the suites use (crictl), by Go's ordinary client from the versions that tools/go.mod pins. Prints
# the name of the folder that holds them.
#
#   e2e/node/build-tools.sh
set -euo pipefail
name=tools
cd "$(dirname "$0")"
. ./lib.sh

out=$cache/tools-$(hash_of build-tools.sh tools)
lock tools
if [ ! -d "$out" ]; then
    command -v go >/dev/null || die "Go is missing; install Go 1.26 or newer"
    rm -rf "$out.new"
    mkdir -p "$out.new"
    build() { cd tools && CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$out.new/crictl" sigs.k8s.io/cri-tools/cmd/crictl; }
    in_time "building crictl (about 1 minute)" "$cache/tools.log" build || die "go build; is the Go module proxy reachable?"
    "$out.new/crictl" --version >&2
    mv "$out.new" "$out"
fi
echo "$out"
