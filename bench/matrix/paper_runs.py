"""All that a paper's tables and figures show, as runs into one folder on the embedded world; and how long they take."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.core.attack import attacks as registered
from bench.core.errors import BenchError, unknown
from bench.core.settings import merge
from bench.experiment.settings import Variants, resolve
from bench.experiment.suites import suite_settings, variants_of
from bench.papers import Paper, suite_name

Names = tuple[str, ...]


@dataclass(frozen=True)
class PaperRun:
    """One run: a preset, the suite that it measures (empty: all attacks of the tables, all defenses), its variants."""

    preset: str
    suite: str
    variants: Variants
    left_out: Mapping[str, str]

    @property
    def name(self) -> str:
        return f"{self.preset}: {self.suite or 'all attacks and defenses'}"


def paper_runs(
    paper: Paper,
    seeds: Sequence[int],
    variant_seeds: Sequence[int],
    assignments: Sequence[str] = (),
    suites: Collection[str] = (),
    attacks: Collection[str] = (),
) -> list[PaperRun]:
    """The runs, in their order, whose cells fill all tables and figures of a paper on the embedded world.

    A suite is run at the embedded counterpart of each place of its tables; one that only a figure shows, at that of the
    paper's first place. The last run has that place, too: main table and figures are of it. Runs at one preset share
    the settings of its suites, so that their cells can be in the same tables.

    Args:
        seeds: of the runs without variants; the others have `variant_seeds`.
        assignments: settings of all runs, as `key=value`.
        suites: run these alone, and the last run; all if empty.
        attacks: run these alone; all of the tables if empty.

    Raises:
        BenchError: the paper has no counterparts on the embedded world; there is no such suite or attack.
    """
    wanted = _wanted(paper)
    for name in suites:
        if name not in paper.suites:
            raise unknown("suite", name, paper.suites, "`bench list suites` explains them.")
    for name in attacks:
        registered[name]
    runs = []
    for preset, suite, names in _in_order(paper, wanted):
        if suite and suites and suite not in suites:
            continue
        asked = suite_name(paper, suite) if suite else None
        varied = bool(suite) and bool(paper.suites[suite].declared(embedded=True))
        given = names | {"seeds": tuple(variant_seeds if varied else seeds)}
        flags = merge(_shared(paper, wanted[preset]), given)
        base = resolve(preset, None, flags, tuple(assignments), suite=suite_settings(asked))
        if attacks:
            base = base.model_copy(update={"attacks": tuple(name for name in base.attacks if name in attacks)})
        if base.attacks:
            runs.append(PaperRun(preset, asked or "", *variants_of(base, asked)))
    return runs


def _wanted(paper: Paper) -> dict[str, dict[str, Names]]:
    """By preset, the paper's first place first: its suites, each with the attacks of its tables there."""
    there = {name: place.preset for name, place in paper.counterparts.items() if place.preset}
    if not there:
        raise BenchError(f"{paper.name} names no counterparts on the embedded world. docs/papers.md shows how")
    wanted: dict[str, dict[str, Names]] = {preset: {} for preset in there.values()}
    for table in paper.tables.values():
        for preset in dict.fromkeys(there[name] for name in table.places if name in there):
            known = wanted[preset].get(table.suite, ())
            wanted[preset][table.suite] = tuple(dict.fromkeys((*known, *table.attacks)))
    measured = {name for at_preset in wanted.values() for name in at_preset}
    first = next(iter(wanted.values()))
    first |= {name: () for name in paper.suites if name not in measured}
    return {preset: at_preset for preset, at_preset in wanted.items() if at_preset}


def _in_order(paper: Paper, wanted: Mapping[str, Mapping[str, Names]]) -> Iterator[tuple[str, str, dict[str, Names]]]:
    """Each preset and suite, with the attacks of its tables if it has any; at last all attacks and defenses."""
    *others, first = reversed(list(wanted))
    for preset in (*others, first):
        for suite, attacks in wanted[preset].items():
            yield preset, suite, {"attacks": attacks} if attacks else {}
    everything = [name for attacks in wanted[first].values() for name in attacks]
    defenses = [name for suite in wanted[first] for name in paper.suites[suite].defenses if "+" not in name]
    yield first, "", {
        "attacks": tuple(dict.fromkeys(everything)),
        "defenses": tuple(dict.fromkeys((*resolve(first).defenses, *defenses))),
    }  # fmt: skip


def _shared(paper: Paper, names: Iterable[str]) -> dict[str, Any]:
    shared: dict[str, Any] = {}
    for name in names:
        shared = merge(shared, paper.suites[name].settings)
    return shared
