#!/usr/bin/env bash
# The Debian system of the node VM, as a folder: packages installed, nothing configured yet. Prints the folder's name.
#
#   e2e/node/build-root.sh
set -euo pipefail
name=node-root
cd "$(dirname "$0")"
. ./lib.sh

packages=(
    systemd systemd-sysv dbus kmod procps psmisc iproute2 iptables nftables ethtool util-linux bsdutils e2fsprogs
    openssh-server ca-certificates curl jq strace tcpdump
    docker-registry containernetworking-plugins
    # what containerd and runc, which come from sid where it can be had, are linked with
    libseccomp2 apparmor
)

root=$cache/node-root-$(hash_of build-root.sh)
lock node-root
if [ ! -f "$root.done" ]; then
    rm -rf "$root"
    mkdir -p "$root"
    # shellcheck disable=SC2016 # apt expands the format, not the shell
    in_time "installing Debian $suite with ${#packages[@]} packages and what they need (about 2 minutes)" "$cache/node-root.log" \
        mmdebstrap --variant=minbase --mode=root --skip=check/qemu --include="$(IFS=,; echo "${packages[*]}")" \
        --aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' --aptopt='Acquire::Retries "3"' \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
        "$suite" "$root" "deb [signed-by=$keyring] $(archive_uri) $suite main" ||
        die "mmdebstrap; is the Debian archive reachable?"

    log=$cache/node-kernel.log
    fetch_kernel() {
        local image
        apt_get "$suite" update -qq
        image=$(apt_cache "$suite" depends linux-image-cloud-amd64 | awk '/Depends: linux-image-[0-9]/ {print $2; exit}')
        (cd "$root/boot" && apt_get "$suite" download "$image" && dpkg -x linux-image-*.deb "$root" && rm linux-image-*.deb)
        # Decompressing modules is slow in an emulated node.
        find "$root/usr/lib/modules" -name '*.ko.xz' -print0 | xargs -0 -P2 -n50 xz -d
        depmod -b "$root/usr" "$(ls "$root/usr/lib/modules")" 2>/dev/null || chroot "$root" depmod "$(ls "$root/usr/lib/modules")"
    }
    in_time "fetching Debian's cloud kernel" "$log" fetch_kernel || die "cannot get Debian's cloud kernel"

    fetch_peer() {
        local suites=$1 deb
        apt_get "$suites" update -qq
        mkdir -p "$root/opt/peer"
        for deb in containerd runc; do
            (cd "$root/opt/peer" && apt_get "$suites" download "$deb/${suites##* }" && dpkg -x "$deb"_*.deb "$root/opt/peer/root" && ls "$deb"_*.deb >>"$root/opt/peer/packages" && rm "$deb"_*.deb)
        done
        mkdir -p "$root/opt/peer/bin"
        find "$root/opt/peer/root/usr/bin" "$root/opt/peer/root/usr/sbin" -type f -exec mv -t "$root/opt/peer/bin" {} +
        rm -rf "$root/opt/peer/root"
        "$root/opt/peer/bin/runc" --version 2>/dev/null || chroot "$root" /opt/peer/bin/runc --version
        chroot "$root" /opt/peer/bin/containerd --version
    }
    in_time "fetching containerd and runc from sid, the peer of the benchmarks" "$cache/node-peer.log" fetch_peer "$suite sid" ||
        { say "not from sid; taking $suite's"; rm -rf "$root/opt/peer"; in_time "fetching them from $suite" "$cache/node-peer.log" fetch_peer "$suite"; } ||
        die "cannot get containerd and runc"
    rm -rf "$root/var/cache/apt" "$root/var/lib/apt/lists"
    touch "$root.done"
    say "$(du -sh "$root" | cut -f1) in $root"
fi
echo "$root"
