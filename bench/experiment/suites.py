"""Suites: for each table or figure of the paper, the variants of a run that fill it.

`paper` holds a variant's settings at the paper's scale, `mini` those on the embedded world. A string in their place
says why there is no such variant. The paper prints its figure 3 without numbers and names few of the settings shown;
the others are ours. Variants are called as in published.csv, or KEY=VALUE.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.core.errors import unknown

Values = dict[str, Any]
Declared = Mapping[str, Values | str]

# The ablations' attacks; those that the paper launches with a target of every data set.
THREE = ("badnet", "blended", "badclip")
TRANSFERABLE = ("badnet", "blended", "wanet")
PERTURBATIONS = [
    *("gaussian-0.01", "gaussian-0.03", "blur-3", "blur-5", "jitter", "flip", "badnet", "blended", "badclip", "trigger")
]
DOMAINS = ("imagenet-v2", "imagenet-a", "imagenet-r", "imagenet-sketch")


@dataclass(frozen=True)
class Suite:
    """What a suite runs: the base (the run's own settings) and the variants; each against all attacks.

    `attacks` is None where the preset's are meant. `mini` is None where the embedded world takes `paper`'s. `base` are
    settings of the base, and so of all.
    """

    shows: str
    defenses: tuple[str, ...] = ("none", "rvpt")
    attacks: tuple[str, ...] | None = THREE
    paper: Declared = field(default_factory=dict)
    mini: Declared | None = None
    base: Values = field(default_factory=dict)

    def declared(self, embedded: bool) -> Declared:
        return self.mini if embedded and self.mini is not None else self.paper


def _sweep(key: str, settings: Callable[[Any], Values], *values: float) -> Declared:
    return {f"{key}={value:g}": settings(value) for value in values}


def _rvpt(**settings: Any) -> Values:
    return {"rvpt": settings}


SUITES: dict[str, Suite] = {
    "main": Suite("tables 1, 2 and S7", ("none", "cleanclip", "linear_probe", "rvpt"), attacks=None),
    "emerging-target": Suite(
        "table 3: RVPT tuned without the target class",
        attacks=TRANSFERABLE,
        paper={"with_target_class": {}, "without_target_class": _rvpt(without_target=True)},
    ),
    "cross-dataset": Suite(
        "table 4: RVPT tuned on ImageNet, tested on the run's data set",
        ("none", "cleanclip", "rvpt"),
        TRANSFERABLE,
        paper={
            "tuned_on_cc3m": {"defenses": ["cleanclip"]},
            "tuned_on_imagenet": {"defenses": ["rvpt"], "tuned_on": "imagenet"},
        },
        mini={
            "tuned_on_cc3m": {"defenses": ["cleanclip"]},
            "tuned_on_imagenet": "there is no other world to tune on",
        },
    ),
    "cross-domain": Suite(
        "table 5: tuned on ImageNet, tested under a shift of domain",
        ("none", "cleanclip", "rvpt"),
        paper={name: {"evaluate": {"dataset": name}} for name in DOMAINS},
        mini=dict.fromkeys(DOMAINS, "the embedded world has one domain"),
    ),
    "combination": Suite(
        "table S2: chains of defenses", ("none", "cleanclip+linear_probe", "rvpt+linear_probe", "cleanclip+rvpt")
    ),
    "distance": Suite(
        "table S3: the distance that RVPT repels by",
        paper={name: _rvpt(distance=name) for name in ("l1", "l2", "cosine")},
    ),
    "permutation": Suite(
        "table S4: where prompts and repelled features are",
        paper={name: _rvpt(permutation=name) for name in ("split", "overlap", "intertwine", "mix")},
    ),
    "prompt": Suite(
        "table S5: the handcrafted prompt",
        paper={
            "<CLS>": _rvpt(template="{}"),
            "###### <CLS>": _rvpt(template="###### {}"),
            "a photo of a <CLS>": _rvpt(template="a photo of a {}."),
        },
    ),
    "architecture": Suite(
        "table S6: other image towers",
        ("none", "linear_probe", "rvpt"),
        paper={name: {"model": {"name": name}} for name in ("ViT-B-16", "ViT-L-14")},
        mini=dict.fromkeys(("ViT-B-16", "ViT-L-14"), "the embedded world has one model"),
    ),
    "shots": Suite(
        "figure 3 a: shots a class",
        paper=_sweep("shots", lambda k: _rvpt(shots=k), 1, 2, 4, 8, 16, 32),
        mini=_sweep("shots", lambda k: _rvpt(shots=k), 1, 4, 16, 32, 64),
    ),
    "alpha": Suite(
        "figure 3 b: the weight of the feature-repelling loss",
        paper=_sweep("alpha", lambda weight: _rvpt(alpha=weight), 0, 0.5, 1, 2, 3, 4, 5),
    ),
    "context-length": Suite(
        "figure 3 c: b, the prompts of a block",
        paper=_sweep("b", lambda b: _rvpt(prompts=b), 5, 10, 25, 50, 75, 100),
        mini=_sweep("b", lambda b: _rvpt(prompts=b), 2, 4, 8, 16, 32),
    ),
    "depth": Suite(
        "figure 3 d, e: prompted blocks, counted from the output and from the input",
        # A preset's D would contradict the count; 3 is its default.
        paper={
            **_sweep("depth", lambda k: _rvpt(depth=3, last_blocks=k), 1, 3, 6, 9, 12, 24),
            **_sweep("depth_from_input", lambda k: _rvpt(depth=3, first_blocks=k), 1, 3, 6, 9, 12, 24),
        },
    ),
    "margin": Suite(
        "figure 3 f: the margin of the feature-repelling loss",
        paper=_sweep("margin", lambda margin: _rvpt(margin=margin), -1, -0.5, 0, 0.5, 1),
    ),
    "pr": Suite(
        "table S1 and figure S2: Perturbation Resistivity, and against ASR",
        ("none", "cleanclip", "linear_probe", "vpt", "rvpt"),
        paper={
            "vpt_16shot": {"defenses": ["vpt"], "vpt": {"shots": 16}},
            "rvpt_1shot": {"defenses": ["rvpt"], "rvpt": {"shots": 1}},
            "rvpt_16shot": {"defenses": ["rvpt"], "rvpt": {"shots": 16}},
            "supervised_vit": "bench measures CLIPs, and a supervised ViT has no text side",
        },
        base={"zero_shot": {"perturbations": PERTURBATIONS}},
    ),
}


def find_suite(name: str) -> Suite:
    """The suite of a name.

    Raises:
        BenchError: there is none.
    """
    if name not in SUITES:
        raise unknown("suite", name, SUITES, "`bench list suites` explains them.")
    return SUITES[name]
