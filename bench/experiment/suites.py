"""The variants of a run that a paper's suite declares, and which of them cannot be run."""

from collections.abc import Iterator
from typing import Any

from bench.core.attack import Facing
from bench.experiment.settings import BASE, RunSettings, Variants, overlay
from bench.models import has_vision_transformer, sizes
from bench.papers import find_suite


def suite_settings(name: str | None) -> dict[str, Any]:
    """The settings of all variants of a suite, its attacks and defenses included; {} without a suite."""
    if name is None:
        return {}
    suite = find_suite(name)
    lists = {"attacks": suite.attacks, "defenses": suite.defenses}
    return suite.settings | {key: list(names) for key, names in lists.items() if names is not None}


def variants_of(base: RunSettings, suite: str | None = None) -> tuple[Variants, dict[str, str]]:
    """The settings of every variant of a suite, the base first; and the variants left out, with reasons.

    Raises:
        BenchError: there is no such suite, or a variant's settings are wrong.
    """
    variants, left_out = {BASE: base}, {}
    for name, values in find_suite(suite).declared(base.embedded).items() if suite else ():
        if isinstance(values, str):
            left_out[name] = values
            continue
        run = overlay(base, values)
        # --defenses selects among a variant's defenses, as it does for the base.
        run = run.model_copy(update={"defenses": tuple(d for d in run.defenses if d in base.defenses)})
        if reason := next(_impossible(run, base), None):
            left_out[name] = reason
        else:
            variants[name] = run
    return variants, left_out


def _impossible(run: RunSettings, base: RunSettings) -> Iterator[str]:
    """Reasons why a variant cannot be run, judged by settings and the model's configuration."""
    if not run.defenses:
        yield "none of its defenses is among --defenses"
    if run.tuned_on == base.dataset:
        yield f"{base.dataset} is the run's own data set; take a preset of another one: `bench list presets`"
    facing = Facing(
        sizes=sizes(run.model),
        vision_transformer=has_vision_transformer(run.model),
        images_per_class=run.data(run.tuned_on or run.dataset).images_per_class,
    )
    for name in run.attacks:
        if reason := run.attack(name).unsuited(facing):
            yield f"{name}: {reason}"
    for name in run.single_defenses:
        if reason := run.defense(name).unsuited(facing):
            yield f"{name}: {reason}"
