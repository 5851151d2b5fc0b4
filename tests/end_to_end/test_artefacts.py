"""What a run leaves: models that open without the suite or with one line of it, of every kind of image tower."""

import io
import shutil
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
from bench.results.folder import ResultsFolder
from bench.results.records import Cell

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


def cell_of(folder: ResultsFolder, defense: str) -> Cell:
    [cell] = [cell for cell in folder.cells if cell.defense == defense]
    return cell


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_backdoored_and_defended_models_open_in_a_line(tiny_clip: Clip, tmp_path: Path, images: torch.Tensor) -> None:
    report, printed = run(tiny_clip, tmp_path, "none", "linear_probe", "rvpt", "rvpt+linear_probe")
    assert report.failures == {}
    # Random weights know nothing.
    assert "clean accuracy on 40 test images: " in printed
    assert "warning: that is suspiciously low" in printed

    folder = bench.open(tmp_path / "results")
    undefended = cell_of(folder, "none")
    stored = folder.out / "artefacts/backdoor" / str(undefended.backdoor)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{stored}")
    ours = folder.victim(undefended)
    normalised = preprocess.transforms[-1](images)
    embedding = model.eval().encode_image(normalised)
    torch.testing.assert_close(ours.encode(images).embedding, embedding)
    assert not torch.allclose(tiny_clip.model.encode_image(normalised), embedding)

    prompted = folder.victim(cell_of(folder, "rvpt"))
    assert prompted.prompts is not None
    assert not torch.allclose(prompted.encode(images).embedding, embedding)
    probed = bench.open(str(folder.out)).victim(cell_of(folder, "rvpt+linear_probe"))
    assert probed.prompts is not None and torch.equal(probed.prompts, prompted.prompts)
    assert probed.logits(probed.encode(images), torch.empty(0)).shape == (4, 20)
    clean = folder.victim(cell_of(folder, "clean_model"))
    torch.testing.assert_close(clean.encode(images).embedding, tiny_clip.model.encode_image(normalised))


def test_resnet_towers_are_attacked_and_defended_where_no_prompts_are_needed(
    tiny_config: dict, tmp_path: Path, images: torch.Tensor
) -> None:
    tiny_config["model_cfg"]["vision_cfg"] = RESNET
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = Clip.from_config(tiny_config)
    for defense in ("vpt", "rvpt"):
        with pytest.raises(BenchError, match=rf"{defense}: visual prompts need a vision transformer .* --defenses"):
            run(clip, tmp_path, "none", defense)
    with pytest.raises(BenchError, match=r"cut: it compares the matrices of a vision transformer; use --defenses"):
        run(clip, tmp_path, "none", "cut")
    assert not list(tmp_path.rglob("card.json")), "nothing was made in vain"
    report, _ = run(clip, tmp_path, "none", "cleanclip", "linear_probe")
    assert report.failures == {}
    folder = bench.open(tmp_path / "results")
    undefended = cell_of(folder, "none")
    stored = folder.out / "artefacts/backdoor" / str(undefended.backdoor)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{stored}")
    expected = model.eval().encode_image(preprocess.transforms[-1](images))
    torch.testing.assert_close(folder.victim(undefended).encode(images).embedding, expected)
    washed = folder.victim(cell_of(folder, "cleanclip"))
    assert not torch.allclose(washed.encode(images).embedding, expected)
    head = folder.victim(cell_of(folder, "linear_probe"))
    assert head.logits(head.encode(images), torch.empty(0)).shape == (4, 20)


def test_what_is_not_there_is_said(tiny_clip: Clip, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="holds no results"):
        bench.open(tmp_path)
    run(tiny_clip, tmp_path, "none", "linear_probe")
    folder = bench.open(tmp_path / "results")
    undefended, probed = (cell_of(folder, name) for name in ("none", "linear_probe"))
    artefacts = folder.store.root
    shutil.rmtree(artefacts / "defense")
    assert folder.victim(undefended).head is None
    with pytest.raises(BenchError, match="the model of badnet / linear_probe, seed 0 is no longer in"):
        folder.victim(probed)
    shutil.rmtree(artefacts / "backdoor")
    folder = bench.open(folder.out)
    with pytest.raises(BenchError, match="the model of badnet / none, seed 0 is no longer in"):
        folder.victim(undefended)
    with pytest.raises(BenchError, match="the trigger of badnet is no longer in"):
        folder.trigger(undefended)
    assert len(folder.results) > 0, "numbers need no models"
    shutil.rmtree(artefacts / "evaluation")
    folder = bench.open(folder.out)
    for look in (folder.victim, folder.observations, folder.lineage):
        with pytest.raises(BenchError, match="badnet / none, seed 0 is not finished"):
            look(undefended)
