"""No image that is evaluated was trained on, also where what was trained comes from the store."""

from collections.abc import Iterator
from typing import Any

import torch

from bench.core.images import Labelled
from bench.matrix.plan import Node
from bench.matrix.workshop import Workshop


def check_apart(node: Node, shop: Workshop) -> list[str]:
    """Check that nothing an evaluation needs was trained on the images that it evaluates.

    A card tells which images its artefact was kept apart from. Where those are others, the pairs and few-shot images
    are opened again, and compared.

    Returns:
        What cannot be compared, and why: a line for each artefact.

    Raises:
        BenchError: some images are in both, and the data set's `allow_overlap` does not allow it.
    """
    if shop.apart_from is None:
        return []
    told = [_check(kind, id, node, shop) for kind, id in _trained(node, shop)]
    return [f"whether it was trained on images that are evaluated cannot be told: {why}" for why in told if why]


def _trained(node: Node, shop: Workshop) -> Iterator[tuple[str, str]]:
    """Kind and id of the backdoor, and of each defense in the chain, the last one first."""
    backdoor, *subject = node.victim_needs
    yield "backdoor", backdoor
    for id in subject:
        while id != backdoor:
            yield "defense", id
            if not shop.store.has("defense", id):
                return
            id = shop.store.card("defense", id)["determined_by"]["subject"]


def _check(kind: str, id: str, node: Node, shop: Workshop) -> str:
    """Open what an artefact was trained on, which compares it; why that cannot be, or nothing."""
    if not shop.store.has(kind, id):
        return f"the card of {kind} {id} was deleted"
    card = shop.store.card(kind, id)
    if card.get("apart_from") == shop.apart_from:
        return ""
    if "backdoored" in card:
        return f"{card['backdoored']} was trained elsewhere"
    if kind == "backdoor":
        shop.pairs_for(shop.attack(node.attack))
        return ""
    return _check_defense(card, shop)


def _check_defense(card: dict[str, Any], shop: Workshop) -> str:
    shots = 0
    if card["shots"]:
        images = _shots(card["shots"], shop)
        if images is None:
            return "its few-shot images are not there any more"
        shop.apart(images, "few-shot images")
        shots = len(images)
    if "clean_pairs" not in card and card["samples"] > shots:
        return f"an older version made defense {card['id']}, and does not tell on which pairs"
    for n in card.get("clean_pairs", []):
        shop.clean_pairs(n)
    return ""


def _shots(ids: list[str] | str, shop: Workshop) -> Labelled | None:
    """The training images that a card names, all of them if it names none; None if some are gone."""
    if isinstance(ids, str):
        return shop.train.decoded()
    at = {id: i for i, id in enumerate(shop.train.ids)}
    return shop.train.subset(torch.tensor([at[id] for id in ids])) if at.keys() >= set(ids) else None
