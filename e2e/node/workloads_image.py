#!/usr/bin/env python3
"""Writes the image of the benchmarks' workloads into a docker-registry's storage folder.

    e2e/node/workloads_image.py ROOT WORK STORAGE

ROOT is a folder with Debian's root file system, WORK the compiled workloads/work.c. The layers: the root file system,
the data, the programs. The same inputs give the same digests.
"""
import gzip
import random
import subprocess
import sys
from pathlib import Path

from bench_images import THEN, Words
from registry import Layer, Registry, push

# Of the large file, half random and half text.
HALF = 32 << 20
FOLDERS, FILES = 100, 30
# What a container has of its own, and what differs from build to build.
LEFT_OUT = [
    *("./dev/*", "./proc/*", "./sys/*", "./run/*", "./tmp/*"),
    *("./var/cache/*", "./var/lib/apt", "./var/lib/dpkg", "./var/log/*"),
]


def root_layer(root):
    command = ["tar", "--create", "--sort=name", f"--mtime=@{THEN}", "--numeric-owner", "--format=gnu", "-C", root]
    command += [f"--exclude={path}" for path in LEFT_OUT] + ["."]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout


def add_tree(layer, prefix):
    """3,000 small files, as a source tree has them."""
    source = random.Random(2)
    words = Words(source)
    for number in range(FOLDERS):
        folder = f"{prefix}tree/part-{number // 10:02}/module-{number:03}"
        if number == 0:
            layer.folder(f"{prefix}tree", mtime=THEN)
        if number % 10 == 0:
            layer.folder(folder.rpartition("/")[0], mtime=THEN)
        layer.folder(folder, mtime=THEN)
        for file in range(FILES):
            layer.file(f"{folder}/file-{file:02}.js", words.text(source.randrange(200, 6000)), mtime=THEN)


def data_layer():
    source, layer, archive = random.Random(1), Layer(), Layer()
    layer.folder("data", mtime=THEN)
    layer.file("data/large", source.randbytes(HALF) + Words(source).text(HALF), mtime=THEN)
    add_tree(layer, "data/")
    add_tree(archive, "")
    layer.file("data/tree.tar.gz", gzip.compress(archive.raw(), 6, mtime=0), mtime=THEN)
    return layer.raw()


def programs_layer(work):
    layer = Layer()
    layer.file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n", mtime=THEN)
    layer.file("etc/group", "root:x:0:\n", mtime=THEN)
    # Debian's /bin leads to /usr/bin.
    layer.file("usr/bin/work", Path(work).read_bytes(), 0o755, mtime=THEN)
    layer.file("opt/work.py", (Path(__file__).parent / "workloads/work.py").read_bytes(), 0o755, mtime=THEN)
    return layer.raw()


def main():
    root, work, storage = sys.argv[1:]
    layers = [root_layer(root), data_layer(), programs_layer(work)]
    push(Registry(storage), "cofferdam/bench/workloads", "1", layers, {"Cmd": ["sleep", "1000000"]})


if __name__ == "__main__":
    main()
