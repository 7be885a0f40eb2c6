#!/usr/bin/env bash
# Makes the Debian package. Its unit is not started by the installation; an upgrade restarts a daemon that runs, which
# pods do not notice.
#
#   deploy/deb.sh DIST DISK_ARCHIVE VERSION OUT
set -euo pipefail
cd "$(dirname "$0")/.."
dist=${1:?usage: deploy/deb.sh DIST DISK_ARCHIVE VERSION OUT}
disk=$2 version=${3/-/+} out=$4
root=$(mktemp -d -p "$out" .deb.XXXXXX)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"
cp -a "$dist/usr" "$dist/etc" "$root/"
# dpkg knows no sparse files: the template of pods' disks is unpacked by postinst.
rm "$root/usr/lib/cofferdam/pod-disk.ext4"
install -D -m 644 "$disk" "$root/usr/lib/cofferdam/pod-disk.tar"
install -D -m 644 LICENSE "$root/usr/share/doc/cofferdam/copyright"
chmod -R u=rwX,go=rX "$root"
# The newest symbol version of the C library that a program asks for.
glibc=$(objdump -T "$root/usr/bin/cofferdam" "$root/usr/lib/cofferdam/cofferdam-vmm" | grep -o 'GLIBC_[0-9.]*' | sed 's/GLIBC_//' | sort -V | tail -n1)

mkdir "$root/DEBIAN"
echo /etc/cofferdam/config.toml >"$root/DEBIAN/conffiles"
cat >"$root/DEBIAN/control" <<EOF
Package: cofferdam
Version: $version
Architecture: amd64
Maintainer: The Cofferdam authors <cofferdam@localhost>
Section: admin
Priority: optional
Depends: libc6 (>= $glibc), libgcc-s1
Recommends: containernetworking-plugins, apparmor
Description: Kubernetes node daemon that runs each pod in a microVM of its own
 Cofferdam serves the kubelet's Container Runtime Interface. A pod is a KVM
 microVM (handler vm) or namespaces on the node's kernel (handler host).
EOF
cat >"$root/DEBIAN/postinst" <<'EOF'
#!/bin/sh
set -e
if [ "$1" = configure ]; then
    lib=/usr/lib/cofferdam
    mkdir -p $lib/.disk
    tar -xSf $lib/pod-disk.tar -C $lib/.disk
    mv -f $lib/.disk/pod-disk.ext4 $lib/pod-disk.ext4
    rmdir $lib/.disk
    if [ -d /run/systemd/system ]; then
        systemctl daemon-reload
        # Pods go on: the daemon owns nothing that runs. One that does not run stays so.
        systemctl try-restart cofferdam.service
    fi
fi
EOF
cat >"$root/DEBIAN/prerm" <<'EOF'
#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
    # Pods go on without it; drain the node and remove them first if they should not.
    systemctl disable --now cofferdam.service || true
fi
EOF
cat >"$root/DEBIAN/postrm" <<'EOF'
#!/bin/sh
set -e
case $1 in
remove) rm -f /usr/lib/cofferdam/pod-disk.ext4; rmdir /usr/lib/cofferdam 2>/dev/null || true ;;
# Images and the files of pods, which may still run, in /var/lib/cofferdam stay: the administrator removes them.
purge) rm -rf /etc/cofferdam ;;
esac
[ ! -d /run/systemd/system ] || systemctl daemon-reload
EOF
chmod 755 "$root"/DEBIAN/p*
find "$root" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
dpkg-deb --root-owner-group -Zzstd -b "$root" "$out/cofferdam_${version}_amd64.deb" >/dev/null
