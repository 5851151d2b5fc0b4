"""Figures from results made by hand, and the pictures of models against references."""

from pathlib import Path
from typing import get_args
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy import stats

from bench.core.clip import Clip
from bench.core.encoder import tokens
from bench.core.registry import load_plugins
from bench.core.victim import Victim
from bench.experiment.settings import RunSettings
from bench.papers import PaperFigure
from bench.papers.paper import FigureKind
from bench.results.folder import ResultsFolder
from bench.results.records import Run, RunFile
from metrics.correlation import pr_asr_correlation
from reports.figures import Drawn, draw_all
from reports.figures.ablations import undefended_lines
from reports.figures.attention import class_attention
from reports.figures.blocks import class_tokens, resistivity_of_blocks
from reports.figures.correlation import correlation_words, resistivity_and_success
from reports.figures.draw import OF_ALL, OF_SOME
from reports.figures.embedding import project
from reports.figures.resistivity import intra_class_similarity
from reports.figures.style import STYLE, panels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A results folder that knows its settings and has no models."""
    settings = RunSettings().model_dump(mode="json")
    record = RunFile(runs=(Run(settings=settings, variants={"": settings}, cells=()),))
    (tmp_path / "run.json").write_text(record.model_dump_json())
    return tmp_path


def draw(folder: Path, numbers: list[dict]) -> dict[str, Drawn]:
    """The figures of these rows, by name."""
    results = ResultsFolder(folder)
    results.results = pd.DataFrame(numbers)
    return {figure.name: figure for figure in draw_all(results)}


def rows(attack: str, defense: str, variant: str = "", seed: int = 0, **values: float) -> list[dict]:
    """Rows of one cell: shares of 100 images, and PR on two perturbations."""
    place = {
        "task": "zero_shot",
        "model": "mini",
        "attack": attack,
        "target": "banana",
        "defense": defense,
        "dataset": "world",
    }
    found = []
    for metric, value in values.items():
        share = metric in ("ASR", "CA")
        for perturbation in ("",) if share else ("gaussian-0.03", "trigger"):
            count = value if share else float("nan")
            number = {"value": value, "count": count, "n": 100, "low": value - 0.01, "high": value + 0.01}
            where = {"variant": variant, "seed": seed, "metric": metric, "perturbation": perturbation}
            found.append({**place, **where, **number})
    return found


def matrix() -> list[dict]:
    return [
        *rows("badnet", "clean_model", ASR=0, CA=100, PR_cos=0.99, PR_ratio=0.99),
        *rows("badnet", "none", ASR=90, CA=99, PR_cos=0.5, PR_ratio=0.6),
        *rows("badnet", "vpt", ASR=50, CA=98, PR_cos=0.7, PR_ratio=0.7),
        *rows("badnet", "rvpt", ASR=5, CA=95, PR_cos=0.8, PR_ratio=0.95),
    ]


def test_a_sweep_is_drawn_in_the_order_of_its_numbers(folder: Path) -> None:
    sweep = [*rows("badnet", "rvpt", "alpha=10", ASR=2, CA=80), *rows("badnet", "rvpt", "alpha=0.5", ASR=40, CA=98)]
    sweep += [
        *rows("badnet", "rvpt", "alpha=2", 0, ASR=10, CA=90),
        *rows("badnet", "rvpt", "alpha=2", 1, ASR=30, CA=90),
    ]
    drawn = draw(folder, matrix() + sweep)
    numbers = pd.read_csv(folder / "figures" / "figure3b.csv")
    success = numbers[numbers["metric"] == "ASR"]
    assert list(success["setting"]) == [0.5, 2, 10]
    assert list(success["mean"]) == [40, 20, 2], "of two seeds the mean"
    assert success["low"].iloc[0] == pytest.approx(100 * stats.binomtest(40, 100).proportion_ci(method="wilson").low)
    assert [file.suffix for file in drawn["figure3b"].files] == [".svg", ".png", ".csv"]
    ElementTree.parse(folder / "figures" / "figure3b.svg")
    with Image.open(folder / "figures" / "figure3b.png") as picture:
        assert picture.width == 3.4 * 200, "a column of print at 200 dpi"


def test_what_cannot_be_drawn_says_what_fills_it_and_leaves_no_old_picture(folder: Path) -> None:
    old = folder / "figures" / "figure3a.svg"
    old.parent.mkdir()
    old.write_text("of earlier results")
    drawn = draw(folder, matrix())
    assert drawn["figure3a"].missing == f"needs the variants shots=...: `bench run --suite shots --out {folder}`"
    assert drawn["figureS4"].missing.endswith(f"`bench run --suite permutation --out {folder}`")
    assert "the cell of badnet and clean_model" in drawn["figure1"].missing
    assert not old.exists()
    assert not drawn["figureS2"].missing
    assert all(bool(figure.files) != bool(figure.missing) for figure in drawn.values())


def test_every_kind_of_figure_that_a_paper_may_declare_can_be_drawn() -> None:
    assert sorted([*OF_ALL, *OF_SOME]) == sorted(get_args(FigureKind))


def test_a_figure_shows_the_defenses_that_its_paper_names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = PaperFigure(title="Another term", kind="loss_term", defenses=("vpt", "cleanclip"))
    monkeypatch.setattr("reports.figures.draw.figures", lambda: {"second/figure1": other})
    monkeypatch.setattr("reports.figures.source.Source.cells", {})
    drawn = draw(folder, [*matrix(), *rows("badnet", "cleanclip", ASR=40, CA=97)])
    assert drawn["second-figure1"].title == "Another term" and not drawn["second-figure1"].missing
    assert set(pd.read_csv(folder / "figures" / "second-figure1.csv")["defense"]) == {"vpt", "cleanclip"}
    lacking = draw(folder, matrix())["second-figure1"].missing
    assert lacking == f"needs cells of vpt and cleanclip: `bench run --defenses none,vpt,cleanclip --out {folder}`"


def test_a_sweep_shows_the_undefended_level_where_each_attack_has_one_line() -> None:
    swept = [row for a in ("badnet", "wanet") for row in rows(a, "rvpt", "alpha=1", ASR=9, CA=90)]
    none = [*rows("badnet", "none", ASR=95, CA=70), *rows("wanet", "none", ASR=85, CA=71)]
    summary = pd.DataFrame([*swept, *none]).rename(columns={"value": "mean"})
    lines = pd.DataFrame(swept).rename(columns={"value": "mean"})
    _, axes = panels(3, 3, 2, 1)
    undefended_lines(axes[:, 0], lines, summary)
    assert [[line.get_ydata()[0] for line in axis.lines[:-1]] for axis in axes[:, 0]] == [[95, 85], [70, 71]]
    # Of two defenses, whose line it is would not be seen.
    _, axes = panels(3, 3, 2, 1)
    undefended_lines(axes[:, 0], pd.concat([lines, lines.assign(defense="vpt")]), summary)
    assert not any(axis.lines for axis in axes[:, 0])
    # Nor is there a name in the legend without a line.
    undefended_lines(axes[:, 0], lines, pd.DataFrame(swept).rename(columns={"value": "mean"}))
    assert not any(axis.lines for axis in axes[:, 0])


def test_permutations_stand_beside_their_scheme(folder: Path) -> None:
    variants = [row for name in ("mix", "split") for row in rows("badnet", "rvpt", name, ASR=9, CA=90)]
    drawn = draw(folder, matrix() + variants)
    assert not drawn["figureS4"].missing
    assert list(pd.read_csv(folder / "figures" / "figureS4.csv")["variant"].unique()) == ["split", "mix"]


def test_resistivity_stands_beside_the_success_of_its_own_cell() -> None:
    load_plugins()
    main = pd.DataFrame(matrix())
    points = resistivity_and_success(main.assign(label=main["defense"]))
    ratio = points[(points["metric"] == "PR_ratio") & (points["perturbation"] == "trigger")]
    assert dict(zip(ratio["PR"], ratio["ASR"], strict=True)) == {0.6: 90, 0.7: 50, 0.95: 5}, "no clean model"
    said = correlation_words(pr_asr_correlation(ratio["PR"], ratio["ASR"]), "\n")
    assert said.startswith(f"Pearson {stats.pearsonr(ratio['PR'], ratio['ASR']).statistic:.2f}")
    assert "Spearman -1.00" in said
    both = pd.DataFrame([*matrix(), *rows("badnet", "linear_probe", ASR=80, CA=99, PR_ratio=2.0)])
    assert len(resistivity_and_success(both.assign(label=both["defense"]))) == len(points)


def test_no_correlation_is_drawn_where_no_attack_took(folder: Path) -> None:
    weak = [*rows("badnet", "none", ASR=10, CA=99, PR_cos=0.5, PR_ratio=0.6), *rows("badnet", "rvpt", ASR=9, CA=99)]
    assert draw(folder, weak)["figureS2"].missing.startswith("needs an attack that took; here none did")
    assert resistivity_and_success(pd.DataFrame(weak)[:0].assign(label="")).empty


def test_intra_class_similarity_against_numpy() -> None:
    rng = np.random.default_rng(0)
    raw, labels = rng.normal(size=(9, 5)), np.array([0, 0, 0, 1, 1, 2, 3, 3, 3])
    unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    expected = []
    for label in (0, 1, 3):
        own = np.flatnonzero(labels == label)
        expected.append(np.mean([unit[i] @ unit[j] for i in own for j in own if i != j]))
    found = intra_class_similarity(torch.tensor(unit), torch.tensor(labels))
    assert found.numpy() == pytest.approx(np.array(expected)), "a class of one image has no pair"


@torch.no_grad()
@pytest.mark.parametrize("count", [0, 5])
def test_class_attention_is_that_of_the_last_block(tiny_clip: Clip, count: int) -> None:
    rng = torch.Generator().manual_seed(0)
    images, prompts = torch.rand(2, 3, 32, 32, generator=rng), torch.randn(1, count, 32, generator=rng)
    block = tiny_clip.visual.transformer.resblocks[-1]
    hidden = torch.cat([tokens(tiny_clip, images, depth=3), prompts.expand(2, -1, -1)], 1)
    projected = block.ln_1(hidden) @ block.attn.in_proj_weight.T + block.attn.in_proj_bias
    query, key, _ = (part.unflatten(-1, (2, 16)).transpose(1, 2) for part in projected.chunk(3, -1))
    weights = (query @ key.transpose(-1, -2) / 16**0.5).softmax(-1).mean(1)
    found = class_attention(Victim(tiny_clip, prompts=prompts), images)
    assert found.shape == (2, 4, 4)
    assert torch.allclose(found.flatten(1), weights[:, 0, 1:17], atol=1e-5)
    assert not block.ln_1._forward_hooks, "the hook is gone"


@pytest.mark.parametrize("prompted", [0, 3])
def test_resistivity_of_blocks_is_that_of_the_class_tokens_that_leave_them(tiny_clip: Clip, prompted: int) -> None:
    rng = torch.Generator().manual_seed(0)
    images = torch.rand(5, 3, 32, 32, generator=rng)
    after = (images + 0.3 * torch.rand(5, 3, 32, 32, generator=rng)).clamp(0, 1)
    victim = Victim(tiny_clip, prompts=torch.randn(prompted, 4, 32, generator=rng) if prompted else None)
    layers = tiny_clip.visual.transformer.resblocks
    found = resistivity_of_blocks(class_tokens(victim, images, batch_size=2), class_tokens(victim, after, batch_size=2))
    assert found.shape == (len(layers), 5)
    expected = [_cosines(*pair) for pair in zip(_seen(victim, images), _seen(victim, after), strict=True)]
    assert found.numpy() == pytest.approx(np.array(expected), abs=1e-5)
    assert resistivity_of_blocks(class_tokens(victim, images), class_tokens(victim, images)).numpy() == pytest.approx(1)


@torch.no_grad()
def _seen(victim: Victim, images: torch.Tensor) -> list[np.ndarray]:
    """Class tokens after each block, with every block run on all tokens and its own prompts behind them."""
    hidden, layers, found = tokens(victim.clip, images), victim.clip.visual.transformer.resblocks, []
    first = len(layers) - (0 if victim.prompts is None else len(victim.prompts))
    for number, layer in enumerate(layers):
        own = victim.prompts[number - first].expand(len(images), -1, -1) if number >= first else hidden[:, :0]
        hidden = layer(torch.cat([hidden, own], 1))[:, : hidden.shape[1]]
        found.append(hidden[:, 0].numpy())
    return found


def _cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)


def test_the_projection_is_the_same_twice_and_keeps_texts_beside_their_images() -> None:
    rng = torch.Generator().manual_seed(0)
    texts = torch.nn.functional.normalize(torch.eye(3, 16) + 1.0, dim=-1)
    labels = torch.arange(3).repeat_interleave(20)
    noise = 0.05 * torch.randn(60, 16, generator=rng)
    images = torch.nn.functional.normalize(torch.eye(3, 16)[labels] - 1.0 + noise, dim=-1)
    first, second = project(images, images, texts), project(images, images, texts)
    assert (first == second).all()
    middles = np.stack([first[:60][labels.numpy() == label].mean(0) for label in range(3)])
    distances = np.linalg.norm(first[120:, None] - middles[None], axis=-1)
    assert list(distances.argmin(1)) == [0, 1, 2]


def test_print_is_readable() -> None:
    assert min(size for name, size in STYLE.items() if name.endswith("size") and name != "lines.markersize") >= 7
