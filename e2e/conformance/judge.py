#!/usr/bin/env python3
"""What a run of Kubernetes' node tests is worth.

    e2e/conformance/judge.py left-out HANDLER   the regular expression for --skip
    e2e/conformance/judge.py show HANDLER REPORT
                                                passed and failed specs of a run of some specs
    e2e/conformance/judge.py judge HANDLER SECONDS REPORT
                                                the same of a whole run, checked against known.toml; if
                                                it holds, the counts are written into
                                                docs/conformance.md. Status 1 if it does not hold
"""
import fcntl
import json
import re
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE / "../../docs/conformance.md"
TAG = "[NodeConformance]"
OUTCOMES = ("passed", "failed", "skipped", "left out")


def known(handler):
    """The entries of known.toml for this handler."""
    entries = []
    for entry in tomllib.loads((HERE / "known.toml").read_text())["known"]:
        if handler in entry.get("handlers", [handler]):
            entries.append({**entry, "pattern": re.compile(entry["specs"])})
    return entries


class Spec:
    def __init__(self, report, left_out):
        self.name = " ".join([*(report["ContainerHierarchyTexts"] or []), report["LeafNodeText"]]) or report["LeafNodeType"]
        self.seconds = report["RunTime"] / 1e9
        self.outcome = {"passed": "passed", "skipped": "skipped"}.get(report["State"], "failed")
        if self.outcome == "skipped" and any(entry["pattern"].search(self.name) for entry in left_out):
            self.outcome = "left out"
        self.again = self.outcome == "passed" and report["NumAttempts"] > 1
        self.message = " ".join(report.get("Failure", {}).get("Message", "").split())


def read(path, handler):
    """The conformance specs of a report, which has every other spec of the program as a skipped one."""
    try:
        reports = [report for suite in json.loads(Path(path).read_bytes()) for report in suite["SpecReports"]]
    except (OSError, ValueError) as error:
        sys.exit(f"cannot read the report {path}: {error}; did the run end? Its log is beside it")
    left_out = [entry for entry in known(handler) if entry["outcome"] == "left out"]
    specs = [(report, Spec(report, left_out)) for report in reports]
    # A set-up that fails is no spec, and must not be overlooked.
    return [spec for report, spec in specs if (TAG in spec.name if report["LeafNodeType"] == "It" else spec.outcome == "failed")]


def show(specs, title, ran_only=False):
    count = {outcome: [spec for spec in specs if spec.outcome == outcome] for outcome in OUTCOMES}
    shown = [outcome for outcome in OUTCOMES if not (ran_only and outcome in ("skipped", "left out"))]
    print(f"{title}: " + ", ".join(f"{len(count[outcome])} {outcome}" for outcome in shown))
    for spec in count["passed"]:
        if spec.again:
            print(f"  passed when it was run once more: {spec.name}")
    slow = sorted(count["passed"] + count["failed"], key=lambda spec: -spec.seconds)[:5]
    print("  slowest: " + "; ".join(f"{spec.seconds:.0f} s {spec.name[:80]}" for spec in slow))
    return count


def check(count, handler):
    """The sentences that say what is wrong with the specs that did not pass."""
    wrong = []
    for outcome in ("failed", "skipped", "left out"):
        left = {spec.name: spec for spec in count[outcome]}
        for entry in known(handler):
            if entry["outcome"] != outcome:
                continue
            matched = [name for name in left if entry["pattern"].search(name)]
            if len(matched) != entry.get("count", len(matched)):
                wrong.append(f"{len(matched)} specs that are {outcome} match '{entry['specs']}', not {entry['count']}; correct e2e/conformance/known.toml")
            for name in matched:
                print(f"  {outcome}: {name}\n      {entry['reason']}")
                del left[name]
        wrong += [f"{outcome} without a known reason: {spec.name}\n      {spec.message[:600]}" for spec in left.values()]
    return wrong


def write_page(handler, count, seconds):
    """Replaces this handler's row, and the table of reasons, of the page."""
    with PAGE.open("r+") as page:
        fcntl.flock(page, fcntl.LOCK_EX)
        text = page.read()
        reasons = "\n".join(table_of_reasons())
        row = f"| `{handler}` | {' | '.join(str(len(count[outcome])) for outcome in OUTCOMES)} | {seconds // 60} min |"
        text, rows = re.subn(rf"(<!-- node tests -->.*?)^\| `{handler}` \|[^\n]*$", lambda match: match[1] + row, text, flags=re.M | re.S)
        text, tables = re.subn(r"<!-- known -->.*?<!-- end -->", lambda _: reasons, text, flags=re.S)
        if (rows, tables) != (1, 1):
            sys.exit(f"docs/conformance.md has no row or no table for '{handler}' any more; restore them from its history")
        page.seek(0)
        page.truncate()
        page.write(text)


def table_of_reasons():
    lines = ["<!-- known -->", "| specs | how many | with | outcome | why |", "| --- | --- | --- | --- | --- |"]
    for entry in tomllib.loads((HERE / "known.toml").read_text())["known"]:
        handlers = ", ".join(f"`{handler}`" for handler in entry.get("handlers", [])) or "all"
        lines.append(f"| {entry['title']} | {entry.get('count', 'any')} | {handlers} | {entry['outcome']} | {entry['reason']}. |")
    return [*lines, "<!-- end -->"]


match sys.argv[1:]:
    case ["left-out", handler]:
        print("|".join(entry["specs"] for entry in known(handler) if entry["outcome"] == "left out"))
    case ["show", handler, report]:
        failed = show(read(report, handler), f"node tests with {handler}", ran_only=True)["failed"]
        for spec in failed:
            print(f"  failed: {spec.name}\n      {spec.message[:600]}")
        sys.exit(1 if failed else 0)
    case ["judge", handler, seconds, report]:
        counted = show(read(report, handler), f"node tests with {handler}")
        mistakes = check(counted, handler)
        if mistakes:
            sys.exit("\n".join([*mistakes, f"run one with 'make conformance HANDLER={handler} FOCUS=words-of-its-name'"]))
        write_page(handler, counted, int(seconds))
    case _:
        sys.exit(__doc__)
