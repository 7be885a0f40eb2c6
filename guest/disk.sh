#!/usr/bin/env bash
# Formats the template of a pod's disk for writable layers: a sparse ext4 file system of SIZE bytes (default 32G).
#
#   guest/disk.sh OUT [SIZE]
#
# Formatted once, when the product is built; each vm pod starts with a sparse copy of it. No journal (the disk lives as
# long as its VM), project quotas for a container's use, inode tables left for the kernel to write when it needs them.
set -euo pipefail
out=${1:?usage: guest/disk.sh OUT [SIZE]}
size=${2:-32G}
command -v mkfs.ext4 >/dev/null || { echo "mkfs.ext4 is missing; run e2e/node/setup-host.sh" >&2; exit 1; }
rm -f "$out.new"
truncate -s "$size" "$out.new"
E2FSPROGS_FAKE_TIME=1 mkfs.ext4 -q -F -m 0 -L pod-disk -U 8a1e2f60-0000-4000-8000-c0ffe2da0000 \
    -O '^has_journal,^resize_inode,^orphan_file,extent,flex_bg,uninit_bg,metadata_csum,64bit,quota,project,sparse_super2' \
    -E lazy_itable_init=1,nodiscard,root_owner=0:0,quotatype=prjquota,hash_seed=8a1e2f60-0000-4000-8000-c0ffe2da0001 "$out.new" 2>&1 |
    grep -v '^$' >&2 || true
[ -s "$out.new" ] || { echo "mkfs.ext4 failed on $out.new" >&2; exit 1; }
mv "$out.new" "$out"
