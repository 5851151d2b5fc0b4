"""A table shows results of one code, one split and one checkpoint, or none."""

from pathlib import Path
from typing import Any

from bench.core.errors import BenchError
from bench.results.store import Store

SHOWN = 3


def cards(out: Path, cell: dict) -> list[dict[str, Any]]:
    """What is known of how a finished cell was made: the cards of its backdoor, defenses and evaluation, as made.

    The card of a backdoor or a defense that was deleted to save room is left out.
    """
    store = Store(out)
    evaluation = store.card("evaluation", cell["evaluation"])
    chain: list[dict[str, Any]] = []
    subject = evaluation["determined_by"]["subject"]
    while store.has("defense", subject):
        chain.insert(0, store.card("defense", subject))
        subject = chain[0]["determined_by"]["subject"]
    backdoor = cell["backdoor"]
    first = [store.card("backdoor", backdoor)] if store.has("backdoor", backdoor) else []
    return [*first, *chain, evaluation]


def name_of(cell: dict) -> str:
    """A cell as messages name it; `cell` has the columns of the tidy table, with or without a seed."""
    variant = f" ({cell['variant']})" if cell.get("variant") else ""
    seed = f", seed {cell['seed']}" if "seed" in cell else ""
    return f"{cell['attack']} / {cell['defense']}{variant}{seed}"


def refuse_mixture(out: Path, cells: list[dict]) -> None:
    """Raise unless all cells are of one code, one split, and one checkpoint and data for each name.

    Raises:
        BenchError: they are not; it says which cells are of which.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for cell in cells:
        for kind, values in _origin(cell, cards(out, cell)).items():
            for value in sorted(values):
                found.setdefault(kind, {}).setdefault(value, []).append(name_of(cell))
    for kind, by_value in found.items():
        if len(by_value) > 1:
            parts = "; ".join(f"{value}: {_listed(names)}" for value, names in by_value.items())
            raise BenchError(
                f"{out} mixes {kind}, which one table must not. {parts}. Make them again in a folder of their own: "
                "`bench run ... --out OTHER`"
            )


def _origin(cell: dict, made: list[dict[str, Any]]) -> dict[str, set[str]]:
    inputs = {card["determined_by"]["kind"]: card["determined_by"] for card in made}
    variant = f" ({cell['variant']})" if cell.get("variant") else ""
    origin = {
        "versions of bench": {card["bench"] for card in made},
        "versions of its stages": {str(card["determined_by"]["version"]) for card in made},
        "versions of torch": {card["torch"] for card in made},
        "splits": {inputs["evaluation"]["evaluate"]["split"]},
        f"contents of the data set {cell['dataset']}{variant}": {inputs["evaluation"]["dataset"]},
    }
    if "backdoor" in inputs:
        checkpoints = (inputs["backdoor"]["model"], inputs["backdoor"].get("backdoored"))
        origin[f"checkpoints of {cell['model']}{variant}"] = {" and ".join(filter(None, checkpoints))}
    return origin


def _listed(names: list[str]) -> str:
    unique = list(dict.fromkeys(names))
    more = f" and {len(unique) - SHOWN} more" if len(unique) > SHOWN else ""
    return ", ".join(unique[:SHOWN]) + more
