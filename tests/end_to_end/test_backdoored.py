"""A model that was backdoored elsewhere: defended and evaluated as it is, with the trigger that its maker used."""

from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.transformer import QuickGELU
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from tiny import TINY

from attacks.badclip import BadCLIP
from attacks.badnet import BadNet
from bench import BenchError, Captioned, Clip, Preparation
from bench.core.clip import WEIGHTS_FILE
from bench.core.registry import load_plugins
from bench.experiment.settings import BASE, Variants, resolve
from bench.matrix.runner import prepare, run_matrix
from bench.models import load_backdoored, load_model
from bench.results.folder import ResultsFolder
from bench.results.store import Store
from reports.report import write_report

QUIET = Console(quiet=True)


def settings(*more: str, backdoored: Path | None = None, **flags: Any) -> Variants:
    load_plugins()
    model = {"model": {"backdoored": backdoored}} if backdoored else {}
    chosen = {"attacks": ("badnet",), "defenses": ("none", "rvpt")}
    return {BASE: resolve("smoke", None, chosen | flags | model, (*TINY, *more))}


def values(out: Path) -> dict[tuple[str, str], float]:
    results = ResultsFolder(out).results
    results = results[results["perturbation"].isin(["", "trigger"])]
    return {(row.defense, row.metric): row.value for row in results.itertuples()}


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a run that poisons a model itself."""
    out = tmp_path_factory.mktemp("poisoned")
    assert run_matrix(settings(), out, (), QUIET).failures == {}
    return out


@pytest.fixture(scope="module")
def weights(poisoned: Path) -> Path:
    return next(poisoned.glob(f"artefacts/backdoor/*/{WEIGHTS_FILE}"))


def test_its_numbers_are_those_of_the_run_that_poisoned_it(poisoned: Path, weights: Path, tmp_path: Path) -> None:
    assert run_matrix(settings(backdoored=weights), tmp_path, (), QUIET).failures == {}
    assert values(tmp_path) == values(poisoned)
    taken = next(tmp_path.glob(f"artefacts/backdoor/*/{WEIGHTS_FILE}"))
    before, after = load_file(weights), load_file(taken)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_its_tables_say_whose_model_it_is(weights: Path, tmp_path: Path) -> None:
    run_matrix(settings(backdoored=weights, defenses=("none",)), tmp_path, (), QUIET)
    text = write_report(ResultsFolder(tmp_path))
    assert f"# mini, backdoored {weights.parent.name}/{WEIGHTS_FILE} on world, target banana" in text
    assert "Poisoned pairs: none, the model was backdoored elsewhere." in text
    store = Store(tmp_path)
    (card,) = [store.evaluation_card(cell.name) for cell in store.root.glob("evaluation/*")][:1]
    assert card.unchecked == (
        f"whether it was trained on evaluated images cannot be checked: {weights} was trained elsewhere",
    )


def test_other_weights_are_another_model(weights: Path, tmp_path: Path) -> None:
    _, one, _ = prepare(settings(backdoored=weights), tmp_path)
    clean = load_model(settings()[BASE].model, "cpu")
    clean.save(tmp_path / "other")
    _, other, _ = prepare(settings(backdoored=tmp_path / "other" / WEIGHTS_FILE), tmp_path)
    kinds = {one.nodes[id].kind for id in one.nodes.keys() & other.nodes.keys()}
    assert kinds == {"trigger"}


def test_how_it_would_have_been_poisoned_does_not_matter(weights: Path, tmp_path: Path) -> None:
    _, one, _ = prepare(settings(backdoored=weights), tmp_path)
    _, other, _ = prepare(settings("poison.epochs=7", backdoored=weights), tmp_path)
    assert one.nodes.keys() == other.nodes.keys()


def test_a_file_that_does_not_fit_stops_the_run_before_it_starts(tmp_path: Path) -> None:
    (tmp_path / "junk.pt").write_bytes(b"junk")
    for file, told in (("junk.pt", "cannot be read"), ("none.pt", "no such file")):
        with pytest.raises(BenchError, match=told):
            run_matrix(settings(backdoored=tmp_path / file), tmp_path / "out", (), QUIET)


def pictures(root: Path) -> None:
    for split in ("train", "test"):
        for name in ("banana", "kiwi"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(2):
                Image.effect_noise((40, 40 + i), 50).convert("RGB").save(folder / f"{split}{i}.png")


def test_without_pairs_what_needs_none_is_done(weights: Path, tmp_path: Path) -> None:
    pictures(tmp_path / "data")
    folder = {"dataset": "folder", "folder": {"root": tmp_path / "data"}}
    variants = settings("rvpt.shots=1", backdoored=weights, attacks=("badnet", "issba"), **folder)
    failures = run_matrix(variants, tmp_path / "out", (), QUIET).failures
    assert "no image-text pairs of its own. Give --pairs FILE" in failures["trigger issba, seed 0"]
    assert set(ResultsFolder(tmp_path / "out").results["defense"]) == {"clean_model", "none", "rvpt"}
    with pytest.raises(BenchError, match=r"no image-text pairs of its own\. Give --pairs FILE"):
        prepare(settings(backdoored=weights, defenses=("cleanclip",), **folder), tmp_path / "out")


@pytest.mark.parametrize(
    "method", [lambda file: BadNet(patch_image=file, size=6), lambda f: BadCLIP(patch_image=f, size=6)]
)
def test_a_patch_comes_from_a_picture(method: Any, tmp_path: Path, tiny_clip: Clip) -> None:
    colours = torch.arange(108, dtype=torch.uint8).view(6, 6, 3)
    Image.fromarray(colours.numpy()).save(tmp_path / "patch.png")
    Image.new("RGB", (7, 6)).save(tmp_path / "oblong.png")

    def unopened() -> Captioned:
        raise AssertionError("no pairs are needed")

    given = Preparation(tiny_clip, unopened, "banana", ("banana",), ("{}",), 0)
    patch = method(tmp_path / "patch.png").prepare(given)["patch"]
    assert torch.equal((patch * 255).round().to(torch.uint8), colours.permute(2, 0, 1))
    with pytest.raises(BenchError, match=r"oblong\.png has 7 x 6 px, and size = 6: give a square picture"):
        method(tmp_path / "oblong.png").prepare(given)
    with pytest.raises(BenchError, match=r"patch_image = .*none\.png: a picture is needed, --set ATTACK\.patch_image"):
        method(tmp_path / "none.png").prepare(given)


def test_an_optimised_trigger_is_of_the_pairs_that_it_was_optimised_on(weights: Path, tmp_path: Path) -> None:
    recipes = [settings(f"poison.pairs={n}", backdoored=weights, attacks=("trojvqa",)) for n in (32, 48)]
    plans = [prepare(recipe, tmp_path)[1] for recipe in recipes]
    one, other = ({node.id for node in plan.nodes.values() if node.kind == "backdoor"} for plan in plans)
    assert one != other


def test_activation_and_preprocessing_are_the_clean_models(tmp_path: Path, tiny_config: dict) -> None:
    tiny_config["model_cfg"]["quick_gelu"] = True
    clean = Clip.from_config(tiny_config)
    # Plain weights do not tell QuickGELU.
    torch.save({name: tensor + 1 for name, tensor in clean.model.state_dict().items()}, tmp_path / "theirs.pt")
    theirs = load_backdoored(tmp_path / "theirs.pt", clean, "theirs")
    assert theirs.config == clean.config
    kinds = [{type(module) for module in clip.model.modules()} for clip in (clean, theirs)]
    assert kinds[0] == kinds[1] and QuickGELU in kinds[1]
    assert torch.equal(theirs.model.visual.proj, clean.model.visual.proj + 1)
