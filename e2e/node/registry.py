"""What the test images are made of, written straight into a docker-registry's storage folder."""
import gzip
import hashlib
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

PATH_VARIABLE = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
OCI = "application/vnd.oci.image."
DOCKER = "application/vnd.docker."


class Layer:
    """One layer's tar, in the order of the calls."""

    def __init__(self):
        self.bytes = io.BytesIO()
        self.tar = tarfile.open(fileobj=self.bytes, mode="w", format=tarfile.PAX_FORMAT)

    def add(self, name, kind, mode, data=b"", **attributes):
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode, entry.size = kind, mode, len(data)
        for key, value in attributes.items():
            setattr(entry, key, value)
        self.tar.addfile(entry, io.BytesIO(data) if data else None)

    def folder(self, name, mode=0o755, **attributes):
        self.add(name + "/", tarfile.DIRTYPE, mode, **attributes)

    def file(self, name, data=b"", mode=0o644, **attributes):
        self.add(name, tarfile.REGTYPE, mode, data.encode() if isinstance(data, str) else data, **attributes)

    def hardlink(self, name, to):
        self.add(name, tarfile.LNKTYPE, 0o755, linkname=to)

    def symlink(self, name, to):
        self.add(name, tarfile.SYMTYPE, 0o777, linkname=to)

    def whiteout(self, name):
        parent, _, leaf = name.rpartition("/")
        self.file(f"{parent}/.wh.{leaf}" if parent else f".wh.{leaf}")

    def opaque(self, folder):
        self.file(f"{folder}/.wh..wh..opq")

    def raw(self):
        self.tar.close()
        return self.bytes.getvalue()


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Registry:
    """The storage folder of docker-registry (the file system driver's layout, version 2)."""

    def __init__(self, storage):
        self.root = Path(storage) / "docker/registry/v2"

    def blob(self, data):
        name = digest(data)
        path = self.root / "blobs/sha256" / name[7:9] / name[7:] / "data"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return name

    def link(self, repository, where, name):
        path = self.root / "repositories" / repository / where / "link"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)

    def push_blob(self, repository, data, kind):
        name = self.blob(data)
        self.link(repository, f"_layers/sha256/{name[7:]}", name)
        return {"mediaType": kind, "digest": name, "size": len(data)}

    def push_manifest(self, repository, tag, manifest):
        data = json.dumps(manifest, sort_keys=True).encode()
        name = self.blob(data)
        self.link(repository, f"_manifests/revisions/sha256/{name[7:]}", name)
        if tag:
            self.link(repository, f"_manifests/tags/{tag}/current", name)
            self.link(repository, f"_manifests/tags/{tag}/index/sha256/{name[7:]}", name)
        return {"mediaType": manifest["mediaType"], "digest": name, "size": len(data)}


def pack(raw, how):
    if how == "gzip":
        return gzip.compress(raw, 6, mtime=0)
    if how == "zstd":
        return subprocess.run(["zstd", "-q", "-9", "-c"], input=raw, stdout=subprocess.PIPE, check=True).stdout
    return raw


def push(registry, repository, tag, layers, settings, how="gzip", docker=False, architecture="amd64"):
    """Pushes an image of raw layer tars and returns its manifest's descriptor."""
    config = {
        "architecture": architecture,
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {"Env": [PATH_VARIABLE], **settings},
        "rootfs": {"type": "layers", "diff_ids": [digest(raw) for raw in layers]},
    }
    if docker:
        kinds = (DOCKER + "distribution.manifest.v2+json", DOCKER + "container.image.v1+json", DOCKER + "image.rootfs.diff.tar.gzip")
    else:
        kinds = (OCI + "manifest.v1+json", OCI + "config.v1+json", OCI + "layer.v1.tar" + {"gzip": "+gzip", "zstd": "+zstd", "plain": ""}[how])
    manifest = {
        "schemaVersion": 2,
        "mediaType": kinds[0],
        "config": registry.push_blob(repository, json.dumps(config, sort_keys=True).encode(), kinds[1]),
        "layers": [registry.push_blob(repository, pack(raw, how), kinds[2]) for raw in layers],
    }
    descriptor = registry.push_manifest(repository, tag, manifest)
    packed = sum(layer["size"] for layer in manifest["layers"])
    print(f"{repository}:{tag or descriptor['digest']}  {len(layers)} layers, {packed / 1e6:.1f} MB packed", file=sys.stderr)
    return descriptor
