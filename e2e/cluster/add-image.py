#!/usr/bin/env python3
"""Adds an image of one program to a docker-registry's storage folder.

    e2e/cluster/add-image.py STORAGE REPOSITORY:TAG PROGRAM
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "node"))
from registry import Layer, Registry, push  # noqa: E402 (found by the line above)

storage, name, program = sys.argv[1:]
repository, _, tag = name.rpartition(":")
layer = Layer()
for folder in ["etc", "tmp", "usr", "usr/bin"]:
    layer.folder(folder)
layer.file(f"usr/bin/{Path(program).name}", Path(program).read_bytes(), 0o755)
push(Registry(storage), repository, tag, [layer.raw()], {"Entrypoint": [f"/usr/bin/{Path(program).name}"]})
