#!/usr/bin/env python3
"""Writes an OCI image archive (image layout in a tar) of one layer.

    deploy/image.py LAYER.tar VERSION SECONDS OUT

`skopeo copy oci-archive:OUT docker://registry/name:tag`, `ctr image import OUT` and `crane push` take it.
OCI image specification 1.1: config.md, manifest.md, image-layout.md.
"""
import gzip
import hashlib
import io
import json
import sys
import tarfile
import time


def blob(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def as_json(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def main():
    layer_path, version, seconds, out = sys.argv[1:]
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(seconds)))
    with open(layer_path, "rb") as file:
        layer = file.read()
    packed = gzip.compress(layer, 9, mtime=0)
    config = as_json({
        "architecture": "amd64",
        "os": "linux",
        "created": created,
        "config": {
            "User": "0:0",
            "Entrypoint": ["/product/bin/cofferdam-installer"],
            "Cmd": ["run"],
            "Labels": {
                "org.opencontainers.image.title": "cofferdam-installer",
                "org.opencontainers.image.version": version,
                "org.opencontainers.image.licenses": "Apache-2.0",
            },
        },
        "rootfs": {"type": "layers", "diff_ids": [blob(layer)]},
        "history": [{"created": created, "created_by": "deploy/image.py"}],
    })
    kind = "application/vnd.oci.image."
    manifest = as_json({
        "schemaVersion": 2,
        "mediaType": kind + "manifest.v1+json",
        "config": {"mediaType": kind + "config.v1+json", "digest": blob(config), "size": len(config)},
        "layers": [{"mediaType": kind + "layer.v1.tar+gzip", "digest": blob(packed), "size": len(packed)}],
    })
    name = f"cofferdam-installer:{version}"
    index = as_json({
        "schemaVersion": 2,
        "mediaType": kind + "index.v1+json",
        "manifests": [{
            "mediaType": kind + "manifest.v1+json",
            "digest": blob(manifest),
            "size": len(manifest),
            "platform": {"architecture": "amd64", "os": "linux"},
            "annotations": {"org.opencontainers.image.ref.name": version, "io.containerd.image.name": name},
        }],
    })
    files = {"oci-layout": as_json({"imageLayoutVersion": "1.0.0"}), "index.json": index}
    files |= {"blobs/sha256/" + blob(data)[7:]: data for data in (config, manifest, packed)}
    with tarfile.open(out, "w", format=tarfile.GNU_FORMAT) as archive:
        for path in sorted(files):
            entry = tarfile.TarInfo(path)
            entry.size, entry.mtime, entry.mode = len(files[path]), int(seconds), 0o644
            archive.addfile(entry, io.BytesIO(files[path]))


main()
