"""The regression gate: is a number worse than in the baseline by more than training varies from run to run?

Each number, a mean over seeds, is compared with a prediction interval (`metrics.prediction`) for a new run of the same
code. Its width comes from the variation of earlier runs. Runs are paired by seed, so differences between seeds cancel.
The mean of each defense over the attacks is judged as well: it shows changes that are too small to be seen in one cell.
Bonferroni's correction limits the false alarms of the whole matrix.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from xml.etree import ElementTree

import pandas as pd

from bench.core.metric import metrics
from bench.core.names import UNDEFENDED
from bench.core.task import tasks
from bench.results.records import cell_name
from metrics.prediction import Prediction, angle, mean_prediction, of_difference, sampling, spreads
from reports.baseline import CELL, differences

# How often unchanged code may fail, for the whole matrix, and the probability of detection that `--explain` assumes.
FALSE_ALARMS, POWER = 0.01, 0.9
WORSE, BETTER, SAME, NEW = "worse", "better", "same", "new"
MISSING, NOT_COMPARABLE, INFORMATION = "missing", "not comparable", "information"
# No worse value is outside the prediction interval.
CANNOT_FAIL = "cannot fail"
# The undefended model's ASR fell: against a weaker attack, every defense looks better than it is.
WEAKER_ATTACK = "weaker attack"
FAILED = (WORSE, WEAKER_ATTACK, MISSING)
ORDER = (WORSE, WEAKER_ATTACK, MISSING, NOT_COMPARABLE, CANNOT_FAIL, BETTER, NEW, SAME, INFORMATION)
ALL_ATTACKS = "all attacks"
BASELINE = "bench baseline RESULTS --reruns 5 --out FILE"
# Cells that are equal in these share an estimate of their variance, and have a mean over attacks.
GROUP = [key for key in CELL if key != "attack"]
RERUNS, SEEDS = "reruns", "seeds"


@dataclass(frozen=True)
class Seen:
    """What the gate can detect in one number.

    `ends` are those of the prediction interval, in percent. `changes` has, for each direction that fails, the smallest
    change of the true value that fails with probability `POWER`, in percentage points; None if no change does. `sd` is
    the standard deviation of one run of one seed, in percentage points; it comes from reruns or from seeds (`source`),
    with `df` degrees of freedom.
    """

    ends: tuple[float, float]
    changes: tuple[float | None, ...]
    sd: float
    df: int
    source: str


@dataclass(frozen=True)
class Finding:
    """The verdict on one metric of one cell, or on a whole cell (metric ""), and its reason."""

    cell: str
    metric: str
    verdict: str
    why: str
    before: float | None = None
    now: float | None = None
    seen: Seen | None = None


@dataclass(frozen=True)
class Number:
    """A number to judge: a share in percent, before and now, with its prediction; `sd` is of one run, as an angle."""

    cell: str
    metric: str
    control: bool
    before: float
    now: float
    prediction: Prediction
    sd: float
    source: str

    @property
    def lower_is_better(self) -> bool:
        return metrics[self.metric].better == "lower"

    @property
    def alarms(self) -> int:
        """The number of directions in which a change fails: two for the attack's own success, as it must not change."""
        return 2 if self.control and self.lower_is_better else 1


def judge(
    before: dict[str, Any], now: dict[str, Any], judged: Sequence[str] | None = None, tolerance: float = 0.0
) -> list[Finding]:
    """Verdicts on all cells of two baselines (`reports.baseline.make_baseline`), the worst first.

    `judged` are names of metrics, each once; by default those of each task's main table. A number is worse (better) if
    it lies more than `tolerance` percentage points beyond the bad (good) end of its prediction interval. Something is
    always judged: if there is nothing to judge, the verdict is that they cannot be compared.
    """
    old, new = ({tuple(cell[key] for key in CELL): cell for cell in b["cells"]} for b in (before, now))
    findings, pairs = [], []
    for key in [*old, *(key for key in new if key not in old)]:
        name = _name(dict(zip(CELL, key, strict=True)), [*old, *new])
        if key not in new:
            findings.append(Finding(name, "", MISSING, "in the baseline, and not measured"))
        elif key not in old:
            findings.append(Finding(name, "", NEW, "measured, and not in the baseline"))
        elif why := _incomparable(before["settings"][old[key]["settings"]], now["settings"][new[key]["settings"]]):
            findings.append(Finding(name, "", NOT_COMPARABLE, why))
        else:
            more, comparable = _paired(name, old[key], new[key], judged)
            findings += more
            pairs += comparable
    numbers = list(_numbers(pairs))
    level = FALSE_ALARMS / max(1, sum(number.alarms for number in numbers))
    findings += [verdict_on(number, level, tolerance) for number in numbers]
    if not numbers and not exit_code(findings):
        findings.append(Finding("all cells", "", NOT_COMPARABLE, "the two have no number in common that can be judged"))
    return sorted(findings, key=lambda finding: ORDER.index(finding.verdict))


