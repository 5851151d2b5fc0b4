"""No image that is evaluated was trained on, also where what was trained comes from the store."""

from collections.abc import Iterator
from typing import Any

import torch

from bench.core.images import Labelled
from bench.experiment.resources import Resources
from bench.matrix.plan import Node


def check_apart(node: Node, resources: Resources) -> list[str]:
    """Check that nothing an evaluation needs was trained on the images that it evaluates.

    A card tells which images its artefact was kept apart from. Where those are others, the pairs and few-shot images
    are opened again, and compared.

    Returns:
        What cannot be compared, and why: a line for each artefact.

    Raises:
        BenchError: some images are in both, and the data set's `allow_overlap` does not allow it.
    """
    if resources.apart_from is None:
        return []
    told = [_check(kind, id, node, resources) for kind, id in _trained(node, resources)]
    return [f"whether it was trained on images that are evaluated cannot be told: {why}" for why in told if why]


def _trained(node: Node, resources: Resources) -> Iterator[tuple[str, str]]:
    """Kind and id of the backdoor, and of each defense in the chain, the last one first."""
    backdoor, *subject = node.victim_needs
    yield "backdoor", backdoor
    for id in subject:
        while id != backdoor:
            yield "defense", id
            if not resources.store.has("defense", id):
                return
            id = resources.store.card("defense", id)["determined_by"]["subject"]


def _check(kind: str, id: str, node: Node, resources: Resources) -> str:
    """Open what an artefact was trained on, which compares it; why that cannot be, or nothing."""
    if not resources.store.has(kind, id):
        return f"the card of {kind} {id} was deleted"
    card = resources.store.card(kind, id)
    if card.get("apart_from") == resources.apart_from:
        return ""
    if "backdoored" in card:
        return f"{card['backdoored']} was trained elsewhere"
    if kind == "backdoor":
        resources.pairs_for(resources.attack(node.attack))
        return ""
    return _check_defense(card, resources)


def _check_defense(card: dict[str, Any], resources: Resources) -> str:
    shots = 0
    if card["shots"]:
        images = _shots(card["shots"], resources)
        if images is None:
            return "its few-shot images are not there any more"
        resources.apart(images, "few-shot images")
        shots = len(images)
    if "clean_pairs" not in card and card["samples"] > shots:
        return f"an older version made defense {card['id']}, and does not tell on which pairs"
    for n in card.get("clean_pairs", []):
        resources.clean_pairs(n)
    return ""


def _shots(ids: list[str] | str, resources: Resources) -> Labelled | None:
    """The training images that a card names, all of them if it names none; None if some are gone."""
    if isinstance(ids, str):
        return resources.train.decoded()
    at = {id: i for i, id in enumerate(resources.train.ids)}
    return resources.train.subset(torch.tensor([at[id] for id in ids])) if at.keys() >= set(ids) else None
