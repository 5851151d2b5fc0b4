"""The regression gate: is a number worse than in the baseline by more than chance?

The verdict uses Newcombe's 99 % interval for two *independent* shares, of the mean counts over seeds. Baseline and
measurement are of the same images, so this interval is wider than a paired one. It allows for images whose prediction
changes when the same code is trained on another machine, and the baseline needs no predictions. If the images were
independent samples, one comparison in a hundred would fail by chance.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import pandas as pd

from bench.core.metric import metrics
from bench.core.names import UNDEFENDED
from bench.core.task import tasks
from bench.results.records import cell_name
from metrics.intervals import newcombe_independent
from reports.baseline import CELL
from reports.command import flat

CONFIDENCE = 0.99
WORSE, BETTER, SAME, NEW = "worse", "better", "same", "new"
MISSING, NOT_COMPARABLE, INFORMATION = "missing", "not comparable", "information"
# The undefended model's ASR fell: against a weaker attack, every defense looks better than it is.
WEAKER_ATTACK = "weaker attack"
FAILED = (WORSE, WEAKER_ATTACK, MISSING)
ORDER = (WORSE, WEAKER_ATTACK, MISSING, NOT_COMPARABLE, BETTER, NEW, SAME, INFORMATION)


@dataclass(frozen=True)
class Finding:
    """The verdict on one metric of one cell, or on a whole cell (metric ""), and its reason."""

    cell: str
    metric: str
    verdict: str
    why: str
    before: float | None = None
    now: float | None = None


def judge(
    before: dict[str, Any], now: dict[str, Any], judged: Sequence[str] | None = None, tolerance: float = 0.0
) -> list[Finding]:
    """Verdicts on all cells of two baselines (`reports.baseline.make_baseline`), the worst first.

    `judged` are names of metrics; by default those of each task's main table. A metric is worse (better) if the whole
    interval of its change lies more than `tolerance` percentage points on the bad (good) side of 0.
    """
    old, new = ({tuple(cell[key] for key in CELL): cell for cell in b["cells"]} for b in (before, now))
    findings = []
    for key in [*old, *(key for key in new if key not in old)]:
        name = _name(dict(zip(CELL, key, strict=True)), [*old, *new])
        if key not in new:
            findings.append(Finding(name, "", MISSING, "in the baseline, and not measured"))
        elif key not in old:
            findings.append(Finding(name, "", NEW, "measured, and not in the baseline"))
        elif differences := _differences(
            before["settings"][old[key]["settings"]], now["settings"][new[key]["settings"]]
        ):
            findings.append(Finding(name, "", NOT_COMPARABLE, "; ".join(differences)))
        else:
            cell = dict(zip(CELL, key, strict=True))
            findings += _cell(name, cell, old[key]["numbers"], new[key]["numbers"], judged, tolerance)
    return sorted(findings, key=lambda finding: ORDER.index(finding.verdict))


def exit_code(findings: Sequence[Finding]) -> int:
    """1 if a number is worse or missing, 2 if none is but some cannot be compared, else 0."""
    verdicts = {finding.verdict for finding in findings}
    return 1 if verdicts & set(FAILED) else 2 if NOT_COMPARABLE in verdicts else 0


def to_markdown(findings: Sequence[Finding], before: dict[str, Any], now: dict[str, Any], tolerance: float) -> str:
    """The verdicts as a Markdown table, with the versions of both sides."""
    counts = {verdict: sum(f.verdict == verdict for f in findings) for verdict in ORDER}
    summary = ", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n and verdict != INFORMATION)
    outcome = {0: "passed", 1: "FAILED", 2: "cannot compare"}[exit_code(findings)]
    rows = [(f.cell, f.metric, f.verdict, _percent(f.before), _percent(f.now), f.why) for f in findings]
    columns = ["cell", "metric", "verdict", "baseline", "now", "why"]
    lines = [
        f"# Regression gate {outcome}: {summary}",
        "",
        pd.DataFrame(rows, columns=columns).to_markdown(index=False, disable_numparse=True),
        "",
        f"Baseline: commit {before['commit']}, {_versions(before)}. Now: commit {now['commit']}, {_versions(now)}.",
        f"Beyond chance: the {CONFIDENCE:.0%} interval of the change, of two independent samples of images, is more "
        f"than {tolerance:g} points from 0. Over many cells, a few may cross it by chance alone.",
    ]
    if counts[BETTER] and not exit_code(findings):
        lines.append("Better than the baseline: `bench baseline RESULTS --out FILE` writes the new one; commit it.")
    if counts[NOT_COMPARABLE]:
        lines.append(
            f"Not comparable: run with the baseline's settings (`{before['command']}`), or write a new baseline."
        )
    return "\n".join(lines) + "\n"


def to_junit(findings: Sequence[Finding]) -> str:
    """The verdicts as JUnit XML: worse and missing numbers are failures, incomparable cells errors."""
    cases = [f for f in findings if f.verdict != INFORMATION]
    counts = {
        "tests": len(cases),
        "failures": sum(f.verdict in FAILED for f in cases),
        "errors": sum(f.verdict == NOT_COMPARABLE for f in cases),
    }
    suite = ElementTree.Element("testsuite", {"name": "bench check"} | {k: str(n) for k, n in counts.items()})
    for f in cases:
        case = ElementTree.SubElement(suite, "testcase", classname=f.cell, name=f.metric or "cell")
        if f.verdict in FAILED or f.verdict == NOT_COMPARABLE:
            kind = "failure" if f.verdict in FAILED else "error"
            ElementTree.SubElement(case, kind, type=f.verdict, message=f"{f.verdict}: {f.why}")
        else:
            ElementTree.SubElement(case, "system-out").text = f"{f.verdict}: {f.why}"
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _cell(
    name: str, cell: dict[str, Any], old: dict, new: dict, judged: Sequence[str] | None, tolerance: float
) -> list[Finding]:
    task, findings = tasks[cell["task"]], []
    judged = task.headline if judged is None else judged
    for metric in (*judged, *task.informational):
        if metric not in old and metric not in new:
            continue
        before, now = (numbers.get(metric, {}).get("value") for numbers in (old, new))
        if metric in task.informational:
            verdict, why = INFORMATION, "not judged"
        elif metric not in new:
            verdict, why = MISSING, "in the baseline, and not measured"
        elif metric not in old:
            verdict, why = NEW, "measured, and not in the baseline"
        else:
            verdict, why = _verdict(metric, cell["defense"], old[metric], new[metric], tolerance)
        findings.append(Finding(name, metric, verdict, why, before, now))
    return findings


def _verdict(metric: str, defense: str, old: dict, new: dict, tolerance: float) -> tuple[str, str]:
    if metrics[metric].hits is None:
        return INFORMATION, "no share of images, so no interval says whether it changed"
    shares = [(round(number["count"] or 0), number["n"]) for number in (new, old)]
    if not all(n for _, n in shares):
        return NOT_COMPARABLE, f"{metric} is of no images at all"
    low, high = (100 * end for end in newcombe_independent(*shares[0], *shares[1], CONFIDENCE))
    change = new["value"] - old["value"]
    moved = "rose" if change > 0 else "fell"
    why = (
        f"{metric} {moved} by {abs(change):.1f} points, {CONFIDENCE:.0%} interval of the change "
        f"[{low:+.1f}, {high:+.1f}], {shares[1][0]} of {shares[1][1]} before and {shares[0][0]} of {shares[0][1]} now"
    )
    lower_is_better = metrics[metric].better == "lower"
    worse, better = (low, -high) if lower_is_better else (-high, low)
    if worse > tolerance:
        return WORSE, f"{why}; {metrics[metric].better} is better"
    if better <= tolerance:
        return SAME, why if change else f"{metric} did not change"
    if lower_is_better and defense == UNDEFENDED:
        return WEAKER_ATTACK, f"{why}: without a defense the attack succeeds less, so no defense can be judged by it"
    return BETTER, why


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The settings that differ, by key."""
    was, is_ = flat(old), flat(new)
    nothing = "not there"
    return [
        f"{key} was {was.get(key, nothing)}, is {is_.get(key, nothing)}"
        for key in dict.fromkeys([*was, *is_])
        if was.get(key, nothing) != is_.get(key, nothing)
    ]


def _name(cell: dict[str, Any], all_keys: Sequence[tuple]) -> str:
    """The cell's name; with model, data set and target if these differ between cells."""
    varying = [k for k in ("model", "dataset", "target") if len({key[CELL.index(k)] for key in all_keys}) > 1]
    return ", ".join([cell_name(cell), *(str(cell[key]) for key in varying)])


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _versions(baseline: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in baseline["versions"].items())
