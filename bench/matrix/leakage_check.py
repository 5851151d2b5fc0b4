"""Check that no test image was used for training, including by models loaded from the store."""

from collections.abc import Iterator

import torch

from bench.core.images import Labelled
from bench.experiment.resources import Resources
from bench.matrix.plan import Node
from bench.results.records import DefenseCard
from bench.results.store import Store


def check_apart(node: Node, resources: Resources, store: Store) -> list[str]:
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
    reasons = [_check_backdoor(node, resources, store)]
    reasons += [_check_defense(card, resources) for card in _defenses(node, store)]
    return [f"whether it was trained on images that are evaluated cannot be told: {why}" for why in reasons if why]


def _defenses(node: Node, store: Store) -> Iterator[DefenseCard | str]:
    """The cards of the defenses in the chain; the id of one whose card was deleted, before which nothing is known."""
    backdoor, *subject = node.victim_needs
    for id in subject:
        chain = store.chain(id)
        first = chain[0].determined_by["subject"] if chain else id
        if first != backdoor:
            yield first
        yield from chain


def _check_backdoor(node: Node, resources: Resources, store: Store) -> str:
    """Open the pairs of a backdoored model, which compares them; why that cannot be, or nothing."""
    card = store.backdoor_card(node.needs[0])
    if card.apart_from == resources.apart_from:
        return ""
    if card.backdoored is not None:
        return f"{card.backdoored} was trained elsewhere"
    resources.pairs_for(resources.attack(node.attack))
    return ""


def _check_defense(card: DefenseCard | str, resources: Resources) -> str:
    """Open the images and pairs of a defense, which compares them; why that cannot be, or nothing."""
    if isinstance(card, str):
        return f"the card of defense {card} was deleted"
    if card.apart_from == resources.apart_from:
        return ""
    if card.shots:
        images = _shots(card.shots, resources)
        if images is None:
            return "some of its training images are not there any more"
        resources.apart(images, "training images")
    for n in card.clean_pairs:
        resources.clean_pairs(n)
    return ""


def _shots(ids: tuple[str, ...] | str, resources: Resources) -> Labelled | None:
    """The training images that a card names, all of them if it names none; None if some are gone."""
    if isinstance(ids, str):
        return resources.train.decoded()
    at = {id: i for i, id in enumerate(resources.train.ids)}
    return resources.train.subset(torch.tensor([at[id] for id in ids])) if at.keys() >= set(ids) else None
