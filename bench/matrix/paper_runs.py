"""All that a paper's tables and figures show, as runs into one folder on the embedded world; and how long they take."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from bench.core.errors import BenchError, unknown
from bench.core.settings import merge
from bench.experiment.settings import RunSettings, Variants, resolve
from bench.experiment.suites import suite_settings, variants_of
from bench.matrix.plan import Node
from bench.models import ModelSettings, sizes
from bench.papers import Paper, suite_name
from bench.results.records import CARDS
from bench.results.store import Store


@dataclass(frozen=True)
class PaperRun:
    """One run: a preset, the suite that it measures (empty: all attacks of the tables, all defenses), its variants."""

    preset: str
    suite: str
    variants: Variants
    left_out: Mapping[str, str]

    @property
    def name(self) -> str:
        return f"preset {self.preset}, " + (f"suite {self.suite}" if self.suite else "all attacks and defenses")


def paper_runs(
    paper: Paper,
    seeds: Sequence[int],
    variant_seeds: Sequence[int],
    assignments: Sequence[str] = (),
    suites: Collection[str] = (),
) -> list[PaperRun]:
    """The runs, in their order, whose cells fill all tables and figures of a paper on the embedded world.

    A suite is run at the embedded counterpart of each place of its tables; one that only a figure shows, at that of the
    paper's first place. The last run has that place, too: main table and figures are of it. Runs at one preset share
    the settings that its suites ask for, so that their cells may stand in one folder.

    Args:
        seeds: of the runs without variants; the others have `variant_seeds`.
        assignments: settings of all runs, as `key=value`.
        suites: run these alone; all if empty.

    Raises:
        BenchError: the paper has no counterparts on the embedded world, or no such suite.
    """
    wanted = _wanted(paper)
    if strange := [name for name in suites if name not in paper.suites]:
        raise unknown("suite", strange[0], paper.suites, "`bench list suites` explains them.")
    *others, first = reversed(list(wanted))
    runs = []
    for preset in (*others, first):
        at_preset = {name: attacks for name, attacks in wanted[preset].items() if not suites or name in suites}
        shared = _shared(paper, wanted[preset])
        for name, attacks in at_preset.items():
            varied = bool(paper.suites[name].declared(embedded=True))
            given = {"seeds": tuple(variant_seeds if varied else seeds)} | ({"attacks": attacks} if attacks else {})
            asked = suite_name(paper, name)
            base = resolve(preset, None, merge(shared, given), tuple(assignments), suite=suite_settings(asked))
            runs.append(PaperRun(preset, asked, *variants_of(base, asked)))
    given = {"seeds": tuple(seeds), "attacks": _attacks(wanted[first].values())}
    given["defenses"] = tuple(dict.fromkeys((*resolve(first).defenses, *_defenses(paper, wanted[first]))))
    base = resolve(first, None, merge(_shared(paper, wanted[first]), given), tuple(assignments))
    return [*runs, PaperRun(first, "", *variants_of(base))]


def known_seconds(folders: Sequence[Path]) -> dict[str, float]:
    """Mean seconds of the artefacts of earlier runs, by what artefacts have in common (`_likeness`)."""
    found: dict[str, list[float]] = defaultdict(list)
    for store, kind in product(map(Store, folders), CARDS):
        for folder in sorted(store.path(kind, "").glob("[!.]*")):
            card = store.card(kind, folder.name)
            for key in _likeness(card.label):
                found[key].append(card.seconds)
    return {key: sum(times) / len(times) for key, times in found.items()}


def seconds_of(node: Node, run: RunSettings, model: ModelSettings, known: Mapping[str, float]) -> float | None:
    """How long a node takes one process of this machine; None where no artefact like it is known.

    The times of other variants are taken to be of `model`, and are scaled with the multiplications of the node's own.
    """
    same, *alike = _likeness(node.label)
    if same in known:
        return known[same]
    time = next((known[key] for key in alike if key in known), None)
    size, usual = sizes(run.model), sizes(model)
    return time * size.work / usual.work if time and size and usual else time


def _wanted(paper: Paper) -> dict[str, dict[str, tuple[str, ...]]]:
    """By preset, the paper's first place first: its suites, each with the attacks of its tables there."""
    there = {name: place.preset for name, place in paper.counterparts.items() if place.preset}
    if not there:
        raise BenchError(f"{paper.name} names no counterparts on the embedded world. docs/papers.md shows how")
    wanted: dict[str, dict[str, tuple[str, ...]]] = {preset: {} for preset in there.values()}
    for table in paper.tables.values():
        for preset in dict.fromkeys(there[name] for name in table.places if name in there):
            known = wanted[preset].get(table.suite, ())
            wanted[preset][table.suite] = tuple(dict.fromkeys((*known, *table.attacks)))
    measured = {name for at_preset in wanted.values() for name in at_preset}
    first = next(iter(wanted.values()))
    first |= {name: () for name in paper.suites if name not in measured}
    return {preset: at_preset for preset, at_preset in wanted.items() if at_preset}


def _shared(paper: Paper, names: Iterable[str]) -> dict[str, Any]:
    shared: dict[str, Any] = {}
    for name in names:
        shared = merge(shared, paper.suites[name].settings)
    return shared


def _attacks(lists: Iterable[Sequence[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(attack for attacks in lists for attack in attacks))


def _defenses(paper: Paper, names: Iterable[str]) -> list[str]:
    """The defenses of suites, without chains."""
    return [defense for name in names for defense in paper.suites[name].defenses if "+" not in defense]


def _likeness(label: str) -> tuple[str, ...]:
    """What artefacts have in common, the most alike first, read off a label.

    >>> _likeness("defense badnet / rvpt, alpha=0, seed 0")
    ('defense badnet / rvpt, alpha=0', 'defense badnet / rvpt', 'defense / rvpt', 'defense')
    """
    what = label.split(",")[0]
    kind, _, rest = what.partition(" ")
    return label.rpartition(",")[0], what, f"{kind} / {rest.partition(' / ')[2]}", kind
