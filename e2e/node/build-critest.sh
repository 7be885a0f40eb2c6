#!/usr/bin/env bash
# critest, from the version of sigs.k8s.io/cri-tools that tools/go.mod pins. Prints the program's name.
#
#   e2e/node/build-critest.sh IMAGE      (a folder that build-image.sh made)
#
# One constant is changed: the digest of the image that a spec pulls by digest, since the node's registry holds an image of
# our own under that name. No other line differs from what is published.
set -euo pipefail
name=critest
cd "$(dirname "$0")"
. ./lib.sh

image=${1:?usage: e2e/node/build-critest.sh IMAGE}
digest=$(awk '$1 == "k8s-staging-cri-tools/test-image-digest:latest" {sub("sha256:", "", $2); print $2}' "$image/images")
[ ${#digest} = 64 ] || die "$image/images names no test-image-digest; remove $image and run e2e/node/build-image.sh"

out=$cache/critest-$( (cat build-critest.sh tools/go.mod && echo "$digest") | sha256sum | cut -c1-16)
lock critest
if [ ! -x "$out" ]; then
    command -v go >/dev/null || die "Go is missing; install Go 1.26 or newer"
    source=$out.src
    rm -rf "$source"
    build() {
        local module published
        module=$(cd tools && go mod download -json sigs.k8s.io/cri-tools | sed -n 's/^\t"Dir": "\(.*\)",*$/\1/p')
        cp -r "$module" "$source"
        chmod -R u+w "$source"
        cd "$source"
        published='registry + "test-image-digest@sha256:'
        [ "$(grep -cF "$published" pkg/validate/consts.go)" = 1 ] || { echo "pkg/validate/consts.go has no test-image-digest any more"; return 1; }
        sed -i -E "s/( registry \+ \"test-image-digest@sha256:)[0-9a-f]{64}/\1$digest/" pkg/validate/consts.go
        grep -qF "$published$digest" pkg/validate/consts.go || { echo "the digest could not be set"; return 1; }
        CGO_ENABLED=0 go test -c -trimpath -ldflags '-s -w' -o "$out.new" ./cmd/critest
    }
    in_time "building critest (about 1 minute)" "$cache/critest.log" build || die "go test -c; is the Go module proxy reachable?"
    rm -rf "$source"
    mv "$out.new" "$out"
fi
echo "$out"
