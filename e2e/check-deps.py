#!/usr/bin/env python3
"""Checks the locked dependencies as cargo-deny would, without its advisory download: licences, sources, banned crates.

    e2e/check-deps.py        prints what is wrong and ends with status 1, or one line and 0
"""
import json
import re
import subprocess
import sys

LICENCES = {
    "MIT", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "Zlib", "Unicode-3.0", "MPL-2.0", "0BSD", "Unlicense",
    "CC0-1.0", "BSL-1.0", "CDLA-Permissive-2.0", "MIT-0",
    "NCSA",  # as permissive as MIT: libFuzzer, which only `make fuzz` links
}
EXCEPTIONS = {"Apache-2.0 WITH LLVM-exception"}
BANNED = {
    "openssl-sys": "TLS is rustls with ring",
    "aws-lc-sys": "one TLS provider for the workspace: ring",
    "native-tls": "TLS is rustls with ring",
    "tokio-tar": "abandoned (CVE-2025-62518); the extractor is our own",
    "serde_yaml": "unmaintained",
}


def allowed(expression):
    """Whether an SPDX expression can be satisfied by the licences above (AND of ORs, parentheses, '/' as OR)."""
    text = expression.replace("/", " OR ")
    for name in EXCEPTIONS:
        text = text.replace(name, "MIT")
    tokens = re.findall(r"[()]|[^\s()]+", text)
    words = {"AND": " and ", "OR": " or ", "(": "(", ")": ")"}
    return eval("".join(words.get(t, str(t in LICENCES)) for t in tokens))  # only True, False, and, or, ( )


def main():
    metadata = json.loads(subprocess.check_output(["cargo", "metadata", "--format-version=1", "--locked", "--all-features"]))
    wrong = []
    for package in metadata["packages"]:
        name = f"{package['name']} {package['version']}"
        if package["source"] is None:
            continue
        if not package["source"].startswith("registry+"):
            wrong.append(f"{name}: comes from {package['source']}; only the crates registry is allowed")
        if package["name"] in BANNED:
            wrong.append(f"{name}: banned: {BANNED[package['name']]}")
        if not package["license"] or not allowed(package["license"]):
            wrong.append(f"{name}: licence {package['license']!r} is not on the list in e2e/check-deps.py")
    for line in wrong:
        print(line, file=sys.stderr)
    if not wrong:
        print(f"dependencies: {len(metadata['packages'])} packages, licences, sources and bans in order")
    return 1 if wrong else 0


sys.exit(main())
