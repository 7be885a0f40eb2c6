"""Images whose unpacked trees are compared with containerd's, entry by entry (e2e/suite/src/tests/trees.rs): layers as six builders
write them, what is rare in layers, and Debian's root file system as 1, 5 and 20 layers.

Nothing is in them that containerd 2.1 refuses (hard links to files of lower layers) or leaves out (times before 1970, the mode of the
root): image-store/tests/trees.rs has such layers, against a model.
"""
import io
import os
import struct
import tarfile

from registry import Layer

# A date in 2020: what is made later has a time that nobody has told.
THEN = 1_600_000_000
# Of the node's root file system, what the images called debian-* have: few bytes, since a node in
# emulation compares all of them.
DEBIAN = ["bin", "lib", "lib64", "sbin", "etc"]


class Written(Layer):
    """A layer in another of tar's formats, with names as they are."""

    def __init__(self, form=tarfile.PAX_FORMAT, **headers):
        self.bytes = io.BytesIO()
        self.tar = tarfile.open(fileobj=self.bytes, mode="w", format=form, **headers)


def base():
    """What awkward layers meet: merged /usr, hard links, owners, attributes."""
    layer = Layer()
    for name, mode in [("usr", 0o755), ("usr/bin", 0o755), ("usr/lib", 0o751), ("run", 0o755), ("etc", 0o755), ("data", 0o1777), ("var", 0o755)]:
        layer.folder(name, mode, mtime=THEN)
    layer.file("usr/bin/tool", "tool", 0o4755, mtime=THEN)
    layer.hardlink("usr/bin/same", "usr/bin/tool")
    layer.file("usr/lib/libc", "libc", mtime=THEN)
    layer.file("usr/lib/old", "old", mtime=THEN)
    layer.symlink("bin", "usr/bin")
    layer.symlink("lib", "usr/lib")
    layer.symlink("var/run", "/run")
    layer.file("etc/app", "app", 0o640, uid=1000, gid=3_000_000_000, mtime=THEN)
    layer.file("data/a", "a", 0o600, mtime=THEN)
    layer.file("data/b", "b", 0o600, mtime=THEN)
    return layer.raw()


def ko():
    layer = Layer()
    layer.folder("/var/run/ko", 0o555)
    layer.file("/var/run/ko/LICENSE", "mit", 0o444)
    layer.folder("/ko-app", 0o555)
    layer.file("/ko-app/app", "elf", 0o555)
    return [layer.raw()]


def kaniko():
    layer = Layer()
    layer.add("/", tarfile.DIRTYPE, 0o755, mtime=THEN)
    layer.whiteout("/usr/lib/old")
    layer.folder("/usr/bin", 0o755, mtime=THEN + 5)
    layer.file("/usr/bin/tool", "replaced", 0o4755, mtime=THEN)
    layer.add("/usr/bin/third", tarfile.LNKTYPE, 0o4755, linkname="usr/bin/tool", mtime=THEN)
    layer.folder("/etc/new/deep", 0o700, mtime=THEN)
    layer.file("/etc/new/deep/x", "x", 0o600, mtime=THEN)
    return [base(), layer.raw()]


def buildah():
    layer = Layer()
    layer.folder("data", 0o1770, mtime=THEN)
    layer.opaque("data")
    layer.file("data/new", "new", 0o600, mtime=THEN)
    # struct vfs_ns_cap_data, revision 2 with the effective flag: CAP_NET_RAW is bit 13.
    capability = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
    layer.file("usr/bin/ping", "ping", 0o755, mtime=THEN, pax_headers={"SCHILY.xattr.security.capability": capability.decode()})
    layer.file("usr/bin/note", "n", 0o6755, pax_headers={"SCHILY.xattr.user.note": "kept", "SCHILY.xattr.user.empty": "", "mtime": "1600000000.123456789"})
    layer.add("run/pipe", tarfile.FIFOTYPE, 0o620, mtime=THEN)
    layer.add("run/null", tarfile.CHRTYPE, 0o666, devmajor=1, devminor=3, mtime=THEN)
    layer.add("run/disk", tarfile.BLKTYPE, 0o660, devmajor=7, devminor=200, gid=6, mtime=THEN)
    return [base(), layer.raw()]


def buildkit():
    first = Layer()
    first.folder("srv", 0o750, mtime=THEN)
    first.file("srv/a", "a", 0o640, mtime=THEN)
    first.hardlink("srv/b", "srv/a")
    first.symlink("srv/c", "b")
    second = Layer()
    second.file("srv/a", "replaced", 0o600, mtime=THEN)
    second.symlink("srv/d", "a")
    second.add("srv/e", tarfile.LNKTYPE, 0o777, linkname="srv/d")
    second.whiteout("etc")
    third = Layer()
    third.folder("etc", 0o700, mtime=THEN)
    third.file("etc/again", "again", 0o600, mtime=THEN)
    third.file("usr/lib/libc", "copied up", mtime=THEN)
    third.add("etc/libc", tarfile.LNKTYPE, 0o644, linkname="usr/lib/libc", mtime=THEN)
    return [base(), first.raw(), second.raw(), third.raw()]