def exit_code(findings: Sequence[Finding]) -> int:
    """1 if a number is worse or missing, 2 if none is but some cannot be compared or no judged one can fail, else 0."""
    verdicts = {finding.verdict for finding in findings}
    if verdicts & set(FAILED):
        return 1
    judged = {finding.verdict for finding in findings if finding.seen is not None}
    return 2 if NOT_COMPARABLE in verdicts or judged == {CANNOT_FAIL} else 0


def to_markdown(findings: Sequence[Finding], before: dict[str, Any], now: dict[str, Any], tolerance: float) -> str:
    """The verdicts as a Markdown table, with the versions of both sides."""
    counts = {verdict: sum(f.verdict == verdict for f in findings) for verdict in ORDER}
    summary = ", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n and verdict != INFORMATION)
    outcome = {0: "passed", 1: "FAILED", 2: "cannot compare"}[exit_code(findings)]
    rows = [(f.cell, f.metric, f.verdict, _percent(f.before), _percent(f.now), f.why) for f in findings]
    lines = [
        f"# Regression gate {outcome}: {summary}",
        "",
        _table(rows, ["cell", "metric", "verdict", "baseline", "now", "why"]),
        "",
        f"Baseline: commit {before['commit']}, {_versions(before)}. Now: commit {now['commit']}, {_versions(now)}.",
    ]
    if any(f.seen for f in findings):
        beyond = f" by more than {tolerance:g} points" if tolerance else ""
        lines.append(
            f"Worse: outside the prediction interval{beyond}. With unchanged code, at most {FALSE_ALARMS:.0%} of all "
            "runs have such a number. `bench check --explain` shows which changes can be detected."
        )
    if any(f.seen and f.seen.source == SEEDS for f in findings):
        lines.append(
            "Some numbers have no reruns in the baseline, so their intervals are from the spread over seeds, which is "
            f"larger. `{BASELINE}` writes a baseline that detects smaller changes."
        )
    if counts[CANNOT_FAIL]:
        lines.append(
            "Cannot fail: unchanged code may give any worse value, as the baseline has few runs or is as bad already. "
            f"Take more seeds, or a baseline with reruns (`{BASELINE}`)."
        )
    if counts[BETTER] and not exit_code(findings):
        lines.append(f"Better than the baseline: `{BASELINE}` writes the new one; commit it.")
    if counts[NOT_COMPARABLE]:
        lines.append(
            f"Not comparable: run with the baseline's settings (`{before['command']}`), or write a new baseline."
        )
    return "\n".join(lines) + "\n"


def explain(findings: Sequence[Finding]) -> str:
    """The changes that the gate can detect, as a Markdown table with a row for each judged number."""
    rows = []
    for f in findings:
        if f.seen is not None:
            interval = "[{:.1f}, {:.1f}]".format(*f.seen.ends)
            changes = " or ".join("none" if change is None else f"{change:+.1f}" for change in f.seen.changes)
            spread = f"{f.seen.sd:.1f} ({f.seen.source}, {f.seen.df})"
            rows.append((f.cell, f.metric, _percent(f.before), interval, changes, spread))
    columns = ["cell", "metric", "baseline", "unchanged code", "change that fails", "spread"]
    lines = [
        "## Changes that can be detected",
        "",
        _table(rows, columns),
        "",
        "In percent and percentage points. `unchanged code`: the prediction interval of the mean over seeds. `change "
        f"that fails`: the smallest change of the true value that fails with {POWER:.0%} probability. `spread`: the "
        "standard deviation of one run of one seed, in parentheses its source and degrees of freedom. Reruns have the "
        "same seeds; without them, the spread over seeds is used, which is larger.",
    ]
    return "\n".join(lines) + "\n"


