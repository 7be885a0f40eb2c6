#!/usr/bin/env python3
"""Adds the image of an OCI archive to a docker-registry's storage folder.

    e2e/cluster/add-archive.py STORAGE REPOSITORY:TAG ARCHIVE.oci.tar
"""
import json
import sys
import tarfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "node"))
from registry import Registry  # noqa: E402 (found by the line above)

storage, name, path = sys.argv[1:]
repository, _, tag = name.rpartition(":")
registry = Registry(storage)
with tarfile.open(path) as archive:
    def read(name):
        return archive.extractfile(name).read()

    def blob(descriptor):
        return read("blobs/" + descriptor["digest"].replace(":", "/"))

    [entry] = json.loads(read("index.json"))["manifests"]
    manifest = json.loads(blob(entry))
    for descriptor in [manifest["config"], *manifest["layers"]]:
        registry.push_blob(repository, blob(descriptor), descriptor["mediaType"])
    registry.push_manifest(repository, tag, manifest)
