#!/usr/bin/env bash
# Upstream's busybox from Debian's source package, static, for the test images and the node's initrd. Prints the file's name.
#
#   e2e/node/build-busybox.sh
#
# Debian's own busybox-static is no good for test images: its shell runs applets without executing them, so a masked
# /bin/ls still works in it, and it lacks pgrep, ipcs and adduser.
set -euo pipefail
name=busybox
cd "$(dirname "$0")"
. ./lib.sh

out=$cache/busybox-$(hash_of build-busybox.sh)
lock busybox
if [ ! -x "$out" ]; then
    work=$out.tmp
    rm -rf "$work"
    mkdir -p "$work"
    fetch() {
        apt_get "$suite" update -qq
        cd "$work"
        apt_get "$suite" source --download-only busybox
        tar xf busybox_*.orig.tar.bz2
    }
    in_time "fetching busybox's source from Debian $suite" "$cache/busybox.log" fetch || die "cannot fetch busybox; is the Debian archive reachable?"
    compile() {
        cd "$work"/busybox-*/
        make -s defconfig
        # tc does not compile with new kernel headers; the last two are what Debian's build has on. inotifyd is off in general.
        sed -i -e 's/^# CONFIG_\(STATIC\|INOTIFYD\) is not set/CONFIG_\1=y/' \
            -e 's/^CONFIG_\(TC\|FEATURE_SH_STANDALONE\|FEATURE_PREFER_APPLETS\)=y/# CONFIG_\1 is not set/' .config
        yes '' | make -s oldconfig || true
        SOURCE_DATE_EPOCH=1 KCONFIG_NOTIMESTAMP=1 make -s -j"$(nproc)" busybox
    }
    in_time "compiling it (about 1 minute)" "$cache/busybox.log" compile || die "the compilation"
    "$work"/busybox-*/busybox sh -c 'exit 0' || die "the new busybox does not run"
    mv "$work"/busybox-*/busybox "$out"
    rm -rf "$work"
fi
echo "$out"
