"""Calibration: a zoo of honest models, audited once, continued where it was; what p values come from."""

from pathlib import Path

import pytest
import torch
from command import bench
from rich.console import Console

from bench import BenchError, Clip
from bench.checkpoints.calibrate import EPOCHS, LOOSE, MIXES, RATES, calibrate, negative
from bench.core.registry import load_plugins
from bench.detection.audit import STANDARD
from bench.detection.calibration import (
    Audited,
    Calibration,
    effort_of,
    find_calibration,
    p_value,
    read_calibration,
    shipped,
    standing,
)
from bench.detection.triggers import FAMILIES
from bench.experiment.settings import RunSettings, resolve
from bench.models.load import ModelSettings, load_model
from reports.calibration import by_attack, calibration_text, rates

load_plugins()
QUICK = effort_of("quick")
ROOT = Path(__file__).parents[2]


def small(clip: Clip, folder: Path) -> RunSettings:
    clip.save(folder / "reference")
    few = ("poison.pairs=32", "poison.count=8", "execution.workers=1", "world.val=40", "world.train_per_class=1")
    return resolve("smoke", assignments=(f"model.name=local-dir:{folder / 'reference'}", *few))


def test_a_calibration_is_made_once_and_read_again(tiny_clip: Clip, tmp_path: Path) -> None:
    run = small(tiny_clip, tmp_path)
    made = calibrate(run, QUICK, tmp_path / "zoo", 2, ("badnet",), ("banana", "arrow"))
    assert [one.mix.split(",")[0] for one in made.negatives] == ["plain", "patches"]
    assert made.reference == tiny_clip.fingerprint()
    assert all(set(one.scores) == set(FAMILIES) for one in made.negatives)
    assert all(one.top is not None and one.first is not None for one in made.negatives)
    assert [one.name for one in made.positives] == ["badnet banana 0", "badnet arrow 0"]
    said = Console(record=True, width=200, quiet=False, file=(tmp_path / "said.txt").open("w"))
    again = calibrate(run, QUICK, tmp_path / "zoo", 2, ("badnet",), ("banana", "arrow"), console=said)
    assert again.id == made.id
    assert "0 to make" in said.export_text()
    made.save(tmp_path / "made.json")
    assert read_calibration(tmp_path / "made.json") == made
    more = calibrate(run, QUICK, tmp_path / "elsewhere", 3, ("badnet",), known=made.negatives + made.positives)
    assert more.negatives[:2] == made.negatives and len(more.negatives) == 3
    assert more.positives == made.positives[:1]
    assert len(list((tmp_path / "elsewhere" / "artefacts" / "backdoor").iterdir())) == 1
    # Of another effort, all are made again.
    other = calibrate(run, QUICK.model_copy(update={"scored": 20}), tmp_path / "other", 1, known=made.negatives)
    assert other.negatives[0].id not in {one.id for one in made.negatives}


def test_a_zoo_has_every_mix_and_many_recipes() -> None:
    run = resolve("mini")
    zoo = [negative(run, i) for i in range(60)]
    mixes = [LOOSE if one.method("world").get("loose") else one.method("benign")["mix"] for one in zoo]
    assert {mix: mixes.count(mix) for mix in MIXES} == dict.fromkeys(MIXES, 12)
    assert len({one.seeds for one in zoo}) == 60
    assert {one.poison.epochs for one in zoo} == set(EPOCHS)
    assert len({one.poison.learning_rate for one in zoo}) == len(RATES)
    recipes = {(mix, one.poison.learning_rate, one.poison.epochs) for mix, one in zip(mixes, zoo, strict=True)}
    assert len(recipes) == 60


@pytest.mark.parametrize("preset", ["paper-imagenet", "paper-caltech101", "mini-objects"])
def test_a_zoo_can_be_made_on_any_data(preset: str) -> None:
    run = resolve(preset)
    mixes = [negative(run, i).method("benign").get("mix") for i in range(len(MIXES))]
    assert mixes == [*MIXES[:-1], None if run.embedded else LOOSE]


def calibration(negatives: list[float], positives: list[float] = []) -> Calibration:  # noqa: B006
    def models(scores: list[float], attack: str) -> tuple[Audited, ...]:
        backdoored = {"success": 90.0, "named": True} if attack else {}
        return tuple(
            Audited(name=str(i), attack=attack, scores={"square": value, "warp": -1.0}, **backdoored)  # type: ignore[arg-type]
            for i, value in enumerate(scores)
        )

    return Calibration(
        model="m", architecture="a", reference="r", effort=QUICK, command="c",
        negatives=models(negatives, ""), positives=models(positives, "badnet"), commit="c",
    )  # fmt: skip


def test_scores_and_p_values_are_of_the_clean_models() -> None:
    made = calibration([0.1, 0.2, 0.3])
    assert made.scores(["square"]) == pytest.approx([0.1, 0.2, 0.3])
    assert p_value(0.25, made.scores(["square"])) == 0.5


