#!/usr/bin/env python3
"""Builds the test images and writes them straight into a docker-registry's storage folder.

    e2e/node/make-images.py BUSYBOX PROGRAMS ROOT STORAGE LIST

PROGRAMS is a folder with the compiled programs/*.c, ROOT one with the node's system. LIST gets a line "REPOSITORY:TAG DIGEST" for each image. Deterministic: the same
programs give the same digests. The suites (e2e/suite, critest) say what they expect of each image.
"""
import random
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

from bench_images import large
from registry import OCI, Layer, Registry, push
from trees import trees

DAY = 86400

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
bin:x:2:2:bin:/bin:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
"""
GROUP = "root:x:0:\ndaemon:x:1:\nbin:x:2:\ntty:x:5:\nwww-data:x:33:\nusers:x:100:\nnobody:x:65534:\n"


def base_layer(busybox, applets):
    """busybox with hard-linked applets, as Docker's official image has them."""
    layer = Layer()
    for name in ["bin", "dev", "etc", "home", "proc", "run", "sys", "usr", "usr/bin", "usr/sbin", "var", "var/lib", "var/run", "var/www"]:
        layer.folder(name)
    layer.folder("root", 0o700)
    layer.folder("tmp", 0o1777)
    layer.file("bin/busybox", busybox, 0o755)
    for applet in applets:
        layer.hardlink(f"bin/{applet}", "bin/busybox")
    layer.file("etc/passwd", PASSWD)
    layer.file("etc/group", GROUP)
    layer.file("etc/shadow", "root:*:0:0:99999:7:::\n", 0o640)
    return layer.raw()


CHECK = """\
wrong=0
is() { [ "$2" = "$3" ] || { echo "$1 is '$2', not '$3'"; wrong=1; }; }
gone() { [ ! -e "$1" ] && [ ! -L "$1" ] || { echo "$1 should be gone"; wrong=1; }; }
names() { ls -A "$1" | tr '\\n' ' '; }
is 'a kept file' "$(cat /data/kept)" kept
is 'a replaced file' "$(cat /data/replaced)" 'of layer 3'
gone /data/removed
gone /data/removed-folder
is 'a folder removed and made again' "$(names /data/again)" 'new '
is 'an opaque folder' "$(names /opaque)" 'new '
is 'an opaque folder further down' "$(names /deep/a/b)" 'third '
is 'its neighbour' "$(names /deep/a)" 'b kept '
is 'a file in place of a folder' "$(cat /swap/folder)" 'now a file'
is 'a folder in place of a file' "$(names /swap/file)" 'now-a-folder '
is 'a symbolic link' "$(readlink /links/soft)" ../data/kept
is 'what it leads to' "$(cat /links/soft)" kept
is 'an absolute symbolic link' "$(cat /links/absolute)" kept
is 'a hard link in one layer' "$(stat -c %h:%i /links/one)" "2:$(stat -c %i /links/two)"
is 'a hard link to a lower layer' "$(cat /links/lower)" 'linked from above'
is 'a hard link in place of a lower file' "$(cat /links/late-one)$(cat /links/late-two)" 'late late '
is 'an owner' "$(stat -c %u:%g:%a /owned)" 1234:4321:640
is 'a large owner' "$(stat -c %u:%g /owned-large)" 3000000:3000001
is 'a sticky folder' "$(stat -c %a /tmp)" 1777
is 'a set-user-id program' "$(stat -c %a:%u /suid/euid)" 4755:0
is 'its effect' "$(chpst -u www-data /suid/euid)" 0
is 'a time' "$(stat -c %Y /owned)" 86400
is 'a device node' "$(stat -c %F:%t:%T /special/null)" 'character special file:1:3'
is 'a fifo' "$(stat -c %F /special/fifo)" fifo
is 'a long name' "$(cat /long/*/*/name)" long
is 'a name in UTF-8' "$(cat /data/grüße)" umlaut
is 'an empty file' "$(stat -c %s /data/empty)" 0
is 'capabilities of a file' "$(chpst -u www-data /capable/grep CapEff /proc/self/status)" "$(printf 'CapEff:\\t0000000000000001')"
[ $wrong = 0 ] && echo 'all as built'
"""


