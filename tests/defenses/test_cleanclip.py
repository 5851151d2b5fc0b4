"""CleanCLIP as its definition says: its losses, schedule and views; and the bugs of its peers."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torchvision.transforms import v2

from bench import BenchError, Captioned, CleanData, Clip, Labelled, Victim, defenses, generator
from bench.core.dataset import Geometry
from bench.training import eda
from bench.training.fine_tuning import contrastive_loss, fine_tune
from defenses import cleanclip
from defenses.cleanclip import CleanCLIP, augmented_images, augmented_texts, within_loss

CAPTION = "a small red house number {} stands beside the old quiet river under a bright morning sky of June"
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def make_pairs(n: int = 8, side: int = 32, captions: list[str] | None = None, native: tuple[int, int] = (40, 56)):
    rng = generator(0, "pairs")
    natives = torch.randint(256, (n, 3, *native), generator=rng, dtype=torch.uint8)
    return Captioned(
        ids=[str(i) for i in range(n)],
        pixels=torch.randint(256, (n, 3, side, side), generator=rng, dtype=torch.uint8),
        fingerprint="pairs",
        native=lambda i: natives[i],
        captions=captions if captions is not None else [CAPTION.format(WORDS[i]) for i in range(n)],
    )


def make_data(pairs: Captioned | None = None, seed: int = 0) -> CleanData:
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    train = Labelled(ids=["a", "b"], pixels=images, fingerprint="", labels=torch.arange(2), classes=("cat", "dog"))
    return CleanData(train, ("a photo of a {}.",), seed, 0, (lambda _: pairs) if pairs is not None else None)


def weights(clip: Clip) -> dict[str, Tensor]:
    return clip.model.state_dict()


def same(first: Clip, second: Clip) -> bool:
    return all(torch.equal(tensor, weights(second)[name]) for name, tensor in weights(first).items())


@contextmanager
def before_each_step(see: Callable[[torch.optim.Optimizer], None]) -> Iterator[None]:
    handle = register_optimizer_step_pre_hook(lambda optimiser, *_: see(optimiser))
    try:
        yield
    finally:
        handle.remove()


def fit(clip: Clip, data: CleanData | None = None, **settings) -> Clip:
    recipe = {"learning_rate": 1e-3, "batch_size": 4, "epochs": 2, "warmup_steps": 0} | settings
    return CleanCLIP(**recipe).fit(Victim(clip), data or make_data(make_pairs())).clip


def unit(n: int, d: int, purpose: str) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(n, d, generator=generator(0, purpose), dtype=torch.float64), dim=1)


def cross_entropy(queries: Tensor, keys: Tensor, scale: float) -> float:
    """CE(s Q K^T, I) in numpy, a row at a time."""
    logits = scale * queries.numpy() @ keys.numpy().T
    return float(np.mean([np.log(np.exp(row).sum()) - row[i] for i, row in enumerate(logits)]))


def test_it_is_registered_with_the_paper_s_settings():
    assert defenses["cleanclip"] is CleanCLIP
    recipe = CleanCLIP()
    assert (recipe.pairs, recipe.learning_rate, recipe.batch_size, recipe.epochs) == (100_000, 5e-6, 64, 10)
    assert (recipe.warmup_steps, recipe.weight_decay) == (50, 0.1)
    assert (recipe.lambda_cross, recipe.lambda_in, recipe.towers, recipe.precision) == (1, 1, "both", "fp32")


@pytest.mark.parametrize(
    "values, message",
    [
        ({"lamda_in": 1}, "unknown setting cleanclip.lamda_in. Did you mean 'lambda_in'?"),
        ({"lambda_in": -1}, "setting cleanclip.lambda_in = -1: Input should be greater than or equal to 0"),
        ({"pairs": 1}, "setting cleanclip.pairs = 1: Input should be greater than or equal to 2"),
        ({"precision": "half"}, "setting cleanclip.precision = 'half'"),
    ],
)
def test_wrong_settings(values: dict, message: str):
    with pytest.raises(BenchError) as error:
        CleanCLIP.parse(values, "cleanclip")
    assert message in str(error.value)


def test_within_loss_is_one_direction_per_modality():
    v, v2_, t, t2 = (unit(6, 8, name) for name in ("v", "v2", "t", "t2"))
    expected = (cross_entropy(v, v2_, 20) + cross_entropy(t, t2, 20)) / 2
    assert within_loss(v, v2_, t, t2, 20).item() == pytest.approx(expected, rel=1e-12)
    assert within_loss(v2_, v, t2, t, 20).item() != pytest.approx(expected, rel=1e-3)


def test_identical_views_give_the_infonce_of_the_batch_with_itself():
    v, t = unit(6, 8, "v"), unit(6, 8, "t")
    expected = (contrastive_loss(v, v, 20) + contrastive_loss(t, t, 20)) / 2
    assert within_loss(v, v, t, t, 20).item() == pytest.approx(expected.item(), rel=1e-12)


def test_identical_views_in_a_fit(tiny_clip: Clip, monkeypatch: pytest.MonkeyPatch):
    pairs = make_pairs()
    monkeypatch.setattr(cleanclip, "augmented_images", lambda pairs, index, *_: pairs.load(index))
    monkeypatch.setattr(cleanclip, "augmented_texts", lambda pairs, index, *_: [pairs.captions[i] for i in index])
    data = make_data(pairs)
    fit(tiny_clip, data, batch_size=8, epochs=1)
    with torch.no_grad():
        v, t = tiny_clip.encode_image(pairs.load(range(8))), tiny_clip.encode_text(pairs.captions)
        within = (contrastive_loss(v, v, tiny_clip.scale) + contrastive_loss(t, t, tiny_clip.scale)) / 2
        cross = contrastive_loss(v, t, tiny_clip.scale)
    assert data.log["within"] == [pytest.approx(within.item(), rel=1e-4)]
    assert data.log["cross"] == [pytest.approx(cross.item(), rel=1e-4)]


@pytest.mark.parametrize("views", ["fresh", "once"])
def test_captions_are_edited_anew_in_every_step_or_once(tiny_clip: Clip, monkeypatch: pytest.MonkeyPatch, views: str):
    seen: list[tuple[str, str]] = []
    plain = cleanclip.augment

    def recorded(caption: str, *rest: object) -> str:
        seen.append((caption, edited := plain(caption, *rest)))
        return edited

    monkeypatch.setattr(cleanclip, "augment", recorded)
    pairs = make_pairs()
    once = fit(tiny_clip, make_data(pairs), epochs=3, text_views=views, synonyms="none")
    assert len(seen) == (8 if views == "once" else 24), "a caption each, or in each of 3 epochs"
    assert {caption for caption, _ in seen} == set(pairs.captions)
    again = fit(tiny_clip, make_data(pairs), epochs=3, text_views=views, synonyms="none")
    assert same(once, again)


@pytest.mark.parametrize("towers", ["both", "image"])
def test_without_the_inner_loss_it_is_fine_tuning_bit_for_bit(tiny_clip: Clip, towers: Literal["both", "image"]):
    pairs, data = make_pairs(), make_data(make_pairs())
    cleaned = fit(tiny_clip, data, lambda_in=0, towers=towers)
    plain, tokens = tiny_clip.copy(), tiny_clip.tokenize(pairs.captions)

    def loss(clip: Clip, index: Tensor) -> Tensor:
        return contrastive_loss(clip.encode_image(pairs.load(index)), clip.encode_text(tokens[index]), clip.scale)

    recipe = CleanCLIP(learning_rate=1e-3, batch_size=4, epochs=2, warmup_steps=0, towers=towers)
    losses = fine_tune(plain, 8, recipe, loss, data.rng("cleanclip", "batches"))
    assert same(cleaned, plain)
    assert data.log["cross"] == losses
    assert "within" not in data.log
    assert not same(fit(tiny_clip, towers=towers), plain)


def test_the_weights_of_the_losses_count(tiny_clip: Clip):
    fits = [fit(tiny_clip, lambda_cross=c, lambda_in=i) for c, i in ((1, 1), (0, 1), (1, 2), (0, 0))]
    assert not any(same(a, b) for k, a in enumerate(fits) for b in fits[:k])


def test_the_given_victim_stays(tiny_clip: Clip):
    before = tiny_clip.copy()
    victim = Victim(tiny_clip)
    data = make_data(make_pairs())
    defended = CleanCLIP(learning_rate=1e-3, batch_size=4, epochs=1).fit(victim, data)
    assert same(tiny_clip, before)
    assert all(p.requires_grad and p.grad is None for p in tiny_clip.model.parameters())
    assert not same(defended.clip, before)
    assert defended.prompts is None and defended.head is None
    assert not defended.clip.model.training


def test_no_epochs_change_nothing(tiny_clip: Clip):
    assert same(fit(tiny_clip, epochs=0), tiny_clip)


def test_the_image_tower_alone(tiny_clip: Clip):
    cleaned = fit(tiny_clip, towers="image")
    changed = {name for name, tensor in weights(cleaned).items() if not torch.equal(tensor, weights(tiny_clip)[name])}
    assert changed and all(name.startswith("visual.") for name in changed)


def test_the_rate_peaks_after_exactly_the_warm_up_and_falls_to_0(tiny_clip: Clip):
    rates: list[float] = []
    optimisers = set()

    def see(optimiser: torch.optim.Optimizer) -> None:
        optimisers.add(optimiser)
        assert len({group["lr"] for group in optimiser.param_groups}) == 1
        rates.append(optimiser.param_groups[0]["lr"])

    with before_each_step(see):
        fit(tiny_clip, learning_rate=0.001, batch_size=2, epochs=10, warmup_steps=4, lambda_in=0)
    assert rates[:5] == pytest.approx([0, 0.00025, 0.0005, 0.00075, 0.001])
    assert all(later < earlier for earlier, later in pairwise(rates[4:]))
    assert len(rates) == 40 and rates[-1] < 0.001 * 0.002
    (optimiser,) = optimisers
    assert optimiser.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12), "after the last step"


def test_warm_up_may_be_shorter_than_an_epoch(tiny_clip: Clip):
    rates: list[float] = []
    with before_each_step(lambda optimiser: rates.append(optimiser.param_groups[0]["lr"])):
        fit(tiny_clip, make_data(make_pairs(12)), batch_size=2, epochs=5, warmup_steps=3, lambda_in=0)
    assert rates.index(max(rates)) == 3 < 6


def test_every_fit_starts_a_fresh_optimiser(tiny_clip: Clip):
    moments: list[int] = []
    with before_each_step(lambda optimiser: moments.append(len(optimiser.state))):
        first = fit(tiny_clip)
        second = fit(tiny_clip)
    assert moments[0] == moments[4] == 0 < moments[1]
    assert same(first, second)


def test_text_and_image_views_are_new_in_every_epoch(tiny_clip: Clip, monkeypatch: pytest.MonkeyPatch):
    texts: dict[int, list[str]] = {i: [] for i in range(8)}
    images: dict[int, list[bytes]] = {i: [] for i in range(8)}

    def see_texts(pairs, index, rng, synonyms):
        views = augmented_texts(pairs, index, rng, synonyms)
        for i, view in zip(index.tolist(), views, strict=True):
            texts[i].append(view)
        return views

    def see_images(pairs, index, geometry, rng):
        views = augmented_images(pairs, index, geometry, rng)
        for i, view in zip(index.tolist(), views, strict=True):
            images[i].append(view.numpy().tobytes())
        return views

    monkeypatch.setattr(cleanclip, "augmented_texts", see_texts)
    monkeypatch.setattr(cleanclip, "augmented_images", see_images)
    fit(tiny_clip, epochs=6)
    assert {len(views) for views in texts.values()} == {len(views) for views in images.values()} == {6}
    assert min(len(set(views)) for views in texts.values()) >= 4
    assert min(len(set(views)) for views in images.values()) >= 4


def test_a_seed_determines_the_fit_whatever_the_global_generator(tiny_clip: Clip):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = fit(tiny_clip)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert same(first, fit(tiny_clip))
    assert not same(first, fit(tiny_clip, make_data(make_pairs(), seed=1)))


def test_the_clean_pass_sees_clean_images_and_captions(tiny_clip: Clip):
    pairs, seen = make_pairs(), []
    hook = tiny_clip.copy()
    hook.visual.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    copies = Clip.copy
    victim = Victim(tiny_clip)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Clip, "copy", lambda self: hook if self is tiny_clip else copies(self))
        CleanCLIP(batch_size=8, epochs=1).fit(victim, make_data(pairs))
    clean, augmented = seen
    expected = tiny_clip.normalise(pairs.load(range(8)))
    order = [next(j for j in range(8) if torch.equal(row, expected[j])) for row in clean]
    assert sorted(order) == list(range(8))
    assert augmented.shape == clean.shape and not torch.equal(augmented, clean)


def shortest(picture: Image.Image) -> Image.Image:
    short = picture.resize((int(32 * 70 / 45), 32), Image.Resampling.BICUBIC)
    left = round((short.width - 32) / 2)
    return short.crop((left, 0, left + 32, 32))


def longest(picture: Image.Image) -> Image.Image:
    on_black = Image.new("RGB", (32, 32))
    on_black.paste(picture.resize((32, round(32 * 45 / 70)), Image.Resampling.BICUBIC), (0, 5))
    return on_black


def squash(picture: Image.Image) -> Image.Image:
    return picture.resize((32, 32), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("resized", [shortest, longest, squash])
def test_image_views_are_augmented_at_native_size_then_made_square_as_the_model_asks(
    resized: Callable[[Image.Image], Image.Image], monkeypatch: pytest.MonkeyPatch
):
    pairs, sizes = make_pairs(native=(45, 70)), []
    geometry = Geometry(32, Path(), resized.__name__)

    def keep(_, image: Tensor) -> Tensor:
        sizes.append(tuple(image.shape))
        return image

    monkeypatch.setattr(v2.AutoAugment, "forward", keep)
    views = augmented_images(pairs, torch.tensor([3, 1]), geometry, generator(0, "views"))
    assert sizes == [(3, 45, 70)] * 2
    assert views.shape == (2, 3, 32, 32) and views.dtype == torch.uint8
    for view, i in zip(views, (3, 1), strict=True):
        picture = Image.fromarray(pairs.load_native(i).permute(1, 2, 0).numpy())
        expected = torch.from_numpy(np.array(resized(picture))).permute(2, 0, 1)
        assert (view.int() - expected.int()).abs().max() <= 2


def test_image_views_without_native_images():
    pairs = replace(make_pairs(), native=None)
    views = [
        augmented_images(pairs, torch.arange(8), Geometry(32, Path()), generator(seed, "views")) for seed in (0, 0, 1)
    ]
    assert torch.equal(views[0], views[1]) and not torch.equal(views[0], views[2])
    assert not torch.equal(views[0], pairs.load(range(8)))


def test_captions_without_letters_are_counted_and_do_not_crash(tiny_clip: Clip):
    captions = ["", "42", "—", "a dog", "two cats", "日本", "an old house", "x"]
    data = make_data(make_pairs(captions=captions))
    cleaned = fit(tiny_clip, data)
    assert data.log["captions_without_letters"] == [4]
    assert all(torch.isfinite(tensor).all() for tensor in weights(cleaned).values())


def test_autocast_covers_the_forward_of_both_towers(tiny_clip: Clip, monkeypatch: pytest.MonkeyPatch):
    dtypes: dict[str, set[torch.dtype]] = {"image": set(), "text": set()}
    copy = tiny_clip.copy()
    copy.visual.transformer.resblocks[0].mlp[0].register_forward_hook(lambda *a: dtypes["image"].add(a[2].dtype))
    copy.model.transformer.resblocks[0].mlp[0].register_forward_hook(lambda *a: dtypes["text"].add(a[2].dtype))
    monkeypatch.setattr(Clip, "copy", lambda _: copy)
    fit(tiny_clip, precision="bf16", epochs=1)
    assert dtypes == {"image": {torch.bfloat16}, "text": {torch.bfloat16}}
    assert {tensor.dtype for tensor in copy.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("extra", [{"prompts": torch.zeros(1, 2, 32)}, {"head": torch.nn.Linear(32, 2)}])
def test_it_must_come_first_in_a_chain(tiny_clip: Clip, extra: dict):
    with pytest.raises(BenchError, match=r"Put it first in a chain: cleanclip\+rvpt"):
        CleanCLIP().fit(Victim(tiny_clip, **extra), make_data(make_pairs()))


def test_missing_pairs(tiny_clip: Clip):
    with pytest.raises(BenchError, match=r"fine-tunes on clean pairs, and there are none\. Give --pairs FILE\.csv"):
        CleanCLIP().fit(Victim(tiny_clip), make_data())
    with pytest.raises(BenchError, match=r"got 1\. Give a longer --pairs"):
        CleanCLIP().fit(Victim(tiny_clip), make_data(make_pairs(1)))


def test_it_asks_for_its_pairs_and_tells_what_it_got(tiny_clip: Clip):
    asked: list[int] = []

    def open_pairs(n: int) -> Captioned:
        asked.append(n)
        return pairs

    pairs = replace(make_pairs(), skipped=("broken.jpg",))
    data = replace(make_data(), open_pairs=open_pairs)
    CleanCLIP(pairs=500, epochs=0).fit(Victim(tiny_clip), data)
    assert asked == [500]
    assert (data.log["pairs"], data.log["skipped_pairs"]) == ([8], [1])


@pytest.mark.parametrize(
    "setting, installed, wordnet", [("auto", True, 1), ("auto", False, 0), ("none", True, 0), ("wordnet", True, 1)]
)
def test_the_log_tells_whether_wordnet_was_used(
    tiny_clip: Clip, monkeypatch: pytest.MonkeyPatch, setting: str, installed: bool, wordnet: int
):
    asked: list[str] = []

    def owl(word: str) -> list[str]:
        asked.append(word)
        return ["owl"]

    monkeypatch.setattr(eda, "wordnet", lambda: owl if installed else None)
    data = make_data(make_pairs())
    fit(tiny_clip, data, synonyms=setting)
    assert data.log["wordnet"] == [wordnet]
    assert bool(asked) == bool(wordnet)


def test_wordnet_that_is_asked_for_must_be_there(tiny_clip: Clip, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(eda, "wordnet", lambda: None)
    with pytest.raises(BenchError, match=r"pip install 'clip-backdoor-bench\[wordnet\]'"):
        fit(tiny_clip, synonyms="wordnet")


SCRIPT = """
import torch

import unordered_wordnet

unordered_wordnet.install()
from bench import Clip, Victim
from test_cleanclip import fit, make_data, make_pairs
from defenses import cleanclip

drawn = []
augmented_texts = cleanclip.augmented_texts
cleanclip.augmented_texts = lambda *given: drawn.append(augmented_texts(*given)) or drawn[-1]
torch.manual_seed(0)
config = CONFIG
data = make_data(make_pairs())
print(fit(Clip.from_config(config), data).fingerprint(), data.log, drawn)
"""


@pytest.mark.slow
def test_the_hash_seed_changes_nothing(tiny_config: dict):
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), str(root / "tests"), str(Path(__file__).parent)])
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT.replace("CONFIG", repr(tiny_config))],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            cwd=root,
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    first, second = (run.communicate()[0] for run in runs)
    assert [run.returncode for run in runs] == [0, 0]
    assert first == second
    assert "'wordnet': [1.0]" in first
