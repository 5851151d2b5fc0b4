"""What a defense is given: what it declares in `needs`, drawn from the seed, and nothing else."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from rich.console import Console
from tiny import TINY
from tuning import CLASSES, make_images

from bench.core.clip import Clip
from bench.core.defense import CleanData, Need
from bench.core.errors import BenchError
from bench.core.images import Captioned, Images, Labelled, hash_of
from bench.core.registry import load_plugins
from bench.core.victim import Victim
from bench.experiment.settings import BASE, resolve
from bench.matrix.runner import run_matrix
from bench.results.folder import ResultsFolder

PLUGIN = """
from dataclasses import replace

from bench import Defense, Field, Labelled, defense


@defense("peeks")
class Peeks(Defense):
    needs = frozenset({"unlabelled"})

    def fit(self, victim, data):
        data.shots(1)
        return victim


@defense("looks")
class Looks(Defense):
    needs = frozenset({"unlabelled"})
    n: int = Field(5, description="images")

    def fit(self, victim, data):
        images = data.unlabelled(self.n)
        data.record(labelled=isinstance(images, Labelled) or hasattr(images, "labels"), images=len(images))
        return victim


@defense("looks_after_shots")
class LooksAfterShots(Looks):
    needs = frozenset({"unlabelled", "shots"})

    def fit(self, victim, data):
        data.shots(1)
        return super().fit(victim, data)


@defense("starts_anew")
class StartsAnew(Defense):
    needs = frozenset({"base"})

    def fit(self, victim, data):
        return replace(victim, clip=data.base())
"""


# --- through the matrix


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A results folder of the plug-in's defenses, two seeds, and the failures of its run."""
    root = tmp_path_factory.mktemp("needs")
    (root / "needs.py").write_text(PLUGIN)
    load_plugins((root / "needs.py",))
    flags = {"attacks": ("badnet",), "defenses": ("none", "peeks", "looks", "looks_after_shots", "starts_anew")}
    variants = {BASE: resolve("smoke", None, flags | {"seeds": (0, 1)}, TINY)}
    return root / "out", run_matrix(variants, root / "out", (root / "needs.py",), Console(quiet=True)).failures


def test_a_defense_that_takes_what_it_does_not_declare_is_refused(ran: tuple[Path, dict]) -> None:
    failures = ran[1]
    told = "this defense takes `shots` and does not declare it: write needs = frozenset({'shots'})"
    assert failures["defense badnet / peeks, seed 0"] == told
    failed = {label.partition(", ")[0] for label in failures}
    assert failed == {f"{kind} badnet / peeks" for kind in ("defense", "evaluation")}


def test_all_defenses_of_a_seed_are_given_the_same_unlabelled_images(ran: tuple[Path, dict]) -> None:
    folder = ResultsFolder(ran[0])
    cards = {
        (cell.defense, cell.seed): folder.lineage(cell).defenses[0]
        for cell in folder.cells
        if cell.defense.startswith("looks")
    }
    assert all((card.log["labelled"], card.log["images"]) == ([0], [5]) for card in cards.values())
    drawn = {seed: cards["looks", seed].shots for seed in (0, 1)}
    assert len(set(drawn[0])) == 5 and set(drawn[0]) != set(drawn[1])
    for seed, images in drawn.items():
        card = cards["looks_after_shots", seed]
        # What was drawn before stands on the card, too: the check for evaluated images reads it.
        assert card.needs == ("shots", "unlabelled") and set(images) <= set(card.shots)
        classes = len(folder.resources.train.classes)
        assert classes <= len(card.shots) == len(set(card.shots)) == card.samples <= classes + 5


def test_the_base_is_the_clean_model(ran: tuple[Path, dict]) -> None:
    folder = ResultsFolder(ran[0])
    seen = {cell.defense: folder.observations(cell) for cell in folder.cells if cell.seed == 0}
    pd.testing.assert_frame_equal(
        seen["starts_anew"]["similarities"], seen["clean_model"]["similarities"], check_exact=True
    )
    assert not seen["starts_anew"]["similarities"].equals(seen["none"]["similarities"])
    [cell] = [cell for cell in folder.cells if (cell.defense, cell.seed) == ("starts_anew", 0)]
    [card] = folder.lineage(cell).defenses
    assert card.determined_by["model"] == folder.resources.clip.fingerprint()
    assert folder.victim(cell).clip.fingerprint() == folder.resources.clip.fingerprint()


# --- alone


