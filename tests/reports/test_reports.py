"""Tables and pictures from results made by hand."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fabricate import Made, opened
from PIL import Image

from bench.builtin_tasks.zero_shot import ZeroShot
from bench.core.registry import load_plugins
from bench.results.tidy import COLUMNS, did_not_take, marked, pooled, view_table
from reports.report import remarks
from reports.triggers import difference, draw_triggers, psnr

load_plugins()
_, RESISTIVITY, ONE_KEY = ZeroShot.views.values()


def main_table(frame: pd.DataFrame) -> pd.DataFrame:
    table = view_table(frame, [(metric, "") for metric in ZeroShot.headline])
    assert table is not None
    return table


def results(*cells: tuple[str, str, int, int, int]) -> pd.DataFrame:
    """Rows for (attack, defense, seed, ASR's count, CA's count), of 100 images each."""
    rows = []
    for attack, defense, seed, asr, ca in cells:
        place = {"task": "zero_shot", "model": "m", "attack": attack, "target": "t", "defense": defense, "dataset": "d"}
        place |= {"seed": seed, "variant": ""}
        for metric, count in (("ASR", asr), ("CA", ca)):
            share = {"metric": metric, "perturbation": "", "value": float(count), "count": float(count), "n": 100}
            rows.append({**place, **share, "low": 0.0, "high": 100.0})
        for metric in ("PR_cos", "PR_ratio"):
            similarity = {"metric": metric, "perturbation": "trigger", "value": 0.9, "count": np.nan, "n": 100}
            rows.append({**place, **similarity, "low": 0.8, "high": 1.0})
    return pd.DataFrame(rows, columns=COLUMNS)


def test_the_main_table_has_asr_ca_and_intervals() -> None:
    table = main_table(results(("badnet", "none", 0, 97, 99), ("badnet", "clean_model", 0, 0, 100)))
    assert list(table.index) == ["clean_model", "none"], "the clean model comes first"
    assert table.loc["none", "badnet"] == "97.0 [91.5, 99.0] (99.0 [94.6, 99.8])"


def test_seeds_are_averaged_and_their_spread_stands_beside() -> None:
    frame = results(("badnet", "none", 0, 90, 99), ("badnet", "none", 1, 70, 97))
    found = pooled(frame[frame["metric"] == "ASR"])
    # Wilson by hand: (p + z²/2n ± z sqrt(p q / n + z²/4n²)) / (1 + z²/n)
    p, n, z = 0.8, 100, 1.959963984540054
    middle, half = p + z**2 / (2 * n), z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    expected = ((middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n))
    assert (found.value, found.low, found.high) == pytest.approx((80, 100 * expected[0], 100 * expected[1]))
    assert "80.0 [71.1, 86.7; seeds 70.0..90.0]" in main_table(frame).loc["none", "badnet"]


def test_a_missing_cell_is_a_dash() -> None:
    frame = results(("badnet", "none", 0, 90, 99), ("wanet", "rvpt", 0, 70, 97))
    assert main_table(frame).loc["rvpt", "badnet"] == "–"
    table = view_table(frame, RESISTIVITY)
    assert table is not None and table.loc["rvpt", "wanet"] == "0.900 (0.900)"
    assert table.loc["rvpt", "badnet"] == "–"


def test_attacks_that_did_not_take_are_named() -> None:
    frame = results(("badnet", "none", 0, 90, 99), ("wanet", "none", 0, 59, 99), ("wanet", "rvpt", 0, 1, 99))
    assert did_not_take(frame, 60.0) == {"wanet": 59.0}
    table = marked(main_table(frame), did_not_take(frame, 60.0))
    assert list(table.columns) == ["badnet", "wanet (did not take)"]


def test_the_remark_names_the_metric_by_which_an_attack_did_not_take(tmp_path: Path) -> None:
    folder = opened(tmp_path, Made(defense="none"))
    weak = {"ASR": {"badnet": 12.34}, "hijacked": {"wanet": 5.0}}
    assert remarks(folder, weak, "† ") == [
        "† The attack badnet did not take: undefended ASR 12.3 % < 60 %.",
        "† The attack wanet did not take: undefended hijacked 5.0 % < 60 %.",
    ]


def test_what_is_no_rate_of_success_does_not_say_whether_an_attack_took() -> None:
    frame = results(("wanet", "none", 0, 59, 30))
    assert did_not_take(frame, 60.0, "ASR") == {"wanet": 59.0}
    assert did_not_take(frame, 60.0, "CA") == {} == did_not_take(frame, 60.0, "PR_cos")


def test_a_dual_key_attack_shows_each_key_alone() -> None:
    frame = results(("trojvqa", "none", 0, 97, 99), ("trojvqa", "rvpt", 0, 3, 98), ("badnet", "none", 0, 90, 99))
    assert view_table(frame, ONE_KEY) is None, "no attack has two keys"
    both = frame[(frame["metric"] == "ASR") & (frame["attack"] == "trojvqa") & (frame["defense"] == "none")]
    alone = [both.assign(metric=name, value=v, count=v) for name, v in (("ASR_image", 20.0), ("ASR_text", 5.0))]
    frame = pd.concat([frame, *alone])
    table = view_table(frame, ONE_KEY)
    assert table is not None
    assert list(table.columns) == ["trojvqa"] and list(table.index) == ["none"]
    image, text = table.loc["none", "trojvqa"].rstrip(")").split(" (")
    assert (image.split()[0], text.split()[0]) == ("20.0", "5.0")
    assert main_table(frame).loc["none", "trojvqa"].startswith("97.0 [")
    assert main_table(frame).loc["rvpt", "trojvqa"].startswith("3.0 [1.0, 8.5]")
    # A defense of which one of the two is known.
    some = both.assign(metric="ASR_text", value=7.0, count=7, defense="rvpt")
    table = view_table(pd.concat([frame, some]), ONE_KEY)
    assert table is not None and table.loc["rvpt", "trojvqa"].startswith("– (7.0 [")


def test_a_cell_without_the_triggers_resistivity_is_a_dash() -> None:
    frame = results(("badnet", "none", 0, 90, 99), ("badnet", "rvpt", 0, 1, 99))
    assert view_table(frame[frame["perturbation"] == ""], RESISTIVITY) is None
    ratio = (frame["metric"] == "PR_ratio") & (frame["defense"] == "none")
    table = view_table(frame[~ratio], RESISTIVITY)
    assert table is not None and list(table["badnet"]) == ["0.900 (–)", "0.900 (0.900)"]


def test_psnr_against_numpy() -> None:
    rng = np.random.default_rng(0)
    clean, changed = rng.integers(0, 256, (2, 1, 3, 8, 8))
    expected = 10 * np.log10(255**2 / np.mean((clean - changed) ** 2))
    assert psnr(torch.tensor(clean), torch.tensor(changed)) == pytest.approx(expected)


def test_the_difference_is_amplified_around_gray() -> None:
    clean = torch.full((1, 3, 2, 2), 100, dtype=torch.uint8)
    assert difference(clean, clean).unique().tolist() == [128]
    assert difference(clean, clean + 5).unique().tolist() == [178]


def test_the_gallery_grows_downwards_by_a_row_per_attack(tmp_path: Path) -> None:
    clean = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    sizes = []
    for n in (1, 7):
        file = tmp_path / "triggers" / f"{n}.png"
        draw_triggers(clean, {f"attack{k}": clean + 50 for k in range(n)}, file)
        with Image.open(file) as picture:
            sizes.append(picture.size)
    (width1, height1), (width7, height7) = sizes
    assert width1 == width7 and height7 > 3 * height1


def test_the_gallery_shows_the_triggered_images(tmp_path: Path) -> None:
    clean = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    red = clean.clone()
    red[:, 0] = 255
    draw_triggers(clean, {"red": red}, tmp_path / "gallery.png")
    with Image.open(tmp_path / "gallery.png") as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24)}
    assert {(0, 0, 0), (255, 0, 0), (255, 128, 128)} <= colours
