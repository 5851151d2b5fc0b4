"""`bench paper`: from nothing to the tables of several data sets in one folder."""

from pathlib import Path

import pytest
from command import bench

DATA = ("world", "world-objects", "world-flowers")
SMALL = (
    *(f"{name}.{size}" for name in DATA for size in ("train_per_class=2", "test=40")),
    "poison.pairs=200", "poison.count=8", "poison.epochs=1", "zero_shot.perturbation_images=8", "execution.workers=1",
    "cleanclip.pairs=32", "cleanclip.epochs=1", "badclip.images=16", "badclip.epochs=1",
    "linear_probe.shots=1", "linear_probe.epochs=1", "vpt.shots=1", "vpt.epochs=1", "rvpt.shots=1", "rvpt.epochs=1",
)  # fmt: skip


@pytest.mark.slow
def test_one_command_fills_the_tables_of_several_data_sets(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["paper", "rvpt", "--seeds", "0", "--suites", "main", "--attacks", "badnet", "--out", str(tmp_path)]
    words += [word for setting in SMALL for word in ("--set", setting)]
    code, out, err = bench(capsys, monkeypatch, *words)
    assert code == 0, err
    assert "1 of 4: mini-flowers: main" in out and "4 of 4: mini: all attacks and defenses" in out
    assert "figure2: no measurement: it shows the framework of RVPT" in out
    [rvpt] = [line for line in _table(tmp_path, "table-2") if line.startswith("| RVPT ")]
    assert rvpt.count("(") == 2, "BadNet on both data sets"
    assert any(line.startswith("| RVPT ") and "(" in line for line in _table(tmp_path, "table-1"))
    assert (tmp_path / "table.md").read_text().startswith("# mini on world, target banana")
    assert (tmp_path / "figures" / "figure4.png").is_file() and (tmp_path / "report.html").is_file()

    code, out, err = bench(capsys, monkeypatch, *words, "--dry-run")
    assert code == 0 and " 0 artefacts to make" in " ".join(out.split()), err


def _table(out: Path, name: str) -> list[str]:
    """The lines of a table up to the comparison with the published numbers."""
    return (out / "tables" / f"{name}.md").read_text().partition("###")[0].splitlines()
