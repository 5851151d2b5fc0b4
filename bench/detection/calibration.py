"""What clean models reach: the scores that p values are read from, made by `bench audit calibrate`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Literal

from bench.core.clip import Clip
from bench.core.errors import BenchError, unknown
from bench.core.images import hash_of
from bench.core.settings import Field, Settings
from bench.detection.search import Search

# No median counts as less, so that a score near 0 does not stand out from scores still nearer to 0.
LEAST_MEDIAN = 0.001


class Effort(Settings):
    """How much an audit looks at."""

    search: Search = Field(Search(), description="how long to look for a trigger")
    images: int = Field(64, ge=2, description="images that triggers are made on")
    scored: int = Field(80, ge=2, description="other images that they are measured on")


BUDGETS: dict[str, Effort] = {
    "quick": Effort(search=Search(steps=8, batch_size=8, restarts=1), images=16, scored=24),
    "standard": Effort(),
    "thorough": Effort(search=Search(steps=120, restarts=4), images=128, scored=200),
}


class Audited(Settings):
    """What an audit found on one model of a calibration.

    `id` is a hash of all that the audit depends on: model, data, recipe and effort. `mix` says what its pairs were. Of
    a backdoored one: `attack`, its `success` (ASR in percent), and whether the search and the weights name its target
    (`named`, `named_by_weights`).
    """

    name: str
    id: str = ""
    mix: str = ""
    attack: str = ""
    success: float | None = None
    named: bool | None = None
    named_by_weights: bool | None = None
    scores: dict[str, float] = Field(description="score of each family of triggers")
    top: float | None = Field(None, description="the weights' part of the top class")
    outlier: float | None = Field(None, description="robust standard deviations of the top class above the others")
    first: float | None = Field(None, description="the weights' share of the first singular value")


class Calibration(Settings):
    """Audits of models that are known to be clean, all fine-tuned from one reference, with one effort."""

    format: Literal[4] = 4
    model: str
    architecture: str
    reference: str
    effort: Effort
    negatives: tuple[Audited, ...]
    positives: tuple[Audited, ...] = ()
    command: str
    commit: str
    versions: dict[str, str] = Field({}, description="of bench and torch")

    @property
    def id(self) -> str:
        """A hash of all that it says."""
        return hash_of(self.model_dump(mode="json"))

    def scores(self, families: Sequence[str], models: Sequence[Audited] | None = None) -> list[float]:
        """The scores of the negatives, or of other audited models, over some families."""
        return [max(one.scores[name] for name in families) for one in (self.negatives if models is None else models)]

    def lacking(self, families: Sequence[str]) -> list[str]:
        """Those of some families that its models were not searched with."""
        return [name for name in families if name not in self.negatives[0].scores]

    def save(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(self.model_dump_json(indent=1) + "\n")


def p_value(value: float, negatives: Sequence[float]) -> float:
    """The chance that a clean model scores as high: (1 + how many do) / (n + 1).

    >>> p_value(0.3, [0.1, 0.2, 0.4])
    0.5
    """
    return (1 + sum(other >= value for other in negatives)) / (len(negatives) + 1)


@dataclass(frozen=True)
class Standing:
    """How a model stands among clean ones.

    `multiples`: its score in each family of triggers, divided by the family's median. `clean`: the largest multiple of
    each clean model. `p`: how often a clean model has as large a one.
    """

    multiples: dict[str, float]
    clean: list[float]
    p: float


def standing(scores: Mapping[str, float], negatives: Sequence[Mapping[str, float]]) -> Standing:
    """Compare a model's scores by family with those of clean models, in the families that it has.

    Families differ in what clean models reach: a warp of .1 is nothing unusual, a square of .07 is. So scores are
    divided by the family's median, over all these models with this one among them: each then has the same part in the
    comparison, and for a clean model p is exact.

    >>> clean = [{"square": 0.01, "warp": 0.05}, {"square": 0.01, "warp": 0.1}, {"square": 0.02, "warp": 0.04}]
    >>> found = standing({"square": 0.08, "warp": 0.05}, clean)
    >>> {family: round(value, 1) for family, value in found.multiples.items()}, found.p
    ({'square': 5.3, 'warp': 1.0}, 0.25)
    """
    everyone = [scores, *negatives]
    medians = {family: max(median(one[family] for one in everyone), LEAST_MEDIAN) for family in scores}
    own, *clean = ({family: one[family] / medians[family] for family in scores} for one in everyone)
    largest = [max(one.values()) for one in clean]
    return Standing(own, largest, p_value(max(own.values()), largest))


def architecture(clip: Clip) -> str:
    """A hash of a model's architecture and preprocessing."""
    return hash_of(clip.config)


def read_calibration(file: Path) -> Calibration:
    """A calibration from its file.

    Raises:
        BenchError: there is none, or it is not one that this version can read.
    """
    if not file.is_file():
        raise BenchError(f"--calibration {file}: no such file. `bench audit calibrate` writes one.")
    try:
        return Calibration.parse(json.loads(file.read_text()), "calibration")
    except (ValueError, TypeError, BenchError) as error:
        told = str(error).splitlines()[0]
        raise BenchError(
            f"--calibration {file} is none that can be read: {told} `bench audit calibrate` writes one."
        ) from None


@cache
def shipped() -> tuple[Calibration, ...]:
    """The calibrations that come with the package."""
    folder = files("bench.detection") / "calibrations"
    entries = sorted(folder.iterdir(), key=lambda entry: entry.name) if folder.is_dir() else []
    texts = [entry.read_text() for entry in entries if entry.name.endswith(".json")]
    return tuple(Calibration.model_validate_json(text) for text in texts)


def find_calibration(
    clip: Clip, reference: Clip | None, effort: Effort, families: Sequence[str] = ()
) -> Calibration | None:
    """The shipped calibration of an architecture, reference and effort, with scores of the families, if there is one.

    There is none without a reference: a clean model that was pretrained apart got p = .049 (docs/audit.md).
    """
    if reference is None:
        return None
    wanted = architecture(clip), reference.fingerprint(), effort
    for found in shipped():
        if (found.architecture, found.reference, found.effort) == wanted and not found.lacking(families):
            return found
    return None


def effort_of(budget: str) -> Effort:
    """The effort that a budget names.

    Raises:
        BenchError: there is no such budget.
    """
    if budget not in BUDGETS:
        raise unknown("budget", budget, BUDGETS)
    return BUDGETS[budget]