def many_layers(base, busybox, euid):
    """Layers that remove, replace, hide and link what lower ones brought."""
    second = Layer()
    for name in ["data", "data/removed-folder", "data/again", "opaque", "deep", "deep/a", "deep/a/b", "swap", "swap/folder", "links", "special", "suid", "capable"]:
        second.folder(name)
    second.file("data/kept", "kept")
    second.file("data/replaced", "of layer 2, and longer than that of layer 3")
    second.file("data/removed", "still here?")
    second.file("data/removed-folder/file", "still here?")
    second.file("data/again/old", "old")
    second.file("data/empty")
    second.file("data/grüße", "umlaut")
    second.file("opaque/old", "old")
    second.file("deep/a/kept", "kept")
    second.file("deep/a/b/first", "first")
    second.file("swap/folder/inside", "inside")
    second.file("swap/file", "file")
    second.file("links/one", "one")
    second.hardlink("links/two", "links/one")
    second.file("links/base", "linked from above")
    second.file("links/late-one", "early ")
    second.symlink("links/soft", "../data/kept")
    second.symlink("links/absolute", "/data/kept")
    second.file("owned", "owned", 0o640, uid=1234, gid=4321, mtime=DAY)
    second.file("owned-large", "owned", uid=3_000_000, gid=3_000_001)
    second.add("special/null", tarfile.CHRTYPE, 0o666, devmajor=1, devminor=3)
    second.add("special/fifo", tarfile.FIFOTYPE, 0o644)
    second.file("suid/euid", euid, 0o4755)
    # struct vfs_ns_cap_data, revision 2 with the effective flag: CAP_CHOWN is bit 0.
    capable = struct.pack("<IIIII", 0x02000001, 1, 0, 0, 0)
    second.file("capable/grep", busybox, 0o755, pax_headers={"SCHILY.xattr.security.capability": capable.decode("utf-8")})
    for part in ["long", "long/" + "x" * 120, "long/" + "x" * 120 + "/" + "y" * 120]:
        second.folder(part)
    second.file("long/" + "x" * 120 + "/" + "y" * 120 + "/name", "long")

    third = Layer()
    third.whiteout("data/removed")
    third.whiteout("data/removed-folder")
    third.whiteout("data/again")
    third.file("data/replaced", "of layer 3")
    third.folder("opaque")
    third.file("opaque/new", "new")
    third.opaque("opaque")  # after its content: order must not matter
    third.file("deep/a/b/second", "second")
    third.whiteout("swap/folder")
    third.file("swap/folder", "now a file")
    third.whiteout("swap/file")
    third.folder("swap/file")
    third.file("swap/file/now-a-folder", "yes")
    third.hardlink("links/lower", "links/base")

    fourth = Layer()
    fourth.folder("data/again")
    fourth.file("data/again/new", "new")
    fourth.opaque("deep/a/b")
    fourth.file("deep/a/b/third", "third")
    fourth.file("links/late-two", "late ")
    fourth.hardlink("links/late-one", "links/late-two")
    fourth.file("check.sh", CHECK, 0o755)
    return [base, second.raw(), third.raw(), fourth.raw()]


