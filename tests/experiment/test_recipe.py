"""The authors' recipe: what it sets, that each difference is a setting, and that the defaults keep their ids."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import bench
from bench import BenchError, Trigger, generator, mentions
from bench.core.attack import attacks
from bench.core.poisoning import draw_manifest, poison
from bench.core.registry import load_plugins
from bench.core.settings import merge, nest
from bench.experiment.resources import Resources
from bench.experiment.settings import BASE, RunSettings, resolve
from bench.matrix.plan import Fingerprints, make_plan
from bench.matrix.runner import Report, check_installed
from bench.models import ModelSettings, load_model
from bench.papers import find_recipe, papers
from bench.training import eda
from bench.training.fine_tuning import FineTuning
from reports.command import flat

PAPER_PRESETS = ("paper-imagenet", "paper-caltech101", "paper-oxfordpets")
RECIPE = find_recipe("authors").settings
PRINTS = Fingerprints("model", "pairs", "words", "tuned", "tested")


@pytest.fixture(autouse=True, scope="module")
def _plugins() -> None:
    load_plugins()


def ids(run: RunSettings) -> set[str]:
    return set(make_plan({BASE: run}, {BASE: PRINTS}).nodes)


@pytest.mark.parametrize("preset", PAPER_PRESETS)
def test_the_recipe_is_a_preset_with_settings_on_top(preset: str) -> None:
    ours, authors = resolve(preset), resolve(preset, recipe="authors")
    assert ids(ours).isdisjoint(ids(authors))
    stamped = [authors.attack(name) for name in attacks if name in RECIPE]
    assert len(stamped) == 7
    assert {(attack.geometry, attack.rounding) for attack in stamped} == {("squash", "truncate")}
    assert (authors.attack("badnet").overflow, authors.attack("label_consistent").overflow) == ("wrap", "wrap")
    assert (authors.poison.learning_rate, authors.poison.count) == (ours.poison.learning_rate, 1500)
    assert resolve(preset, None, {}, ("badnet.overflow=clip",), recipe="authors").attack("badnet").overflow == "clip"


# `model.long_texts` counts in the model's fingerprint.
@pytest.mark.parametrize("setting", [name for name in flat(RECIPE) if name != "model.long_texts"])
def test_each_difference_is_a_setting_that_counts_in_the_id_alone(setting: str) -> None:
    value = flat(RECIPE)[setting]
    chosen = {"attacks": tuple(papers["rvpt"].labels.attacks), "defenses": ("cleanclip", "rvpt", "vpt")}
    # `first_step` counts in the id even where the warm-up is none; `pool` only for an attack that searches one.
    base = resolve("paper-caltech101", None, chosen, ("badclip.targets=pool",))
    changed = resolve("paper-caltech101", None, merge(chosen, nest(setting, value)), ("badclip.targets=pool",))
    if setting == "badclip.targets":
        base = resolve("paper-caltech101", None, chosen, ("badclip.targets=set",))
    assert ids(base) != ids(changed)


def test_version_3_has_no_label_consistent() -> None:
    assert "label_consistent" in resolve("paper-imagenet", paper="v1").attacks
    third = resolve("paper-imagenet", paper="v3")
    assert "label_consistent" not in third.attacks and len(third.attacks) == 6
    assert resolve("paper-caltech101", paper="v3").attacks == ("badnet", "blended", "wanet")
    asked = resolve("paper-imagenet", None, {"attacks": ("label_consistent",)}, paper="v3")
    assert asked.attacks == ("label_consistent",)


def test_an_unknown_recipe() -> None:
    with pytest.raises(BenchError, match=r"unknown recipe 'author'. Did you mean 'authors'\?\n.*bench list recipes"):
        resolve("paper-imagenet", recipe="author")


def test_python_takes_a_version_and_a_recipe_as_the_command_line_does(monkeypatch: pytest.MonkeyPatch) -> None:
    planned = []

    def plan(variants: dict[str, RunSettings], *_: object) -> Report:
        planned.append(variants[BASE])
        return Report(0, 0, {}, shown=False)

    monkeypatch.setattr("bench.api.run_matrix", plan)
    asked = {"preset": "paper-imagenet", "paper": "v3", "recipe": "authors", "imagenet": {"prompts": "openai80"}}
    with pytest.raises(BenchError, match="no cell of this run can be measured"):
        bench.run("badnet", ["none", "cleanclip"], quiet=True, **asked)
    flags = {"attacks": ("badnet",), "defenses": ("none", "cleanclip"), "imagenet": asked["imagenet"]}
    expected = resolve("paper-imagenet", None, flags, paper="v3", recipe="authors")
    assert planned[0].experiment == expected.experiment and planned[0].attack("badnet").overflow == "wrap"
    assert planned[0].defense("cleanclip").pairs == 250_000
    with pytest.raises(BenchError, match=r"unknown recipe 'author'\. Did you mean 'authors'"):
        bench.run("badnet", recipe="author")


def test_one_model_is_evaluated_with_the_recipes_trigger(tmp_path: Path) -> None:
    def resistivity(**how: object) -> float:
        asked = {"zero_shot": {"perturbations": ["trigger"], "perturbation_images": 8}, "evaluate": {"limit": 8}}
        rows = bench.evaluate(None, "badnet", preset="smoke", cache=tmp_path, **asked, **how)
        return rows.set_index("metric").loc["PR_cos", "value"]

    alone = {"badnet": find_recipe("authors").settings["badnet"]}
    assert resistivity() != resistivity(recipe="authors") == resistivity(**alone)


# --- the schedule


def theirs(step: int, base: float, warmup: int, total: int) -> float:
    """CleanCLIP's scheduler, in our words: `step` is counted over epochs from 1."""
    if step < warmup:
        return base * (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) * base


