#!/usr/bin/env python3
"""Makes the images that Kubernetes' node tests pull, in a docker-registry's storage folder.

    e2e/conformance/images.py BUSYBOX PROGRAMS ROOT LIBRARIES STORAGE LIST

PROGRAMS is a folder with agnhost and its files, nnp, web and pause; ROOT a Debian system that has
bash, curl, hostname and what the file LIBRARIES names. LIST gets a line "REPOSITORY:TAG" for each
image. The versions are those of k8s.io/kubernetes/test/utils/image/manifest.go.
"""
import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "node"))
from registry import OCI, Layer, Registry, digest, pack, push  # noqa: E402 (found by the line above)

# agnhost's own Dockerfile adds the user 1000 and its group 50000, which a spec looks for.
PASSWD = """\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
"""
GROUP = "root:x:0:\ndaemon:x:1:\nnobody:x:65534:\n"
AGNHOST_PASSWD = PASSWD + "user-defined-in-image:x:1000:1000::/home/user-defined-in-image:/bin/sh\n"
AGNHOST_GROUP = GROUP + "user-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\n"


def base_layer(busybox):
    """busybox with hard-linked applets, as its official image has them."""
    listed = subprocess.run([busybox, "--list"], stdout=subprocess.PIPE, check=True, text=True).stdout.split()
    layer = Layer()
    for name in ["bin", "dev", "etc", "home", "proc", "run", "sys", "usr", "usr/bin", "usr/local", "usr/local/bin", "usr/sbin", "var", "var/run"]:
        layer.folder(name)
    layer.folder("root", 0o700)
    layer.folder("tmp", 0o1777)
    layer.file("bin/busybox", Path(busybox).read_bytes(), 0o755)
    for applet in listed:
        if applet != "busybox":
            layer.hardlink(f"bin/{applet}", "bin/busybox")
    layer.file("etc/passwd", PASSWD)
    layer.file("etc/group", GROUP)
    return layer.raw()


def debian_layer(root, libraries):
    """Debian's bash, curl and hostname, which hide busybox's, and their libraries."""
    layer = Layer()
    for folder in ["lib", "lib/x86_64-linux-gnu", "lib64"]:
        layer.folder(folder)
    for path in libraries.read_text().split():
        # /lib is a link to /usr/lib there.
        layer.file(path.lstrip("/").removeprefix("usr/"), (root / path.lstrip("/")).read_bytes(), 0o755)
    for program in ["bash", "curl", "hostname"]:
        layer.file(f"bin/{program}", (root / "usr/bin" / program).read_bytes(), 0o755)
    return layer.raw()


def private_image(layer, raw):
    """agnhost's fake registry serves files of its own image: there `pause:testing` is in it."""
    packed = pack(raw, "gzip")
    config = json.dumps({"architecture": "amd64", "os": "linux", "config": {"Entrypoint": ["/pause"]},
                         "rootfs": {"type": "layers", "diff_ids": [digest(raw)]}}).encode()
    blobs = [(config, OCI + "config.v1+json"), (packed, OCI + "layer.v1.tar+gzip")]
    described = [{"mediaType": kind, "digest": digest(data), "size": len(data)} for data, kind in blobs]
    manifest = json.dumps({"schemaVersion": 2, "mediaType": OCI + "manifest.v1+json", "config": described[0], "layers": described[1:]}).encode()

    made = set()

    def file(path, data):
        parts = path.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            folder = "/".join(parts[:depth])
            if folder not in made:
                made.add(folder)
                layer.folder(folder)
        layer.file(path, data)

    def by_digest(kind, data):
        name = digest(data)[7:]
        file(f"var/registry/pause/{kind}/sha256/{name[:2]}/{name}/data", data)

    file("var/registry/pause/manifests/testing", digest(manifest))
    by_digest("manifests", manifest)
    for data, _ in blobs:
        by_digest("blobs", data)


def main():
    busybox, programs, root, libraries, storage, list_file = sys.argv[1:]
    programs = Path(programs)
    base, debian = base_layer(busybox), debian_layer(Path(root), Path(libraries))
    registry = Registry(storage)
    names = []

    def image(name, tag, layers, settings):
        push(registry, name, tag, layers, settings)
        names.append(f"{name}:{tag}\n")

    def program(path, mode=0o755):
        layer = Layer()
        layer.file(path, (programs / Path(path).name).read_bytes(), mode)
        return layer.raw()

    pause = program("pause")
    image("pause", "3.10.2", [pause], {"Entrypoint": ["/pause"], "User": "65535:65535"})
    image("e2e-test-images/busybox", "1.37.0-2", [base], {"Cmd": ["sh"]})
    image("e2e-test-images/glibc-dns-testing", "2.1.1", [base, debian], {"Cmd": ["sh"]})
    image("e2e-test-images/nonroot", "1.5", [base], {"Cmd": ["sh"], "User": "1234"})
    image("e2e-test-images/nonewprivs", "1.4", [base, program("usr/local/bin/nnp", 0o6755)], {"Cmd": ["nnp"]})

    web = Layer()
    web.file("usr/sbin/nginx", (programs / "web").read_bytes(), 0o755)
    image("e2e-test-images/nginx", "1.27.0-2", [base, web.raw()], {"Cmd": ["/usr/sbin/nginx", "80"], "ExposedPorts": {"80/tcp": {}}})

    agnhost = Layer()
    agnhost.file("agnhost", (programs / "agnhost").read_bytes(), 0o755)
    agnhost.symlink("agnhost-2", "agnhost")
    agnhost.folder("uploads")
    for name in ["localhost.crt", "localhost.key"]:
        agnhost.file(name, (programs / name).read_bytes())
    agnhost.file("etc/passwd", AGNHOST_PASSWD)
    agnhost.file("etc/group", AGNHOST_GROUP)
    agnhost.folder("home/user-defined-in-image", uid=1000, gid=1000)
    private_image(agnhost, pause)
    layers = [base, debian, agnhost.raw()]
    # Two versions: a spec changes a pod's image from one to the other.
    for tag in ["2.55", "2.66.1"]:
        image("e2e-test-images/agnhost", tag, layers, {"Entrypoint": ["/agnhost"], "Cmd": ["pause"], "Labels": {"version": tag},
              "ExposedPorts": {f"{port}/tcp": {} for port in (80, 5000, 8080, 8081, 9376)}})
    Path(list_file).write_text("".join(names))


main()
