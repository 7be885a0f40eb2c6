#!/usr/bin/env bash
# The node VM's disk, kernel, initrd and key, as a folder in the cache. Prints the folder's name.
#
#   e2e/node/build-image.sh
#
# The disk is Debian (build-root.sh), crictl, a registry full of test images, containerd + runc, and the files of overlay/.
# It is written by mkfs.ext4 -d: no loop device, no mount.
set -euo pipefail
name=node-image
cd "$(dirname "$0")"
. ./lib.sh

root=$(./build-root.sh)
busybox=$(./build-busybox.sh)
tools=$(./build-tools.sh)

image=$cache/node-image-$(printf '%s\n' "$root" "$busybox" "$tools" | cat - <(hash_of build-image.sh overlay make-images.py bench_images.py registry.py trees.py programs) | sha256sum | cut -c1-16)
lock node-image
if [ ! -f "$image/disk.img" ]; then
    rm -rf "$image.new" "$image.root"
    mkdir -p "$image.new"
    say "laying out the node's files"
    cp -a "$root" "$image.root"
    node=$image.root
    cp -a --no-preserve=ownership overlay/. "$node/"
    install -m 755 "$tools"/* "$node/usr/local/bin/"
    mkdir -p "$node/product"
    echo 0123456789abcdef0123456789abcdef >"$node/etc/machine-id"

    ssh-keygen -q -t ed25519 -N '' -C node -f "$image.new/key"
    install -D -m 600 "$image.new/key.pub" "$node/root/.ssh/authorized_keys"
    chmod 700 "$node/root/.ssh"
    rm -f "$node"/etc/ssh/ssh_host_*
    ssh-keygen -q -t ed25519 -N '' -C node -f "$node/etc/ssh/ssh_host_ed25519_key"

    # What a throw-away node in emulation has no use for, and what would wait for udev.
    for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
        systemd-udevd.service systemd-udevd-control.socket systemd-udevd-kernel.socket systemd-udev-trigger.service \
        systemd-udev-settle.service systemd-udev-load-credentials.service kmod-static-nodes.service modprobe@.service \
        systemd-tmpfiles-setup-dev.service systemd-tmpfiles-setup-dev-early.service systemd-tmpfiles-clean.timer \
        getty@tty1.service serial-getty@ttyS0.service console-getty.service systemd-logind.service systemd-hostnamed.socket \
        systemd-firstboot.service systemd-sysusers.service systemd-hwdb-update.service systemd-journal-catalog-update.service \
        systemd-update-utmp.service systemd-random-seed.service systemd-binfmt.service proc-sys-fs-binfmt_misc.automount \
        systemd-networkd.service systemd-resolved.service systemd-pcrphase.service systemd-creds.socket ldconfig.service \
        systemd-tpm2-setup.service systemd-tpm2-setup-early.service apparmor.service systemd-ask-password-wall.path \
        dev-hugepages.mount sys-kernel-debug.mount sys-kernel-tracing.mount; do
        ln -sf /dev/null "$node/etc/systemd/system/$unit"
    done
    mkdir -p "$node/etc/systemd/system-generators"
    for generator in "$node"/usr/lib/systemd/system-generators/*; do ln -sf /dev/null "$node/etc/systemd/system-generators/${generator##*/}"; done
    wants() { mkdir -p "$node/etc/systemd/system/$1.wants" && ln -sf "$3/$2.service" "$node/etc/systemd/system/$1.wants/$2.service"; }
    wants sysinit.target node-setup /etc/systemd/system
    wants multi-user.target node-modules /etc/systemd/system
    wants multi-user.target ssh /usr/lib/systemd/system
    wants multi-user.target docker-registry /usr/lib/systemd/system
    ln -sf /usr/lib/systemd/system/multi-user.target "$node/etc/systemd/system/default.target"

    for source in programs/*.c; do
        program=$(basename "$source" .c)
        mkdir -p "$image.new/programs"
        gcc -Os -static -s -o "$image.new/programs/$program" "$source" || die "cannot compile $source; run e2e/node/setup-host.sh"
    done
    in_time "building the test images into the node's registry" "$cache/test-images.log" \
        python3 make-images.py "$busybox" "$image.new/programs" "$root" "$node/var/lib/docker-registry" "$image.new/images" || die "make-images.py"
    rm -r "$image.new/programs"
    chroot "$node" chown -R docker-registry: /var/lib/docker-registry

    release=$(ls "$node/usr/lib/modules")
    cp "$node/boot/vmlinuz-$release" "$image.new/vmlinuz"
    early=$image.new/early
    mkdir -p "$early"/{bin,modules,proc,sys,dev,root}
    cp "$busybox" "$early/bin/busybox"
    modules=$node/usr/lib/modules/$release
    # In the order of their dependencies: the disk's, then KVM's (for `vm accel`).
    for module in virtio_blk ccp irqbypass kvm kvm-amd kvm-intel; do
        find "$modules" -name "$module.ko" -exec cp {} "$early/modules/" \;
    done
    install -m 755 early-init "$early/init"
    (cd "$early" && find . | LC_ALL=C sort | cpio -o -H newc --quiet) | gzip -1 >"$image.new/initrd"
    rm -rf "$early" "$node"/boot/vmlinuz-*

    in_time "writing the node's disk" "$cache/node-disk.log" write_disk "$node" "$image.new/disk.img" || die "mkfs.ext4"
    rm -rf "$image.root" "$image"
    mv "$image.new" "$image"
    say "$(du -h "$image/disk.img" | cut -f1) of disk in $image"
    # What nobody has used for two days will not be used again.
    find "$cache" -maxdepth 1 -name 'node-image-*' ! -path "$image" -mtime +1 -exec rm -rf {} +
fi
touch "$image"
echo "$image"