def to_junit(findings: Sequence[Finding]) -> str:
    """The verdicts as JUnit XML: worse and missing numbers are failures, what makes exit code 2 errors."""
    cases = [f for f in findings if f.verdict != INFORMATION]
    errors = {NOT_COMPARABLE, CANNOT_FAIL} if exit_code(findings) == 2 else {NOT_COMPARABLE}
    counts = {
        "tests": len(cases),
        "failures": sum(f.verdict in FAILED for f in cases),
        "errors": sum(f.verdict in errors for f in cases),
    }
    suite = ElementTree.Element("testsuite", {"name": "bench check"} | {k: str(n) for k, n in counts.items()})
    for f in cases:
        case = ElementTree.SubElement(suite, "testcase", classname=f.cell, name=f.metric or "cell")
        if f.verdict in FAILED or f.verdict in errors:
            kind = "failure" if f.verdict in FAILED else "error"
            ElementTree.SubElement(case, kind, type=f.verdict, message=f"{f.verdict}: {f.why}")
        else:
            ElementTree.SubElement(case, "system-out").text = f"{f.verdict}: {f.why}"
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


@dataclass(frozen=True)
class _Pair:
    """One metric of one cell: a share of `n` images in percent, for each seed a value per run, `before` and `now`."""

    name: str
    metric: str
    place: dict[str, Any]
    n: int
    before: list[list[float]]
    now: list[list[float]]

    @property
    def group(self) -> tuple:
        return (*(self.place[key] for key in GROUP), self.metric)

    @property
    def angles(self) -> list[list[float]]:
        """The values of the baseline as angles."""
        return [[angle(value * self.n / 100, self.n) for value in runs] for runs in self.before]


def _paired(
    name: str, old: dict[str, Any], new: dict[str, Any], judged: Sequence[str] | None
) -> tuple[list[Finding], list[_Pair]]:
    """Findings on the metrics of a cell that are not judged, and the metrics to judge."""
    task, place = tasks[old["task"]], {key: old[key] for key in CELL}
    findings, pairs = [], []
    asked = task.headline if judged is None else [name for name in judged if metrics[name].task == old["task"]]
    for metric in (*asked, *task.informational):
        was, is_ = (numbers.get(metric) for numbers in (old["numbers"], new["numbers"]))
        if was is None and is_ is None:
            if judged is not None and metric in asked:
                findings.append(Finding(name, metric, NOT_COMPARABLE, f"no {metric} in the baseline, nor measured"))
            continue
        before, now = (None if number is None else _of_seeds(number) for number in (was, is_))
        if metric in task.informational:
            findings.append(Finding(name, metric, INFORMATION, "not judged", before, now))
        elif is_ is None:
            findings.append(Finding(name, metric, MISSING, "in the baseline, and not measured", before))
        elif was is None:
            findings.append(Finding(name, metric, NEW, "measured, and not in the baseline", None, now))
        elif metrics[metric].hits is None:
            why = "no share of images, so no interval says whether it changed"
            findings.append(Finding(name, metric, INFORMATION, why, before, now))
        elif before is None or now is None:
            findings.append(Finding(name, metric, NOT_COMPARABLE, f"{metric} is of no images at all", before, now))
        elif was["n"] != is_["n"]:
            why = f"{metric} is of {is_['n']} images, in the baseline of {was['n']}"
            findings.append(Finding(name, metric, NOT_COMPARABLE, why, before, now))
        else:
            values = (list(number["values"].values()) for number in (was, is_))
            pairs.append(_Pair(name, metric, place, was["n"], *values))
    return findings, pairs


