"""The search for the embedded world's settings, on a run that is made up."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest

from bench.core.registry import load_plugins
from bench.experiment.settings import resolve
from benchmarks.world import search

load_plugins()


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """What was asked to be run; each run gives an ASR and a CA that tell which it was."""
    asked: list[dict] = []

    def measure(_: Path, attacks: Sequence[str], defenses: Sequence[str], **settings: dict) -> pd.DataFrame:
        asked.append({"attacks": attacks, "defenses": defenses, **settings})
        rows = [
            (attack, defense, 0, metric, value + len(asked), 600)
            for attack in attacks
            for defense in defenses
            for metric, value in (("ASR", 0), ("CA", 50))
        ]
        return pd.DataFrame(rows, columns=["attack", "defense", "seed", "metric", "value", "n"])

    monkeypatch.setattr(search, "measure", measure)
    return asked


@pytest.mark.parametrize("what", ["doses", "defenses"])
def test_a_search_has_a_row_for_each_setting_and_attack_and_a_plot(
    what: str, runs: list[dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["search", what, "--out", str(tmp_path)])
    search.main()
    table = pd.read_csv(tmp_path / f"{what}.csv")
    assert len(table) == sum(len(run["attacks"]) * len(run["defenses"]) for run in runs)
    assert (table["CA"] - table["ASR"] == 50).all() and set(table["ASR"]) == set(range(1, len(runs) + 1))
    assert (tmp_path / f"{what}.png").stat().st_size > 1000


def test_every_defense_has_as_many_settings_and_one_of_them_is_the_preset_s() -> None:
    assert len({len(settings) for settings in search.SETTINGS.values()}) == 1
    for name, settings in search.SETTINGS.items():
        assert {} in settings
        for setting in settings:
            resolve("mini", None, {name: setting})


def test_the_preset_s_dose_is_one_of_those_tried() -> None:
    poison = resolve("mini").poison
    assert (poison.pairs, poison.count) in search.DOSES