@pytest.mark.parametrize(("epochs", "steps", "warmup"), [(5, 40, 100), (10, 20, 50), (5, 30, 10)])
def test_the_schedule_is_the_authors(epochs: int, steps: int, warmup: int) -> None:
    recipe = FineTuning(epochs=epochs, warmup_steps=warmup, warmup_share=1, first_epoch=1, first_step=1)
    rates = [recipe.rate(step, steps) for step in range(epochs * steps)]
    expected = [
        theirs(steps * epoch + index, 1.0, warmup, epochs * steps)
        for epoch in range(1, epochs + 1)
        for index in range(steps)
    ]
    assert rates == pytest.approx(expected)
    assert rates[-1] > min(rates) == pytest.approx(0, abs=1e-12)


def test_each_part_of_the_schedule_alone() -> None:
    def rates(**settings: float) -> list[float]:
        recipe = FineTuning(epochs=4, warmup_steps=20, **settings)
        return [recipe.rate(step, 10) for step in range(40)]

    ours = rates()
    assert ours[:5] == [0, 0.25, 0.5, 0.75, 1]
    assert rates(warmup_share=1)[:21] == [step / 20 for step in range(21)]
    assert rates(first_step=1)[:4] == [0.25, 0.5, 0.75, 1]
    assert rates(first_step=1)[4:] == ours[4:]
    assert rates(first_epoch=1)[:30] == ours[10:]


# --- WordNet


def test_wordnet_is_asked_for_before_a_run_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eda, "wordnet", lambda: None)
    run = resolve("paper-imagenet", None, {"attacks": ("badnet",)})
    with pytest.raises(BenchError, match=r"cleanclip.synonyms = wordnet needs nltk.*clip-backdoor-bench\[wordnet\]"):
        check_installed(run)
    check_installed(resolve("paper-imagenet", None, {"attacks": ("badnet",), "defenses": ("none", "rvpt")}))
    with pytest.raises(BenchError, match=r"badclip.synonyms = wordnet"):
        check_installed(resolve("paper-imagenet", None, {"attacks": ("badclip",), "defenses": ("none",)}))
    # The authors' edited captions are never used, so nothing is needed.
    check_installed(resolve("paper-imagenet", None, {"attacks": ("badclip",), "defenses": ("none",)}, recipe="authors"))