def _numbers(pairs: Sequence[_Pair]) -> Iterator[Number]:
    """The numbers to judge: each pair, and the means over attacks."""
    groups: dict[tuple, list[_Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.group, []).append(pair)
    for group in groups.values():
        source = RERUNS if all(len(runs) > 1 for pair in group for runs in pair.angles) else SEEDS
        noise = [pair.angles if source == RERUNS else [[_mean(r) for r in pair.angles]] for pair in group]
        sds, df = spreads(noise, sampling(min(pair.n for pair in group)))
        control = group[0].place["defense"] == UNDEFENDED
        numbers = []
        for pair, sd in zip(group, sds, strict=True):
            before, now = (_mean([_mean(runs) for runs in values]) for values in (pair.before, pair.now))
            runs = [len(values) for values in pair.before]
            prediction = Prediction(angle(before * pair.n / 100, pair.n), of_difference(sd, runs), df, pair.n)
            numbers.append(Number(pair.name, pair.metric, control, before, now, prediction, sd, source))
        yield from numbers
        if len(group) > 1:
            of_all = group[0].place | {"attack": ALL_ATTACKS}
            yield Number(
                _name(of_all, [tuple(pair.place.values()) for pair in pairs]),
                group[0].metric,
                control,
                _mean([number.before for number in numbers]),
                _mean([number.now for number in numbers]),
                mean_prediction([number.prediction for number in numbers]),
                mean_prediction([replace(n.prediction, sd=sd) for n, sd in zip(numbers, sds, strict=True)]).sd,
                source,
            )


def verdict_on(number: Number, level: float, tolerance: float) -> Finding:
    """The verdict on a number; unchanged code is called worse with probability `level`."""
    low, high = (100 * end for end in number.prediction.ends(level))
    change = number.now - number.before
    moved = "rose" if change > 0 else "fell"
    why = (
        f"{number.metric} {moved} by {abs(change):.1f} points; unchanged code stays within [{low:.1f}, {high:.1f}]"
        if change
        else f"{number.metric} did not change"
    )
    below, above = number.now < low - tolerance, number.now > high + tolerance
    worse, better = (above, below) if number.lower_is_better else (below, above)
    if worse:
        verdict, why = WORSE, f"{why}; {metrics[number.metric].better} is better"
    elif better and number.control and number.lower_is_better:
        verdict = WEAKER_ATTACK
        why = f"{why}: without a defense the attack succeeds less, so no defense can be judged by it"
    elif better:
        verdict = BETTER
    else:
        # Whether a value can lie below, and above, the interval.
        lower, higher = low - tolerance > 0, high + tolerance < 100
        can_fail = lower or higher if number.alarms == 2 else higher if number.lower_is_better else lower
        verdict = SAME if can_fail else CANNOT_FAIL
    return Finding(number.cell, number.metric, verdict, why, number.before, number.now, _seen(number, level, tolerance))


def _seen(number: Number, level: float, tolerance: float) -> Seen:
    prediction, before = number.prediction, number.before
    low, high = prediction.ends(level)
    fall, rise = (
        None if share is None else 100 * share - before for share in prediction.seen(level, POWER, tolerance / 100)
    )
    failing = (rise, fall) if number.alarms == 2 else (rise,) if number.lower_is_better else (fall,)
    # The derivative of a share by its angle; at 0 and 1, half an image is added, as it would be 0 there.
    nearest = 0.5 / prediction.n
    share = min(max(before / 100, nearest), 1 - nearest)
    sd = 200 * (share * (1 - share)) ** 0.5 * number.sd
    return Seen((100 * low, 100 * high), failing, sd, prediction.df, number.source)


def _incomparable(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Why the numbers of two cells with these settings cannot be compared; empty if they can."""
    if len(old["seeds"]) < 2:
        return (
            f"the baseline has only seed {old['seeds'][0]}, and one seed shows no spread: write a new one, from a run "
            "with --seeds 0,1,2"
        )
    return "; ".join(differences(old, new))


def _of_seeds(number: dict[str, Any]) -> float | None:
    """The mean over seeds; None if a value is missing."""
    values = [value for runs in number["values"].values() for value in runs]
    return None if None in values else _mean([_mean(runs) for runs in number["values"].values()])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _name(cell: dict[str, Any], all_keys: Sequence[tuple]) -> str:
    """The cell's name; with model, data set and target if these differ between cells."""
    varying = [k for k in ("model", "dataset", "target") if len({key[CELL.index(k)] for key in all_keys}) > 1]
    return ", ".join([cell_name(cell), *(str(cell[key]) for key in varying)])


def _table(rows: Sequence[tuple], columns: Sequence[str]) -> str:
    return pd.DataFrame(rows, columns=list(columns)).to_markdown(index=False, disable_numparse=True)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _versions(baseline: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in baseline["versions"].items())