def nix():
    layer = Written(tarfile.GNU_FORMAT)
    for name in ["./nix/store/abc-app", "./nix/store/abc-app/bin"]:
        layer.add(name, tarfile.DIRTYPE, 0o555, mtime=1)
    layer.file("./nix/store/abc-app/bin/app", "app", 0o555, mtime=1)
    layer.symlink("./app", "/nix/store/abc-app/bin")
    layer.file("./app/extra", "through a link", 0o444, mtime=1)
    return [layer.raw()]


def bazel():
    layer = Layer()
    layer.folder("usr/lib", mtime=THEN)
    layer.symlink("lib", "usr/lib")
    layer.file("lib/libssl", "ssl", mtime=THEN)
    layer.file("lib/engines/one", "1", mtime=THEN)
    layer.folder("srv/app", mtime=THEN)
    layer.folder("opt", mtime=THEN)
    layer.symlink("opt/current", "../srv/app")
    layer.file("opt/current/file", "f", mtime=THEN)
    layer.file("a/../usr/bin/./cleaned", "c", 0o755, mtime=THEN)
    return [layer.raw()]


def modes():
    layer = Layer()
    for mode in [0, 0o1, 0o200, 0o444, 0o622, 0o666, 0o777, 0o1777, 0o2755, 0o4711, 0o6555, 0o7777]:
        layer.file(f"of-{mode:04o}", "m", mode, mtime=THEN)
        layer.folder(f"folder-{mode:04o}", mode, gid=50, mtime=THEN)
        # What a folder with the set-group-id bit would hand down.
        layer.file(f"folder-{mode:04o}/file", "f", 0o644, mtime=THEN)
        layer.folder(f"folder-{mode:04o}/folder", 0o755, mtime=THEN)
        layer.symlink(f"folder-{mode:04o}/link", "file")
    return [layer.raw()]


def owners():
    layer = Layer()
    for uid, gid in [(0, 1), (1, 0), (1000, 1000), (65534, 65534), (2_097_151, 2_097_152), (4_294_967_294, 4_294_967_294)]:
        layer.folder(f"of-{uid}-{gid}", uid=uid, gid=gid, mtime=THEN)
        layer.file(f"of-{uid}-{gid}/file", "o", 0o4755, uid=uid, gid=gid, mtime=THEN)
        layer.add(f"of-{uid}-{gid}/link", tarfile.SYMTYPE, 0o777, linkname="file", uid=uid, gid=gid, mtime=THEN)
        layer.add(f"of-{uid}-{gid}/pipe", tarfile.FIFOTYPE, 0o600, uid=uid, gid=gid, mtime=THEN)
    return [layer.raw()]


def times():
    layer = Layer()
    for time in ["0", "1", "1600000000.000000001", "2147483648", "4294967296.25"]:
        layer.folder(f"at-{time}", pax_headers={"mtime": time})
        layer.file(f"at-{time}/file", "t", pax_headers={"mtime": time})
        layer.add(f"at-{time}/link", tarfile.SYMTYPE, 0o777, linkname="file", pax_headers={"mtime": time})
    return [layer.raw()]


def lists():
    """POSIX access control lists: one that lets uid 1000 write, and one that a folder hands down."""
    layer = Layer()
    named, nobody = 1000, 0xFFFFFFFF
    entries = [(1, 6, nobody), (2, 6, named), (4, 4, nobody), (16, 6, nobody), (32, 4, nobody)]
    acl = (struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)).decode("utf-8", "surrogateescape")
    layer.file("listed", "l", 0o664, mtime=THEN, pax_headers={"SCHILY.xattr.system.posix_acl_access": acl})
    layer.folder("handed-down", mtime=THEN, pax_headers={"SCHILY.xattr.system.posix_acl_default": acl})
    return [layer.raw()]


def names():
    layer = Written(tarfile.GNU_FORMAT, encoding="utf-8", errors="surrogateescape")
    for name in ["grüße", b"latin-\xe4".decode("utf-8", "surrogateescape"), "a b", "new\nline", "back\\slash", "-", "...", "*", "\x7f"]:
        layer.file(name, "n", mtime=THEN)
    deep = "/".join(["d" * 60] * 20)
    layer.file(f"{deep}/{'f' * 255}", "deep", mtime=THEN)
    layer.symlink("long-link", "/" + deep)
    layer.hardlink("long-hard-link", f"{deep}/{'f' * 255}")
    return [layer.raw()]


def old_formats():
    ustar = Written(tarfile.USTAR_FORMAT)
    ustar.folder("ustar", mtime=THEN)
    ustar.file("ustar/" + "p" * 120 + "/file", "with a prefix", mtime=THEN)
    gnu = Written(tarfile.GNU_FORMAT)
    gnu.file("gnu/" + "p" * 250, "with a long name", uid=3_000_000, mtime=THEN)
    heads = Written(tarfile.PAX_FORMAT, pax_headers={"comment": "of all"})
    heads.file("pax/file", "after a global header", mtime=THEN)
    # Old writers mark folders by a slash, and end without zeros.
    bare = Written(tarfile.USTAR_FORMAT)
    bare.add("v7/", tarfile.AREGTYPE, 0o750, mtime=THEN)
    bare.file("v7/file", "x" * 512, mtime=THEN)
    return [ustar.raw(), gnu.raw(), heads.raw(), bare.raw()[: 512 * 3]]


