"""What a cut leaves of a wanted fine-tuning, at a size of seconds."""

from pathlib import Path

import pandas as pd
import pytest

from benchmarks.world import wanted

FEW = wanted.RECIPE.model_copy(update={"epochs": 1, "batch_size": 8})


def test_a_cut_of_all_directions_gives_the_clean_model_back(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wanted, "DATASETS", ("world-flowers",))
    monkeypatch.setattr(wanted, "RANKS", (1, 512))
    monkeypatch.setattr(wanted, "RECIPE", FEW)
    wanted.main(["--out", str(tmp_path), "--shots", "2", "--val", "36"])
    table = pd.read_csv(tmp_path / "wanted.csv")
    assert table["rank"].tolist() == [0, 1, 512] and table["data"].unique() == ["world-flowers"]
    assert "world-flowers" in capsys.readouterr().out
    # Vectors and position embeddings are not cut, so that a picture on the edge may still change its class.
    assert abs(table["CA"].iloc[2] - table["clean"].iloc[2]) < 3
    assert table["kept"].iloc[0] == 1
