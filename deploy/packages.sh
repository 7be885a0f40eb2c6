#!/usr/bin/env bash
# Makes of target/dist what nodes and clusters take: an archive, a Debian package, the installer's image, a bill of
# materials, checksums. The same commit makes the same bytes.
#
#   deploy/packages.sh DIST OUT           VERSION=1.2.3 gives the same programs another version's name
#   deploy/packages.sh DIST OUT --image   only the installer's image and its manifests
set -euo pipefail
cd "$(dirname "$0")/.."
dist=${1:?usage: deploy/packages.sh DIST OUT}
out=${2:?usage: deploy/packages.sh DIST OUT}
case ${3:-} in '' | --image) only=${3:-} ;; *) echo "unknown: $3; the only option is --image" >&2; exit 2 ;; esac
target=${CARGO_TARGET_DIR:-target}
triple=x86_64-unknown-linux-gnu
[ -x "$dist/usr/bin/cofferdam" ] || { echo "nothing is built in $dist: run 'make build' first" >&2; exit 1; }
version=$(deploy/version.sh)
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH LC_ALL=C
say() { printf '[packages] %s\n' "$*"; }
archive() { tar --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --format=gnu "$@"; }

say "installer (static: its image holds nothing else)"
RUSTFLAGS='-C target-feature=+crt-static' cargo build --quiet --release --locked --target $triple -p cofferdam-installer

rm -rf "$out"
mkdir -p "$out"
work=$(mktemp -d -p "$out" .work.XXXXXX)
trap 'rm -rf "$work"' EXIT

# One version, as it is below /opt/cofferdam/versions.
tree=$work/$version
mkdir -p "$tree/bin" "$tree/lib" "$tree/share"
cp -a --sparse=always "$dist/usr/lib/cofferdam" "$tree/lib/cofferdam"
install -m 755 "$dist/usr/bin/cofferdam" "$target/$triple/release/cofferdam-installer" "$tree/bin/"
sed 's#/usr/bin/cofferdam#/opt/cofferdam/current/bin/cofferdam#' deploy/cofferdam.service >"$tree/share/cofferdam.service"
install -m 644 deploy/cofferdam-recover.service "$dist/etc/cofferdam/config.toml" LICENSE "$tree/share/"
printf '%s\n' "$version" >"$tree/VERSION"
chmod -R u=rwX,go=rX "$tree"
# The template of pods' disks is sparse, and most of its size are holes: elsewhere than in GNU tar it travels as an archive.
archive --sparse -C "$tree/lib/cofferdam" -cf "$work/pod-disk.tar" pod-disk.ext4
{
    (cd "$tree" && find . -type f ! -name pod-disk.ext4 -printf '%P\0' | sort -z | xargs -0 sha256sum)
    printf '# pod-disk.tar %s\n' "$(sha256sum <"$work/pod-disk.tar" | cut -d' ' -f1)"
} >"$work/MANIFEST"
install -m 644 "$work/MANIFEST" "$tree/MANIFEST"

if [ -z "$only" ]; then
    say "archive"
    archive --sparse -C "$work" -cf - "$version" | zstd -q -T0 -12 -o "$out/cofferdam-$version-x86_64.tar.zst"
    say "Debian package"
    deploy/deb.sh "$dist" "$work/pod-disk.tar" "$version" "$out"
    say "bill of materials"
    deploy/sbom.py "$version" "$SOURCE_DATE_EPOCH" >"$out/cofferdam-$version.cdx.json"
fi
say "image of the installer"
mv "$tree" "$work/product"
rm "$work/product/lib/cofferdam/pod-disk.ext4"
install -m 644 "$work/pod-disk.tar" "$work/product/lib/cofferdam/pod-disk.tar"
archive -C "$work" -cf "$work/layer.tar" product
deploy/image.py "$work/layer.tar" "$version" "$SOURCE_DATE_EPOCH" "$out/cofferdam-installer-$version.oci.tar"
cp deploy/cofferdam.yaml deploy/uninstall.yaml "$out/"
sed -i "s#\(image: .*/cofferdam-installer\):.*#\1:$version#" "$out/cofferdam.yaml" "$out/uninstall.yaml"
rm -rf "$work"
(cd "$out" && find . -type f -printf '%P\0' | sort -z | xargs -0 sha256sum >SHA256SUMS.new && mv SHA256SUMS.new SHA256SUMS)
say "version $version in $out:"
(cd "$out" && ls -sh)
