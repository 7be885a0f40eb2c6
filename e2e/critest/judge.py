#!/usr/bin/env python3
"""What a run of critest is worth.

    e2e/critest/judge.py skip HANDLER                    the regular expression for --ginkgo.skip
    e2e/critest/judge.py show JUNIT...                   passed, failed and skipped specs
    e2e/critest/judge.py judge HANDLER SECONDS JUNIT SPDY_JUNIT
                                                         the same of a whole run, checked against skips.toml; if it holds, the counts are
                                                         written into docs/conformance.md. Status 1 if it does not hold
"""
import fcntl
import re
import sys
import tomllib
import xml.etree.ElementTree
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE / "../../docs/conformance.md"
STREAMING = 5


def allowed(handler):
    return [entry for entry in tomllib.loads((HERE / "skips.toml").read_text())["skip"] if entry["handler"] == handler]


class Spec:
    def __init__(self, case):
        self.name = case.get("name").removeprefix("[It] ").removeprefix("[k8s.io] ")
        self.seconds = float(case.get("time"))
        wrong = [case.find(kind) for kind in ("failure", "error") if case.find(kind) is not None]
        skipped = case.find("skipped")
        self.outcome = "failed" if wrong else "skipped" if skipped is not None else "passed"
        self.message = " ".join(((wrong or [skipped])[0].get("message") or "").split()) if wrong or skipped is not None else ""


def read(path):
    """All specs of a report, without the benchmarks, which critest never runs beside its specs."""
    try:
        cases = list(xml.etree.ElementTree.parse(path).iter("testcase"))
    except (OSError, xml.etree.ElementTree.ParseError) as error:
        sys.exit(f"cannot read critest's report {path}: {error}; did critest end? Its log is beside it")
    # A set-up that fails is no spec, and must not be overlooked.
    cases = [case for case in cases if case.get("name").startswith("[It]") or case.get("status") != "passed"]
    return [spec for spec in map(Spec, cases) if "benchmark" not in spec.name]


def show(specs, title, ran_only=False):
    count = {outcome: [spec for spec in specs if spec.outcome == outcome] for outcome in ("passed", "failed", "skipped")}
    shown = {outcome: len(of) for outcome, of in count.items() if not (ran_only and outcome == "skipped")}
    print(f"{title}: " + ", ".join(f"{number} {outcome}" for outcome, number in shown.items()))
    for spec in count["failed"]:
        print(f"  failed: {spec.name}\n          {spec.message[:400]}")
    slow = sorted((spec for spec in specs if spec.outcome != "skipped"), key=lambda spec: -spec.seconds)[:5]
    print("  slowest: " + "; ".join(f"{spec.seconds:.0f} s {spec.name[-60:]}" for spec in slow))
    return count


def check_skips(skipped, handler):
    """The sentences that say what is wrong with the set of skipped specs."""
    wrong, left = [], {spec.name: spec for spec in skipped}
    for entry in allowed(handler):
        matched = [name for name in left if re.search(entry["specs"], name)]
        if len(matched) != entry["count"]:
            wrong.append(f"{len(matched)} skipped specs match '{entry['specs']}', not {entry['count']}; correct e2e/critest/skips.toml")
        for name in matched:
            print(f"  skipped: {name}\n           {entry['reason']}")
            del left[name]
    for spec in left.values():
        wrong.append(f"skipped without being allowed to: {spec.name} ({spec.message}); make it run")
    return wrong


def write_page(handler, count, spdy, seconds):
    """Replaces this handler's rows of the page; the other handler's run may end at the same time."""
    with PAGE.open("r+") as page:
        fcntl.flock(page, fcntl.LOCK_EX)
        text = with_counts(page.read(), handler, count, spdy, seconds)
        page.seek(0)
        page.truncate()
        page.write(text)


def with_counts(text, handler, count, spdy, seconds):
    numbers = [str(len(count[outcome])) for outcome in ("passed", "failed", "skipped")]
    row = f"| `{handler}` | {' | '.join(numbers)} | {len(spdy['passed'])} | {seconds // 60} min {seconds % 60} s |"
    text, found = re.subn(rf"^\| `{handler}` \| \d.*$", lambda _: row, text, flags=re.M)
    skips = "".join(f"| `{entry['specs'].strip('^$ ')}` | {entry['count']} | {entry['reason']}. |\n" for entry in allowed(handler))
    table = f"<!-- skips {handler} -->\n"
    table += f"| specs | how many | why |\n| --- | --- | --- |\n{skips}" if skips else "None.\n"
    table += "<!-- end -->"
    text, tables = re.subn(rf"<!-- skips {handler} -->.*?<!-- end -->", lambda _: table, text, flags=re.S)
    if (found, tables) != (1, 1):
        sys.exit(f"docs/conformance.md has no row or no table for '{handler}' any more; restore them from its history")
    return text


def judge(handler, seconds, junit, spdy_junit):
    count = show(read(junit), f"critest with handler {handler}")
    spdy = show(read(spdy_junit), "streaming once more over SPDY", ran_only=True)
    wrong = check_skips(count["skipped"], handler)
    failed = len(count["failed"]) + len(spdy["failed"])
    if failed:
        wrong.append(f"{failed} failed; see {junit.removesuffix('.xml')}.log, and run one with 'make critest HANDLER={handler} FOCUS=words-of-its-name'")
    wanted = STREAMING - sum(1 for entry in allowed(handler) if entry["specs"].startswith("^Streaming "))
    if len(spdy["passed"]) + len(spdy["failed"]) != wanted:
        wrong.append(f"not {wanted} streaming specs ran over SPDY; is the focus in e2e/critest/run.sh still right?")
    if wrong:
        sys.exit("\n".join(wrong))
    write_page(handler, count, spdy, seconds)


match sys.argv[1:]:
    case ["skip", handler]:
        # Ginkgo matches against the suite's name, a space, and the spec's name with its prefix.
        print("|".join(r"\[k8s\.io\] " + entry["specs"].removeprefix("^") for entry in allowed(handler)))
    case ["show", *reports]:
        failed = [show(read(report), report, ran_only=True)["failed"] for report in reports]
        sys.exit(1 if any(failed) else 0)
    case ["judge", handler, seconds, junit, spdy_junit]:
        judge(handler, int(seconds), junit, spdy_junit)
    case _:
        sys.exit(__doc__)
