#!/usr/bin/env python3
"""Prints the product's bill of materials: CycloneDX 1.6, JSON.

    deploy/sbom.py VERSION SECONDS

What is in it: every crate that a program of the product is built of (not those of tests and build scripts), as Cargo.lock
has it, with its checksum and licence; and the guest's kernel. `cargo metadata` says it offline, and no tool is downloaded.
"""
import json
import re
import subprocess
import sys
import time
import uuid

PROGRAMS = ["cofferdam", "cofferdam-vmm", "cofferdam-agent", "cofferdam-installer"]


def checksums():
    """(name, version) of each locked package → SHA-256 of its archive."""
    with open("Cargo.lock", encoding="utf-8") as file:
        packages = file.read().split("[[package]]")[1:]
    field = lambda text, name: (re.search(rf'^{name} = "(.*)"$', text, re.M) or [None, None])[1]
    return {(field(p, "name"), field(p, "version")): field(p, "checksum") for p in packages}


def used(metadata):
    """The packages that the programs are linked of, by id."""
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    local = {p["id"] for p in metadata["packages"] if p["source"] is None and p["name"] in PROGRAMS}
    found, todo = set(), list(local)
    while todo:
        package = todo.pop()
        if package in found:
            continue
        found.add(package)
        todo += [d["pkg"] for d in nodes[package]["deps"] if any(k["kind"] is None for k in d["dep_kinds"])]
    return found


def kernel():
    """The guest's kernel, as guest/kernel names it."""
    with open("guest/kernel/build.sh", encoding="utf-8") as file:
        text = file.read()
    version = re.search(r"linux-source-([0-9.]+)", text)
    version = version[1] if version else "of Debian's linux-source"
    return {
        "type": "operating-system",
        "bom-ref": "guest-kernel",
        "name": "linux",
        "version": version,
        "description": "the kernel of microVMs, built from Debian's linux-source",
        "licenses": [{"expression": "GPL-2.0-only WITH Linux-syscall-note"}],
    }


def main():
    version, seconds = sys.argv[1], int(sys.argv[2])
    command = ["cargo", "metadata", "--format-version=1", "--locked", "--filter-platform=x86_64-unknown-linux-gnu"]
    metadata = json.loads(subprocess.check_output(command))
    ids, sums = used(metadata), checksums()
    components = [kernel()]
    for package in sorted(metadata["packages"], key=lambda p: (p["name"], p["version"])):
        if package["id"] not in ids:
            continue
        purl = f"pkg:cargo/{package['name']}@{package['version']}"
        component = {"type": "library", "bom-ref": purl, "name": package["name"], "version": package["version"]}
        if package["source"] is not None:
            component["purl"] = purl
        if package["license"]:
            component["licenses"] = [{"expression": package["license"].replace("/", " OR ")}]
        checksum = sums.get((package["name"], package["version"]))
        if checksum:
            component["hashes"] = [{"alg": "SHA-256", "content": checksum}]
        components.append(component)
    json.dump({
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, 'cofferdam/' + version)}",
        "version": 1,
        "metadata": {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds)),
            "component": {"type": "application", "bom-ref": "cofferdam", "name": "cofferdam", "version": version},
        },
        "components": components,
    }, sys.stdout, indent=1, sort_keys=True)
    print()


main()
