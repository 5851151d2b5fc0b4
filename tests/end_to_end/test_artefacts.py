"""What a run leaves: models that open without the suite or with one line of it, of every kind of image tower."""

import io
import json
from pathlib import Path

import open_clip
import pytest
import torch
from rich.console import Console
from tiny import TINY

import bench
from bench import BenchError, Clip
from bench.core.registry import load_plugins
from bench.experiment.settings import BASE, resolve
from bench.matrix.runner import Report, run_matrix
from bench.results.store import Store

RESNET = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 32, "image_size": 32}


def run(clip: Clip, out: Path, *defenses: str) -> tuple[Report, str]:
    """A tiny model's run, and what was printed."""
    load_plugins()
    clip.save(out / "model")
    flags = {"model": {"name": f"local-dir:{out / 'model'}"}, "attacks": ("badnet",), "defenses": defenses}
    console = Console(record=True, file=io.StringIO(), width=300)
    assignments = (*TINY, "zero_shot.perturbations=[flip]", "cleanclip.towers=image")
    report = run_matrix({BASE: resolve("smoke", None, flags, assignments)}, out / "results", (), console)
    return report, console.export_text()


def only(out: Path, kind: str, chain: str = "") -> str:
    """The id of the artefact whose label ends so."""
    cards = (json.loads(card.read_text()) for card in (out / "results/artefacts" / kind).glob("*/card.json"))
    (id,) = [card["id"] for card in cards if chain in card["label"]]
    return id


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_backdoored_and_defended_models_open_in_a_line(tiny_clip: Clip, tmp_path: Path, images: torch.Tensor) -> None:
    report, printed = run(tiny_clip, tmp_path, "none", "linear_probe", "rvpt", "rvpt+linear_probe")
    assert report.failures == {}
    # Random weights know nothing.
    assert "clean accuracy on 40 test images: " in printed
    assert "warning: that is suspiciously low" in printed

    results = tmp_path / "results"
    id = only(tmp_path, "backdoor")
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{results}/artefacts/backdoor/{id}")
    ours = bench.load_defended(results, id)
    normalised = preprocess.transforms[-1](images)
    embedding = model.eval().encode_image(normalised)
    torch.testing.assert_close(ours.encode(images).embedding, embedding)
    assert not torch.allclose(tiny_clip.model.encode_image(normalised), embedding)

    prompted = bench.load_defended(results, only(tmp_path, "defense", "/ rvpt,"))
    assert prompted.prompts is not None
    assert not torch.allclose(prompted.encode(images).embedding, embedding)
    probed = bench.load_defended(str(results), only(tmp_path, "defense", "/ rvpt+linear_probe,"))
    assert torch.equal(probed.prompts, prompted.prompts)
    assert probed.logits(probed.encode(images), torch.empty(0)).shape == (4, 20)


def test_resnet_towers_are_attacked_and_defended_where_no_prompts_are_needed(
    tiny_config: dict, tmp_path: Path, images: torch.Tensor
) -> None:
    tiny_config["model_cfg"]["vision_cfg"] = RESNET
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = Clip.from_config(tiny_config)
    report, _ = run(clip, tmp_path, "none", "cleanclip", "linear_probe", "vpt", "rvpt")
    message = "this CLIP's image tower is a ModifiedResNet. Use --defenses cleanclip,linear_probe, or a ViT checkpoint."
    for defense in ("vpt", "rvpt"):
        told = [error for label, error in report.failures.items() if label.startswith(f"defense badnet / {defense},")]
        assert len(told) == 1
        assert message in told[0]
    assert len(report.failures) == 4
    results = tmp_path / "results"
    id = only(tmp_path, "backdoor")
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{results}/artefacts/backdoor/{id}")
    expected = model.eval().encode_image(preprocess.transforms[-1](images))
    torch.testing.assert_close(bench.load_defended(results, id).encode(images).embedding, expected)
    washed = bench.load_defended(results, only(tmp_path, "defense", "/ cleanclip,"))
    assert not torch.allclose(washed.encode(images).embedding, expected)
    head = bench.load_defended(results, only(tmp_path, "defense", "/ linear_probe,"))
    assert head.logits(head.encode(images), torch.empty(0)).shape == (4, 20)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="has no backdoored or defended model cafe"):
        bench.load_defended(tmp_path, "cafe")
    with Store(tmp_path).writing("defense", "cafe", {"determined_by": {"subject": "gone"}}):
        pass
    with pytest.raises(BenchError, match="has no backdoored or defended model gone, which cafe is made from"):
        bench.load_defended(tmp_path, "cafe")