def data(needs: frozenset[Need], clip: Clip | None = None, train: Labelled | None = None, seed: int = 0) -> CleanData:
    train = train or make_images()
    pairs = Captioned(train.ids, train.pixels, "pairs", captions=["a cat"] * len(train))
    return CleanData(
        train,
        ("a photo of a {}.",),
        seed,
        target=1,
        open_pairs=lambda n: pairs.subset(torch.arange(n)),
        open_base=(lambda: clip) if clip else None,
        needs=needs,
    )


TAKES: dict[str, tuple[Need, Callable[[CleanData, Clip], object]]] = {
    "shots": ("shots", lambda given, _: given.shots(2)),
    "all images": ("shots", lambda given, _: given.all_images()),
    "unlabelled": ("unlabelled", lambda given, _: given.unlabelled(2)),
    "pairs": ("pairs", lambda given, _: given.pairs(2)),
    "base": ("base", lambda given, _: given.base()),
    "class names": ("class_names", lambda given, clip: given.class_embeddings(Victim(clip))),
}


@pytest.mark.parametrize("what", TAKES)
def test_nothing_is_given_that_is_not_declared(tiny_clip: Clip, what: str) -> None:
    need, take = TAKES[what]
    everything: frozenset[Need] = frozenset({"shots", "unlabelled", "pairs", "base", "class_names"})
    refused = data(everything - {need}, tiny_clip)
    with pytest.raises(BenchError, match=f"takes `{need}` and does not declare it: write needs = frozenset"):
        take(refused, tiny_clip)
    assert refused.used == []
    assert take(data(frozenset({need}), tiny_clip), tiny_clip) is not None


def test_unlabelled_images_have_no_labels_and_are_of_the_seed_alone() -> None:
    needs: frozenset[Need] = frozenset({"unlabelled", "shots"})
    first, second = data(needs), data(needs)
    second.shots(1)
    images, again = first.unlabelled(5), second.unlabelled(5)
    assert type(images) is Images and not hasattr(images, "labels") and not hasattr(images, "classes")
    assert images.ids == again.ids and torch.equal(images.load(range(5)), again.load(range(5)))
    train = first.train
    rows = [train.ids.index(id) for id in first.used]
    assert torch.equal(images.load(range(5)), train.load(rows))
    assert images.ids == [hash_of(train.ids[row]) for row in rows]
    assert torch.equal(images.load_native(3), train.load_native(rows[3]))
    assert first.unlabelled(2).ids == images.ids[:2]
    assert data(needs, seed=1).unlabelled(5).ids != images.ids
    everything = first.unlabelled(1000)
    assert sorted(first.used) == sorted(train.ids) and len(set(everything.ids)) == len(train)


def test_ids_of_unlabelled_images_do_not_name_the_class_folder() -> None:
    train = make_images()
    train = replace(train, ids=[f"train/{train.classes[label]}/{i}.jpg" for i, label in enumerate(train.labels)])
    given = data(frozenset({"unlabelled"}), train=train)
    images = given.unlabelled(len(train))
    assert not any(name in id for id in images.ids for name in train.classes)
    assert all(id.startswith("train/") for id in given.used), "the card keeps the ids of the data set"


def test_all_that_was_drawn_is_told_once() -> None:
    given = data(frozenset({"unlabelled", "shots"}))
    shots, unlabelled = given.shots(1), given.unlabelled(6)
    given.shots(1)
    assert len(shots) == len(CLASSES)
    assert given.used[: len(shots)] == shots.ids
    assert {hash_of(id) for id in given.used} == {*map(hash_of, shots.ids), *unlabelled.ids}
    assert len(given.used) == len(set(given.used))


def test_every_draw_is_checked() -> None:
    checked: list[int] = []
    train = make_images()
    needs: frozenset[Need] = frozenset({"unlabelled", "shots"})
    given = CleanData(train, (), 0, None, check=lambda images: checked.append(len(images)), needs=needs)
    given.shots(1)
    given.unlabelled(5)
    given.all_images()
    assert checked == [len(CLASSES), 5, len(train)]


def test_a_base_that_is_not_known_is_named() -> None:
    with pytest.raises(BenchError, match=r"compares with the clean model, and none is declared. Give --model NAME"):
        data(frozenset({"base"})).base()


def test_the_base_is_what_was_opened(tiny_clip: Clip) -> None:
    assert data(frozenset({"base"}), tiny_clip).base() is tiny_clip