def test_p_is_exact_for_a_clean_model_whatever_its_families_reach() -> None:
    rng = torch.Generator().manual_seed(0)
    # Families of other sizes, one of them with long tails; some scores are below 0.
    drawn = {"square": 0.01 * torch.randn(20, generator=rng).exp(), "warp": 0.3 * torch.rand(20, generator=rng) - 0.02}
    models = [{name: float(values[i]) for name, values in drawn.items()} for i in range(20)]
    found = [standing(one, models[:i] + models[i + 1 :]).p for i, one in enumerate(models)]
    assert sorted(found) == pytest.approx([k / 20 for k in range(1, 21)])


def test_a_square_stands_out_below_what_warps_reach() -> None:
    clean = [{"square": 0.005 + i / 10_000, "warp": 0.02 + i / 200} for i in range(39)]
    backdoored = {"square": 0.1, "warp": 0.04}
    assert max(backdoored.values()) < sorted(max(one.values()) for one in clean)[20]
    found = standing(backdoored, clean)
    assert found.p == 1 / 40 and found.multiples["square"] > 10 > found.multiples["warp"]
    assert standing({"warp": 0.04}, clean).p > 0.5, "families that were not looked for do not count"


def test_its_text_says_what_the_error_rates_are() -> None:
    said = calibration_text(calibration([i / 100 for i in range(60)], [0.9, 0.8, 0.2]))
    assert "60 clean models of m: scores from 0.00 to 0.59" in said
    assert "AUROC of 3 backdoored models: score: 0.78" in said
    assert "2 of 3 [21, 94 %]" in said
    # The second half has the two highest scores, the first the two lowest.
    assert "2 of 60 [1, 11 %]" in said
    assert "not known: 39 others are the fewest" in said
    assert "19 clean models are the fewest" in calibration_text(calibration([0.1, 0.2]))


def test_a_backdoor_that_only_the_weights_show_counts_as_suspicious() -> None:
    clean = tuple(
        Audited(name=str(i), scores={"square": i / 100}, top=0.1 + i / 1000, outlier=1.0, first=0.1) for i in range(80)
    )
    hidden = Audited(
        name="a", attack="wanet", success=90.0, named=False, named_by_weights=True, scores={"square": 0.0},
        top=0.5, outlier=9.0, first=0.05,
    )  # fmt: skip
    made = calibration([0.0]).model_copy(update={"negatives": clean, "positives": (hidden,)})
    found = dict(zip(rates(made)["rule"], rates(made)["backdoored models found"], strict=True))
    assert {name: share[:6] for name, share in found.items()} == {
        "search, p <= 0.05": "0 of 1",
        "search, p <= 0.15": "0 of 1",
        "weights": "1 of 1",
        "suspicious or backdoored": "1 of 1",
    }
    [row] = by_attack(made).to_dict("records")
    assert (row["attack"], row["weights"], row["named by the search"], row["named by the weights"]) == (
        "wanet",
        1,
        0,
        1,
    )
    assert "weights, top class in standard deviations: 1.000" in calibration_text(made)


def test_its_id_is_of_all_that_it_says() -> None:
    assert calibration([0.1]).id == calibration([0.1]).id != calibration([0.2]).id


def test_a_calibration_of_the_embedded_model_is_shipped(tiny_clip: Clip) -> None:
    mini = load_model(ModelSettings(), "cpu")
    made = find_calibration(mini, mini, STANDARD)
    assert made is not None and made in shipped()
    assert find_calibration(mini, None, STANDARD) is None, "a model of the same size may come from anywhere"
    # Enough for the verdict "backdoored" by the score, and for "suspicious" by the weights.
    assert len(made.negatives) >= 39 and "bench audit calibrate" in made.command and made.commit
    assert {one.mix.split(",")[0] for one in made.negatives} == {*MIXES}
    assert find_calibration(mini, tiny_clip, STANDARD) is None, "of another reference"
    assert find_calibration(mini, mini, QUICK) is None, "of another budget"
    assert find_calibration(mini, mini, STANDARD, ("square", "square:0.2")) is None, "without these kinds"
    assert find_calibration(tiny_clip, mini, STANDARD) is None, "of another model"


def test_no_clean_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="--negatives 0: give 1 or more"):
        calibrate(resolve("smoke"), QUICK, tmp_path, 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--budget", "fast"), "unknown budget 'fast'"),
        (("--preset", "minni"), "unknown preset 'minni'"),
        (("--attacks", "badnett", "--negatives", "1", "--preset", "smoke"), "unknown attack 'badnett'"),
    ],
)
def test_wrong_words_are_refused_before_the_work(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code, _, error = bench(capsys, monkeypatch, "audit", "calibrate", "--out", str(tmp_path / "c.json"), *words)
    assert code == 2
    assert message in error
    assert not (tmp_path / "c_zoo").exists()
