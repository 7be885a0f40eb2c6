#!/usr/bin/env bash
# The image of the benchmarks' workloads, as a docker-registry's storage folder. Prints its name.
#
#   e2e/node/build-workloads-image.sh
set -euo pipefail
name=workloads-image
cd "$(dirname "$0")"
. ./lib.sh

# What the workloads need of Debian, unpacked and not configured.
packages=(base-files coreutils dash gzip libc-bin python3 tar)

# bench_images.py has the words that the files are made of.
image=$cache/workloads-image-$(hash_of build-workloads-image.sh bench_images.py registry.py workloads_image.py workloads)
lock workloads-image
if [ ! -d "$image" ]; then
    work=$image.tmp
    rm -rf "$work"
    mkdir -p "$work/root" "$work/image"
    in_time "unpacking Debian $suite with ${#packages[@]} packages and what they need (about a minute)" "$cache/workloads-root.log" \
        mmdebstrap --variant=extract --mode=root --skip=check/qemu --include="$(IFS=,; echo "${packages[*]}")" \
        --aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' --aptopt='Acquire::Retries "3"' \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
        "$suite" "$work/root" "deb [signed-by=$keyring] $(archive_uri) $suite main" ||
        die "mmdebstrap; is the Debian archive reachable?"
    # Else Python compiles its library in the first container, while that is measured.
    chroot "$work/root" sh -c 'python3 -m compileall -q --invalidation-mode unchecked-hash /usr/lib/python3.*' ||
        die "cannot compile Python's library"
    gcc -O2 -Wall -Wextra -static -s -o "$work/work" workloads/work.c ||
        die "cannot compile workloads/work.c; run e2e/node/setup-host.sh"
    in_time "making the image of the workloads" "$cache/workloads-image.log" \
        python3 -B workloads_image.py "$work/root" "$work/work" "$work/image" || die "workloads_image.py"
    mv "$work/image" "$image"
    rm -rf "$work"
fi
echo "$image"