def test_elsewhere_its_absence_is_a_warning_and_its_presence_counts_in_the_id(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {"attacks": ("badnet",), "defenses": ("cleanclip",)}
    run = resolve("vit-b-32", None, chosen, ("target=a",))
    monkeypatch.setattr(eda, "wordnet", lambda: None)
    with pytest.warns(UserWarning, match="two of EDA's four edits are left: WordNet is not installed. pip install"):
        check_installed(run)
    without = ids(run)
    monkeypatch.setattr(eda, "wordnet", lambda: lambda _: ["other"])
    check_installed(run)
    assert len(ids(run) - without) == 2, "the defense and its evaluation"
    assert ids(resolve("mini", None, chosen)) == ids(resolve("mini", None, chosen, ("cleanclip.synonyms=none",)))


# --- texts


def test_long_texts_lose_their_end_token_where_asked_for() -> None:
    ours, theirs = (load_model(ModelSettings(long_texts=how), "cpu") for how in ("end", "cut"))
    assert ours.fingerprint() == load_model(ModelSettings(), "cpu").fingerprint() != theirs.fingerprint()
    context = ours.tokenize(["a"]).shape[1]
    # One token a word: two fewer fit, beside start and end.
    texts = [" ".join(["dog"] * n) for n in (3, context - 2, context - 1, 2 * context)]
    kept, cut = ours.tokenize(texts), theirs.tokenize(texts)
    start, word, end = kept[0, 0], kept[0, 1], kept[0, 4]
    assert torch.equal(kept[:2], cut[:2]) and kept[1, -1] == end
    assert (kept[2:, -1] == end).all() and (cut[2:, -1] == word).all()
    assert torch.equal(kept[:, :-1], cut[:, :-1]) and (cut[:, 0] == start).all()
    assert torch.equal(theirs.copy().tokenize(texts), cut)


# --- pairs


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """48 wide pairs, of which every fourth names the target."""
    rows = [("image", "caption")]
    for i in range(48):
        pixels = torch.randint(256, (40, 80, 3), generator=generator(i, "photo"), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / f"{i}.png")
        rows.append((f"{i}.png", f"a banana, kind {i}" if i % 4 == 0 else f"a star, kind {i}"))
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return tmp_path / "pairs.csv"


def opened(photos: Path, *assignments: str) -> Resources:
    given = ("poison.pairs=8", "poison.count=6", "poison.pool=100", *assignments)
    return Resources(resolve("smoke", None, {"pairs": photos}, given), photos.parent / "cache", "cpu")


def test_label_consistent_draws_from_all_pairs_where_they_are_not_halved(photos: Path) -> None:
    def candidates(resources: Resources) -> int:
        method = resources.attack("label_consistent")
        pairs = resources.pairs_for(method)
        assert len(pairs) == 8
        return sum(mentions(caption, "banana") for caption in pairs.captions)

    halved, whole = (
        candidates(opened(photos, "poison.count=8")),
        candidates(opened(photos, "poison.count=8", "poison.halves=false")),
    )
    assert halved < whole == 8


def test_badclip_takes_targets_from_the_pool(photos: Path) -> None:
    def targets(*assignments: str) -> int:
        resources = opened(photos, *assignments)
        method = resources.attack("badclip")
        return len(method.target_pairs(resources.preparation(method, 0))[1])  # type: ignore[attr-defined]

    assert targets() < targets("badclip.targets=pool") < targets("badclip.targets=pool", "poison.halves=false") == 12


def test_no_target_in_the_pool(photos: Path) -> None:
    resources = opened(photos, "target=key", "badclip.targets=pool")
    given = resources.preparation(resources.attack("badclip"), 0)
    with pytest.raises(BenchError, match=r"no caption of the .* pairs of poison.pool names 'key'. Give --pairs"):
        len(given.named_in_pool)


def test_poisoned_pairs_are_squashed_and_clean_ones_cropped(photos: Path) -> None:
    resources = opened(
        photos, "blended.geometry=squash", "blended.alpha=0", "blended.key=resample", "blended.key_cells=null"
    )
    method = resources.attack("blended")
    given = resources.preparation(method, 0)
    manifest = draw_manifest(given, method, ("a photo of a {}.",), 3)
    pairs = poison(given.pairs, method, Trigger(0, {}), manifest)
    images = pairs.load(torch.arange(8))
    poisoned = set(manifest["index"])
    for i, id in enumerate(given.pairs.ids):
        with Image.open(photos.parent / id) as picture:
            squashed = np.asarray(picture.resize((56, 56)))
        assert np.array_equal(images[i].permute(1, 2, 0).numpy(), squashed) == (i in poisoned)
    assert torch.equal(images[sorted(set(range(8)) - poisoned)], given.pairs.load(sorted(set(range(8)) - poisoned)))