def critest_images(image, base, programs):
    """What critest pulls, under its names less the registries' (which are mirrored). Its specs say what each must be."""
    shell = {"Cmd": ["sh"]}

    def with_file(name, data=b"", mode=0o644):
        layer = Layer()
        layer.file(name, data, mode)
        return [base, layer.raw()]

    image("e2e-test-images/busybox", "1.29-2", [base], shell)
    web = (programs / "web").read_bytes()
    for name, tag, path, port in [
        ("e2e-test-images/nginx", "1.14-2", "usr/sbin/nginx", 80),
        ("e2e-test-images/httpd", "2.4.39-4", "usr/bin/httpd", 80),
        ("k8s-staging-cri-tools/hostnet-nginx-amd64", "latest", "usr/sbin/nginx", 12003),
    ]:
        image(name, tag, with_file(path, web, 0o755), {"Cmd": ["/" + path, str(port)], "ExposedPorts": {f"{port}/tcp": {}}})
    image("e2e-test-images/nonewprivs", "1.3", with_file("nnp", (programs / "nnp").read_bytes(), 0o4755), {"Entrypoint": ["/nnp"]})

    # Pulled from two registries as one image.
    pause = Layer()
    pause.file("pause", (programs / "pause").read_bytes(), 0o755)
    image("pause", "3.9", [pause.raw()], {"Entrypoint": ["/pause"], "User": "65535:65535"})

    tools = "k8s-staging-cri-tools/test-image-"
    for name, user in [("uid", "1002"), ("username", "www-data"), ("uid-group", "1003:1004"), ("username-group", "www-data:1004")]:
        image(f"{tools}user-{name}", "latest", [base], {**shell, "User": user})
    users = Layer()
    users.file("etc/passwd", PASSWD + "default-user:x:1000:1000::/home/default-user:/bin/sh\n")
    users.file("etc/group", GROUP + "default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n")
    users.folder("home/default-user", uid=1000, gid=1000)
    image(f"{tools}predefined-group", "latest", [base, users.raw()], {**shell, "User": "1000"})

    for name in ["1", "2", "3", "latest", "digest"]:
        image(tools + name, "latest", with_file("test-image-" + name), shell)
    for name, tags in [("tags", ["1", "2", "3"]), ("tag", ["test", "all"])]:
        for tag in tags:
            image(tools + name, tag, with_file("test-image-" + name), shell)


def main():
    busybox_path, programs, root, storage, list_file = sys.argv[1:]
    programs = Path(programs)
    busybox = Path(busybox_path).read_bytes()
    listed = subprocess.run([busybox_path, "--list"], stdout=subprocess.PIPE, check=True, text=True).stdout
    base = base_layer(busybox, [applet for applet in listed.split() if applet != "busybox"])
    registry = Registry(storage)
    shell = {"Cmd": ["sh"]}
    listed_images = []

    def critest_image(name, tag, layers, settings):
        listed_images.append(f"{name}:{tag} {push(registry, name, tag, layers, settings)['digest']}\n")

    def image(name, layers, settings=None, **options):
        settings = {"Labels": {"cofferdam.image": name}, **(settings or shell)}
        descriptor = push(registry, f"cofferdam/{name}", "1", layers, settings, **options)
        listed_images.append(f"cofferdam/{name}:1 {descriptor['digest']}\n")

    def with_name(name):
        """The base and a layer that no other image has: one that is shared is not unpacked again."""
        layer = Layer()
        layer.file("kind", name + "\n")
        layer.file("unique", random.Random(name).randbytes(300_000))
        return [base, layer.raw()]

    image("busybox", [base])
    image("zstd", with_name("zstd"), how="zstd")
    image("plain", with_name("plain"), how="plain")
    image("docker-v2", with_name("docker-v2"), docker=True)
    image("victim", with_name("victim"))
    image("user-numeric", [base], {**shell, "User": "1002:1003"})
    image("user-named", [base], {**shell, "User": "www-data"})
    image("layers", many_layers(base, busybox, (programs / "euid").read_bytes()))
    image("big", [base] + [large(seed, 23_000, 12_000) for seed in range(2001, 2005)])

    pause = Layer()
    pause.file("pause", (programs / "pause").read_bytes(), 0o755)
    image("pause", [pause.raw()], {"Entrypoint": ["/pause"], "User": "65535:65535"})

    # A list of two platforms: the other one's image has no program that this machine could run.
    other = Layer()
    other.file("readme", "this image is for another architecture\n")
    entries = []
    for architecture, layers in [("arm64", [other.raw()]), ("amd64", with_name("multi"))]:
        descriptor = push(registry, "cofferdam/multi", None, layers, shell, architecture=architecture)
        entries.append({**descriptor, "platform": {"architecture": architecture, "os": "linux"}})
    registry.push_manifest("cofferdam/multi", "1", {"schemaVersion": 2, "mediaType": OCI + "index.v1+json", "manifests": entries})

    for name, layers, how in trees(root):
        image(f"trees/{name}", layers, how=how)

    critest_images(critest_image, base, programs)
    Path(list_file).write_text("".join(listed_images))


main()
