#!/usr/bin/env bash
# Kubernetes' own tests of a node, built by Go's ordinary client from the version that
# tools-conformance/go.mod pins, and the images that they pull. Prints the folder that holds them.
#
#   e2e/node/build-conformance.sh
#
# The registries of those images cannot be reached from here, so the images are our own, under the
# names that the specs pull: Kubernetes' agnhost, whose source is in the same module, busybox, and a
# few programs of Debian's from the node's root file system (../conformance/images.py).
set -euo pipefail
name=conformance
cd "$(dirname "$0")"
. ./lib.sh

root=$(./build-root.sh)
busybox=$(./build-busybox.sh)

out=$cache/conformance-$(printf '%s\n' "$root" "$busybox" |
    cat - <(hash_of build-conformance.sh tools-conformance programs registry.py ../conformance/images.py) | sha256sum | cut -c1-16)
lock conformance
if [ ! -d "$out" ]; then
    command -v go >/dev/null || die "Go is missing; install Go 1.26 or newer"
    new=$out.new
    rm -rf "$new"
    mkdir -p "$new/programs"
    version=$(sed -n 's/^\tk8s.io\/kubernetes v//p' tools-conformance/go.mod)
    [ -n "$version" ] || die "tools-conformance/go.mod does not require k8s.io/kubernetes vX.Y.Z"
    # Without this stamp the tests say that they are of version v0.0.0.
    flags="-s -w -X k8s.io/component-base/version.gitVersion=v$version"
    build() {
        cd tools-conformance
        export CGO_ENABLED=0
        go test -c -vet=off -trimpath -ldflags "$flags" -o "$new/e2e_node.test" k8s.io/kubernetes/test/e2e_node
        go build -trimpath -ldflags '-s -w' -o "$new/ginkgo" github.com/onsi/ginkgo/v2/ginkgo
        go build -trimpath -ldflags "$flags" -o "$new/programs/agnhost" k8s.io/kubernetes/test/images/agnhost
        go build -trimpath -ldflags '-s -w' -o "$new/programs/nnp" k8s.io/kubernetes/test/images/nonewprivs
        # agnhost serves files that are no Go: they lie beside its source.
        cp "$(go list -f '{{.Dir}}' k8s.io/kubernetes/test/images/agnhost/porter)"/localhost.* "$new/programs/"
    }
    in_time "building e2e_node.test $version and agnhost (about 5 minutes)" "$cache/conformance.log" build ||
        die "go build; is the Go module proxy reachable?"
    for program in web pause; do
        gcc -Os -static -s -o "$new/programs/$program" "programs/$program.c" || die "cannot compile $program.c; run e2e/node/setup-host.sh"
    done
    # The specs' shell scripts want these three beside busybox, with the libraries that they load.
    debian() {
        chroot "$root" ldd /usr/bin/bash /usr/bin/curl /usr/bin/hostname | awk '$2 == "=>" {print $3} $1 ~ "^/.*ld-linux" {print $1}' | LC_ALL=C sort -u
    }
    debian >"$new/libraries"
    in_time "making the images that the tests pull" "$cache/conformance-images.log" \
        python3 -B ../conformance/images.py "$busybox" "$new/programs" "$root" "$new/libraries" "$new/registry" "$new/images" || die "images.py"
    rm -r "$new/programs" "$new/libraries"
    mv "$new" "$out"
fi
echo "$out"
