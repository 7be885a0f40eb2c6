#!/usr/bin/env bash
# A real kubelet, by Go's ordinary client from the version that tools-kubelet/go.mod pins. Prints the folder that holds it.
#
#   e2e/node/build-kubelet.sh
#
# Apart from the other tools: those are built in one minute and change with the suites, this one takes several and does not.
set -euo pipefail
name=kubelet
cd "$(dirname "$0")"
. ./lib.sh

out=$cache/kubelet-$(hash_of build-kubelet.sh tools-kubelet)
lock kubelet
if [ ! -d "$out" ]; then
    command -v go >/dev/null || die "Go is missing; install Go 1.26 or newer"
    version=$(sed -n 's/^require k8s.io\/kubernetes v//p' tools-kubelet/go.mod)
    [ -n "$version" ] || die "tools-kubelet/go.mod has no line 'require k8s.io/kubernetes vX.Y.Z'"
    # Without its stamp a kubelet says that it is v0.0.0.
    stamp=k8s.io/component-base/version
    flags="-s -w -X $stamp.gitVersion=v$version -X $stamp.gitMajor=${version%%.*} -X $stamp.gitMinor=$(cut -d. -f2 <<<"$version")"
    rm -rf "$out.new"
    mkdir -p "$out.new"
    build() { cd tools-kubelet && CGO_ENABLED=0 go build -trimpath -ldflags "$flags" -o "$out.new/kubelet" k8s.io/kubernetes/cmd/kubelet; }
    in_time "building kubelet $version (about 3 minutes)" "$cache/kubelet.log" build || die "go build; is the Go module proxy reachable?"
    "$out.new/kubelet" --version >&2
    mv "$out.new" "$out"
fi
echo "$out"
