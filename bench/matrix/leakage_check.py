"""Check that no test image was used for training, including by models loaded from the store."""

from collections.abc import Iterator

import torch

from bench.core.images import Labelled
from bench.experiment.resources import Resources
from bench.matrix.plan import Node
from bench.results.records import DefenseCard
from bench.results.store import Store


def check_leakage(node: Node, resources: Resources, store: Store) -> list[str]:
    """Check that the backdoored model and the defenses of an evaluation were not trained on its images.

    Cards say against which images their artefact was checked when it was made. If those are not the evaluated images,
    the pairs and training images are opened again and compared with the evaluated ones.

    Returns:
        A line for each artefact that cannot be checked, with the reason.

    Raises:
        BenchError: some images are in both, and the data set's `allow_overlap` does not allow it.
    """
    if resources.apart_from is None:
        return []
    reasons = [_check_backdoor(node, resources, store)]
    reasons += [_check_defense(card, resources) for card in _defenses(node, store)]
    return [f"whether it was trained on evaluated images cannot be checked: {why}" for why in reasons if why]


def _defenses(node: Node, store: Store) -> Iterator[DefenseCard | str]:
    """The cards of the chain's defenses; for a deleted card its id, and nothing for defenses before it."""
    backdoor, *subject = node.victim_needs
    for id in subject:
        chain = store.chain(id)
        first = chain[0].determined_by["subject"] if chain else id
        if first != backdoor:
            yield first
        yield from chain


def _check_backdoor(node: Node, resources: Resources, store: Store) -> str:
    """Check the pairs of a backdoored model by opening them; returns why that is impossible, or ""."""
    card = store.backdoor_card(node.needs[0])
    if card.apart_from == resources.apart_from:
        return ""
    if card.backdoored is not None:
        return f"{card.backdoored} was trained elsewhere"
    resources.pairs_for(resources.attack(node.attack))
    return ""


def _check_defense(card: DefenseCard | str, resources: Resources) -> str:
    """Check the images and pairs of a defense by opening them; returns why that is impossible, or ""."""
    if isinstance(card, str):
        return f"the card of defense {card} was deleted"
    if card.apart_from == resources.apart_from:
        return ""
    if card.shots:
        images = _shots(card.shots, resources)
        if images is None:
            return "some of its training images no longer exist"
        resources.check_leakage(images, "training images")
    for n in card.clean_pairs:
        resources.clean_pairs(n)
    return ""


def _shots(ids: tuple[str, ...] | str, resources: Resources) -> Labelled | None:
    """The training images with these ids, or all for "all training images"; None if some no longer exist."""
    if isinstance(ids, str):
        return resources.train.decoded()
    at = {id: i for i, id in enumerate(resources.train.ids)}
    return resources.train.subset(torch.tensor([at[id] for id in ids])) if at.keys() >= set(ids) else None
