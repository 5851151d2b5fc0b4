"""Two processes with half a batch each are one process with the whole of it."""

import json
import multiprocessing
from datetime import timedelta
from pathlib import Path

import open_clip
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from bench import BenchError, Clip, generator
from bench.core.distributed import average_gradients, processes, rank, share
from bench.core.registry import load_plugins
from bench.training.fine_tuning import FineTuning, contrastive_loss, fine_tune, matching_loss

BATCH = 6
TEXTS = [f"a photo of number {i}" for i in range(2 * BATCH)]
RECIPE = FineTuning(learning_rate=1e-3, epochs=1, batch_size=BATCH, warmup_steps=0)


def pictures() -> Tensor:
    return torch.rand(2 * BATCH, 3, 32, 32, generator=generator(0, "pictures"))


def pair_loss(clip: Clip, index: Tensor) -> Tensor:
    texts = clip.encode_text([TEXTS[i] for i in index])
    return contrastive_loss(clip.encode_image(pictures()[index]), texts, clip.scale)


def measure(clip: Clip) -> dict[str, Tensor]:
    """The loss of a batch and all its gradients, and what two steps of fine-tuning give."""
    value = pair_loss(clip, share(torch.arange(BATCH)))
    value.backward()
    average_gradients(clip.model.parameters())
    seen = {f"grad.{k}": p.grad.clone() for k, p in clip.model.named_parameters()}
    clip.model.zero_grad()
    losses = fine_tune(clip, 2 * BATCH, RECIPE, pair_loss, generator(0, "batches"))
    weights = {f"weight.{k}": v.clone() for k, v in clip.model.state_dict().items()}
    # Adam turns the rounding error of a gradient of 0 (a key bias) into a step, so what the weights do is compared.
    tuned = {"losses": torch.tensor(losses), "tuned": clip.encode_image(pictures()).detach()}
    return seen | weights | tuned | {"own": value.detach()}


def work(number: int, folder: Path) -> None:
    """One of two processes."""
    torch.set_num_threads(1)
    # They meet at a file: a port that was free may be taken by now.
    meeting = f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=number, world_size=2, timeout=timedelta(minutes=10))
    assert (processes(), rank()) == (2, number)
    result = measure(Clip.load(folder))
    rows = [F.normalize(torch.randn(2 * BATCH, 8, generator=generator(0, name)), dim=-1) for name in "ab"]
    first, second = ([r[share(torch.arange(2 * BATCH))].clone().requires_grad_() for r in rows] for _ in range(2))
    theirs = open_clip.ClipLoss(local_loss=True, gather_with_grad=True, rank=number, world_size=2)
    losses = contrastive_loss(*first, 20.0), theirs(*second, torch.tensor(20.0))
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(*losses)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    try:
        share(torch.arange(3))
    except BenchError as error:
        result["told"] = torch.tensor(list(str(error).encode()))
    torch.save(result, folder / f"{number}.pt")
    dist.destroy_process_group()


@pytest.fixture
def both(tiny_clip: Clip, tmp_path: Path) -> list[dict[str, Tensor]]:
    """What each of two processes measured on the tiny CLIP."""
    tiny_clip.save(tmp_path)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=work, args=(number, tmp_path)) for number in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(900)
    for worker in workers:
        worker.kill()
    assert [worker.exitcode for worker in workers] == [0, 0]
    return [torch.load(tmp_path / f"{number}.pt") for number in range(2)]


def test_gradient_and_weights_are_those_of_the_joined_batch(tiny_clip: Clip, both: list[dict[str, Tensor]]) -> None:
    alone = measure(tiny_clip)
    # Halves of a batch have other losses; their mean is the batch's.
    assert both[0]["own"] != both[1]["own"]
    torch.testing.assert_close((both[0]["own"] + both[1]["own"]) / 2, alone["own"])
    for name, expected in alone.items():
        for process in both:
            if name.startswith("grad."):
                torch.testing.assert_close(process[name], expected, rtol=1e-3, atol=1e-6)
            elif name in ("losses", "tuned"):
                torch.testing.assert_close(process[name], expected, rtol=1e-3, atol=1e-4)
    assert all(torch.equal(both[0][name], both[1][name]) for name in alone if name.startswith("weight."))
    told = "batch_size = 3 is no multiple of 2 GPUs. Choose one that is"
    assert bytes(both[1]["told"].tolist()).decode() == told


def test_one_process_is_as_ever() -> None:
    assert (processes(), rank()) == (1, 0)
    index = torch.arange(5)
    assert torch.equal(share(index), index)
    rows = F.normalize(torch.randn(5, 8, generator=generator(0, "rows")), dim=-1)
    assert matching_loss(rows, rows, 10.0) == F.cross_entropy(10 * rows @ rows.T, index)


def run(out: Path, *assignments: str) -> dict[str, str]:
    """Run a small matrix; its failures."""
    # Not above: the two processes import this file, and need none of it.
    from bench.experiment.settings import BASE, resolve
    from bench.matrix.runner import run_matrix

    load_plugins()
    given = ("poison.pairs=32", "poison.count=8", "world.test=20", "execution.workers=1")
    given += ("execution.device=cpu", *assignments)
    settings = resolve("smoke", None, {"attacks": ("badnet",), "defenses": ("none",)}, given)
    return run_matrix({BASE: settings}, out, (), Console(quiet=True)).failures


@pytest.mark.slow
def test_a_run_on_two_processes_makes_the_model_of_one(tmp_path: Path) -> None:
    made, cards = [], []
    for gpus in (1, 2):
        out = tmp_path / str(gpus)
        assert run(out, f"execution.gpus={gpus}") == {}
        (folder,) = (out / "artefacts/backdoor").iterdir()
        clip = Clip.load(folder)
        made.append((folder.name, clip.encode_image(torch.rand(4, 3, 56, 56, generator=generator(0, "images")))))
        cards.append(json.loads((folder / "card.json").read_text()))
    assert made[0][0] == made[1][0]
    torch.testing.assert_close(made[0][1], made[1][1], rtol=1e-3, atol=1e-3)
    assert [card["processes"] for card in cards] == [1, 2]
    assert cards[1]["log"]["loss"] == pytest.approx(cards[0]["log"]["loss"], rel=1e-3)


@pytest.mark.slow
def test_an_error_of_a_process_is_the_runs(tmp_path: Path) -> None:
    failures = run(tmp_path, "execution.gpus=2", "poison.batch_size=15")
    assert "batch_size = 15 is no multiple of 2 GPUs. Choose one that is" in failures.values()
