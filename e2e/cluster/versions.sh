#!/usr/bin/env bash
# Makes three versions of what is in target/dist, as the installer's images and manifests, and puts
# the images into a docker-registry's storage folder.
#
#   e2e/cluster/versions.sh OUT STORAGE
#
# OUT/first and OUT/second hold the same programs; the daemon of OUT/broken ends at once.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:?usage: versions.sh OUT STORAGE} storage=${2:?usage: versions.sh OUT STORAGE}
rm -rf "$out"
mkdir -p "$out"
cp -a --sparse=always target/dist "$out/.broken"
# It answers what the installer asks before it starts the daemon.
cat >"$out/.broken/usr/bin/cofferdam" <<'END'
#!/bin/sh
case $1 in config) echo 'socket = "/run/cofferdam/cofferdam.sock"' ;; *) echo 'this daemon is broken on purpose' >&2; exit 1 ;; esac
END
for version in first second broken; do
    dist=target/dist
    [ "$version" != broken ] || dist=$out/.broken
    VERSION=1.0.0-$version deploy/packages.sh "$dist" "$out/$version" --image
    sed -i 's#registry\.example/#registry.k8s.io/#' "$out/$version/"*.yaml
    PYTHONDONTWRITEBYTECODE=1 e2e/cluster/add-archive.py "$storage" "cofferdam/cofferdam-installer:1.0.0-$version" \
        "$out/$version/cofferdam-installer-1.0.0-$version.oci.tar"
done
rm -rf "$out/.broken"
