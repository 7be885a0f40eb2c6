#!/usr/bin/env python3
"""Finds import circles inside our crates: files that reach each other through `use crate::` and `use super::`.

    e2e/check-circles.py        prints circles that are larger than the list below allows and ends with status 1, or one line and 0
    e2e/check-circles.py --all  prints every circle

An import between a folder's `mod.rs` and what is in the folder is not counted: the one is made of the other. Imports of tests and
of modules behind the feature `fuzzing` are not counted either.
"""
import pathlib
import re
import subprocess
import sys

# Circles that are there, by crate: how many files are in each, the largest first. A number may
# only go down.
ALLOWED = {
    "cri-server": [2, 2],
    "deploy/installer": [2],
    "e2e/suite": [3],
    "guest/agent": [25],
    "image-store": [3, 3, 3, 3, 3, 2, 2],
    "sandbox": [8],
}
ROOT = pathlib.Path(__file__).resolve().parent.parent
USE = re.compile(r"^(?:pub(?:\([a-z]+\))? )?use ([^;]+);", re.MULTILINE)
SKIPPED = {"tests", "fuzzing", "test_guest", "testing"}


def leaves(tree):
    """The paths of a use tree: `a::{b, c::d}` has a::b and a::c::d."""
    tree = re.sub(r"\s+", " ", tree).strip()
    brace = tree.find("{")
    if brace < 0:
        yield tree.split(" as ")[0].strip()
        return
    head, body = tree[:brace], tree[brace + 1 : tree.rindex("}")]
    depth, start = 0, 0
    for at, char in enumerate(body + ","):
        if char == "," and depth == 0:
            if body[start:at].strip():
                yield from (head + leaf for leaf in leaves(body[start:at]))
            start = at + 1
        depth += (char == "{") - (char == "}")


def module(path):
    """The path of a file's module below its crate's root."""
    parts = list(path.with_suffix("").parts)
    return tuple(parts[:-1] if parts[-1] in ("mod", "lib", "main") else parts)


def imports(source):
    """What a crate's files import of each other: module to set of modules."""
    files = {module(path.relative_to(source)): path for path in sorted(source.rglob("*.rs"))}
    files = {name: path for name, path in files.items() if not SKIPPED & set(name)}
    found = {name: set() for name in files}
    for name, path in files.items():
        text = path.read_text().split("\n#[cfg(test)]\nmod tests {")[0]
        for tree in USE.findall(text):
            for leaf in leaves(tree):
                parts = leaf.split("::")
                if parts[0] == "crate":
                    parts = parts[1:]
                elif parts[0] == "super":
                    ups = len(parts) - len([p for p in parts if p != "super"])
                    parts = list(name[: len(name) - ups]) + parts[ups:]
                else:
                    continue
                while parts and tuple(parts) not in files:
                    parts = parts[:-1]
                target = tuple(parts)
                related = target == name[: len(target)] or name == target[: len(name)]
                if not related:
                    found[name].add(target)
    return found


def circles(graph):
    """Sets of modules that reach each other (Tarjan), the largest first."""
    index, low, stack, done, result = {}, {}, [], set(), []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(graph[node]):
            if target not in index:
                visit(target)
            if target not in done:
                low[node] = min(low[node], low[target])
        if low[node] == index[node]:
            circle = set()
            while node not in circle:
                circle.add(stack.pop())
            done.update(circle)
            if len(circle) > 1:
                result.append(circle)

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return sorted(result, key=len, reverse=True)


def main():
    tracked = subprocess.check_output(["git", "ls-files", "*/src/lib.rs", "*/src/main.rs"], cwd=ROOT, text=True).split()
    wrong, count = [], 0
    for crate in sorted({str(pathlib.Path(path).parent.parent) for path in tracked}):
        found = circles(imports(ROOT / crate / "src"))
        allowed = ALLOWED.get(crate, [])
        count += len(found)
        for at, circle in enumerate(found):
            text = f"{crate}: {len(circle)} files import each other in a circle: " + ", ".join(sorted("::".join(m) for m in circle))
            if "--all" in sys.argv:
                print(text)
            if at >= len(allowed) or len(circle) > allowed[at]:
                wrong.append(text)
        if [len(circle) for circle in found] < allowed and "--all" not in sys.argv:
            wrong.append(f"{crate}: fewer circles than e2e/check-circles.py allows: make the list there shorter")
    for line in wrong:
        print(line, file=sys.stderr)
    if not wrong:
        print(f"imports: {count} circles, none that is new or larger")
    return 1 if wrong else 0


sys.exit(main())
