#!/usr/bin/env bash
# Builds the product and lays it out as it is installed on a node.
#
#   deploy/dist.sh OUT
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: deploy/dist.sh OUT}
target=${CARGO_TARGET_DIR:-target}
triple=x86_64-unknown-linux-gnu
say() { printf '[build] %s\n' "$*"; }

say "daemon, monitor and test suite"
cargo build --quiet --release --locked -p cofferdam -p cofferdam-vmm -p cofferdam-e2e
say "agent (static: it is the only program in the guest)"
RUSTFLAGS='-C target-feature=+crt-static' cargo build --quiet --release --locked --target $triple -p cofferdam-agent

rm -rf "$out.new"
mkdir -p "$out.new"
new_lib=$out.new/usr/lib/cofferdam
mkdir -p "$out.new/usr/bin"
# The daemon keeps the line tables of its backtraces, compressed.
objcopy --compress-debug-sections=zlib "$target/release/cofferdam" "$out.new/usr/bin/cofferdam"
install -D -m 755 "$target/release/cofferdam-vmm" "$new_lib/cofferdam-vmm"
install -D -m 755 "$target/$triple/release/cofferdam-agent" "$new_lib/cofferdam-agent"
install -D -m 644 deploy/cofferdam.service "$out.new/usr/lib/systemd/system/cofferdam.service"
install -D -m 644 deploy/config.toml "$out.new/etc/cofferdam/config.toml"
say "guest: kernel, initramfs, disk template"
guest/kernel/build.sh "$new_lib/vmlinux"
guest/initramfs.sh "$new_lib/cofferdam-agent" "$new_lib/initramfs.cpio"
guest/disk.sh "$new_lib/pod-disk.ext4"
rm -rf "$out"
mv "$out.new" "$out"
say "$(find "$out" -type f | wc -l) files in $out"
