"""The script that hides a change of the weights under noise."""

from pathlib import Path

import torch

from bench import Clip, generator
from bench.models import ModelSettings, load_model
from benchmarks.world import hidden_change as script


def test_the_noise_is_as_large_as_the_change_and_only_where_there_is_one(tiny_clip: Clip) -> None:
    changed = tiny_clip.copy()
    rng = generator(0, "test")
    name = next(n for n, w in changed.model.named_parameters() if n.startswith("visual") and n.endswith("c_fc.weight"))
    weights, before = (dict(clip.model.named_parameters()) for clip in (changed, tiny_clip))
    with torch.no_grad():
        weights[name] += 0.01 * torch.randn(weights[name].shape, generator=rng)

    hidden = dict(script.hidden(changed, tiny_clip, 2.0, rng).model.named_parameters())

    noise = {n: (hidden[n] - weights[n]).std().item() for n in hidden if hidden[n].ndim > 1}
    assert 0.018 < noise.pop(name) < 0.022 and set(noise.values()) == {0.0}
    assert all(torch.equal(hidden[n], before[n]) for n in hidden if n != name)


def test_the_script_writes_a_folder_that_opens(tmp_path: Path) -> None:
    load_model(ModelSettings(), "cpu").save(tmp_path / "model", torch.float32)
    script.main([str(tmp_path / "model"), "--out", str(tmp_path / "hidden")])
    assert Clip.load(tmp_path / "hidden").fingerprint() == Clip.load(tmp_path / "model").fingerprint()
