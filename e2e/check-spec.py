#!/usr/bin/env python3
"""Checks that what docs/SPECIFICATION.md names as the check of a promise is there: tests, files, commands, rows of the benchmarks.

    e2e/check-spec.py        prints what is not there and ends with status 1, or one line and 0
"""
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
SPECIFICATION = ROOT / "docs" / "SPECIFICATION.md"


def tracked(*patterns):
    """The files of the repository that match."""
    return subprocess.check_output(["git", "ls-files", *patterns], cwd=ROOT, text=True).split()


def main():
    sources = tracked("*.rs")
    code = "\n".join((ROOT / path).read_text() for path in sources)
    # Unit tests are functions; tests on a node have their names in a table, benchmarks their rows.
    names = set(re.findall(r"\bfn ([a-z0-9_]+)", code)) | set(re.findall(r'"([a-z][a-z0-9_]+)"', code))
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    modules = {path.removesuffix(".rs").removesuffix("/mod") for path in sources}

    def is_there(word):
        if word.startswith("make "):
            return word.split()[1] in targets
        if "/" in word:
            return (ROOT / word).exists()
        if "::" in word:
            # Short tests are in the file that they test.
            path = "/" + word.replace("::", "/")
            return any(module.endswith((path, path.removesuffix("/tests"))) for module in modules)
        if word.endswith(("…", "*")):
            return any(name.startswith(word[:-1]) for name in names)
        return word in names or any(module.endswith("/tests/" + word) for module in modules)

    wrong, count = [], 0
    for number, line in enumerate(SPECIFICATION.read_text().splitlines(), 1):
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if not line.startswith("| ") or len(cells) != 2 or cells[1] in ("checked by", "---"):
            continue
        for word in re.findall(r"`([^`]+)`", cells[1]):
            count += 1
            if not is_there(word):
                wrong.append(f"docs/SPECIFICATION.md:{number}: there is no {word!r}")
    for line in wrong:
        print(line, file=sys.stderr)
    if not wrong:
        print(f"specification: {count} checks that it names are there")
    return 1 if wrong else 0


sys.exit(main())