def replaced():
    """Files, folders and links in place of each other: in the layer above, and within one."""
    first, second, third = Layer(), Layer(), Layer()
    kinds = ["file", "folder", "link"]

    def put(layer, path, kind, text):
        if kind == "file":
            layer.file(path, text, mtime=THEN)
        elif kind == "folder":
            layer.folder(path, mtime=THEN)
            layer.file(f"{path}/{text}", text, mtime=THEN)
        else:
            layer.add(path, tarfile.SYMTYPE, 0o777, linkname=f"to-{text}", mtime=THEN)

    for one in kinds:
        for other in kinds:
            put(first, f"{one}-{other}", one, "first")
            put(second, f"{one}-{other}", other, "second")
            if (one, other) != ("folder", "link"):  # containerd sets the folder's time through the link
                put(third, f"within-{one}-{other}", one, "early")
                put(third, f"within-{one}-{other}", other, "late")
    return [first.raw(), second.raw(), third.raw()]


def whiteouts():
    first, second, third = Layer(), Layer(), Layer()
    for name in ["kept", "gone", "opaque", "opaque/below", "later", "deep/a/b"]:
        first.folder(name, mtime=THEN)
        first.file(f"{name}/file", name, mtime=THEN)
    second.whiteout("gone")
    second.whiteout("kept/file")
    second.opaque("opaque")
    second.file("opaque/new", "new", mtime=THEN)
    second.folder("deep/a", mtime=THEN)
    second.whiteout("deep/a/b")
    third.folder("gone", 0o711, mtime=THEN)
    third.file("gone/again", "again", mtime=THEN)
    third.file("later/more", "more", mtime=THEN)
    third.opaque("later")
    return [first.raw(), second.raw(), third.raw()]


def hard_links():
    first, second = Layer(), Layer()
    first.file("a/one", "one file", 0o640, uid=7, mtime=THEN)
    for name in ["a/two", "b/three", "four"]:
        first.add(name, tarfile.LNKTYPE, 0o640, linkname="a/one", uid=7, mtime=THEN)
    first.add("soft", tarfile.SYMTYPE, 0o777, linkname="a/one", mtime=THEN)
    first.add("soft-two", tarfile.LNKTYPE, 0o777, linkname="soft", mtime=THEN)
    first.file("alone", "alone", mtime=THEN)
    second.file("a/two", "another now", mtime=THEN)
    second.add("b/five", tarfile.LNKTYPE, 0o644, linkname="a/two", mtime=THEN)
    return [first.raw(), second.raw()]


def parents():
    """Folders that no layer lists, and folders whose layers are below."""
    first, second = Layer(), Layer()
    first.file("no/body/lists/these", "x", mtime=THEN)
    first.folder("known", 0o750, uid=5, gid=6, mtime=THEN)
    second.file("known/more/file", "y", mtime=THEN)
    return [first.raw(), second.raw()]


def empty_layers():
    nothing, one = Layer().raw(), Layer()
    one.file("file", "between empty layers", mtime=THEN)
    one = one.raw()
    return [nothing, one, nothing, one]


def debian(root, count):
    """The node's own system in so many layers: the folders in each, and of its files each in one."""
    layers = [Written(tarfile.PAX_FORMAT) for _ in range(count)]
    seen = {}
    for number, (path, name) in enumerate(files(root)):
        entry = layers[0].tar.gettarinfo(path, name)
        entry.uname = entry.gname = ""
        stat = os.lstat(path)
        if entry.isdir():
            entry.name += "/"
            for layer in layers:
                layer.tar.addfile(entry)
        elif entry.isreg() or entry.islnk():
            layer = layers[seen.setdefault(stat.st_ino, number % count)]
            with open(path, "rb") as data:
                layer.tar.addfile(entry, data if entry.isreg() else None)
        else:
            layers[number % count].tar.addfile(entry)
    return [layer.raw() for layer in layers]


def files(root):
    for top in DEBIAN:
        path = os.path.join(root, top)
        parts = top.split("/")
        for depth in range(1, len(parts)):
            yield os.path.join(root, *parts[:depth]), "/".join(parts[:depth])
        yield path, top
        if os.path.islink(path):
            continue
        for folder, folders, names in os.walk(path):
            for name in sorted(folders) + sorted(names):
                inside = os.path.join(folder, name)
                yield inside, os.path.relpath(inside, root)
            folders.sort()


def trees(root):
    """Name, layers and packing of each image."""
    rare = [ko, kaniko, buildah, buildkit, nix, bazel, modes, owners, times, lists, names, old_formats, replaced, whiteouts, hard_links, parents, empty_layers]
    packings = ["gzip", "zstd", "plain"]
    for number, layers in enumerate(rare):
        yield layers.__name__.replace("_", "-"), layers(), packings[number % 3]
    for count in [1, 5, 20]:
        yield f"debian-{count}", debian(root, count), "gzip"
