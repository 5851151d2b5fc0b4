"""An export has all that was observed and none of the models, and a run goes on in it."""

from pathlib import Path

import pytest
from fabricate import Made, opened

from bench.core.errors import BenchError
from bench.core.registry import load_plugins
from bench.results.export import export
from bench.results.folder import ResultsFolder
from reports import report
from reports.verify import verify

load_plugins()

CELLS = [Made(defense=defense, seed=seed, asr=asr) for seed in (0, 1) for defense, asr in (("none", 60), ("rvpt", 9))]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ResultsFolder:
    # There are no triggers of models that never were.
    monkeypatch.setattr(report, "trigger_pictures", lambda _: None)
    made = opened(tmp_path / "results", *CELLS)
    report.write_report(made)
    return made


def test_every_number_is_computed_again_from_an_export(folder: ResultsFolder, tmp_path: Path) -> None:
    assert export(folder, tmp_path / "copy") == 2 + 2  # a backdoor a seed, rvpt on each
    copy = ResultsFolder(tmp_path / "copy")
    assert copy.results.equals(folder.results)
    found = verify(copy)
    assert found.problems == []
    assert found.compared["artefacts"] == 4
    assert found.compared["cards of artefacts that were left out"] == 4
    assert all(copy.lineage(cell) == folder.lineage(cell) for cell in folder.cells)
    assert report.write_report(copy) == report.write_report(folder).replace(str(folder.out), str(copy.out))


def test_models_are_left_out_and_said_to_be(folder: ResultsFolder, tmp_path: Path) -> None:
    export(folder, tmp_path / "copy")
    copy = ResultsFolder(tmp_path / "copy")
    assert [path.name for path in copy.store.root.iterdir()] == ["evaluation"]
    with pytest.raises(BenchError, match="is no longer in"):
        copy.victim(copy.cells[0])


def test_a_later_export_adds_to_an_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "trigger_pictures", lambda _: None)
    for n in (2, 4):
        made = opened(tmp_path / str(n), *CELLS[:n])
        report.write_report(made)
        export(made, tmp_path / "copy")
    assert len(ResultsFolder(tmp_path / "copy").cells) == 4
    assert verify(ResultsFolder(tmp_path / "copy")).problems == []


def test_a_changed_card_is_found(folder: ResultsFolder, tmp_path: Path) -> None:
    export(folder, tmp_path / "copy")
    card = next((tmp_path / "copy" / "cards").glob("defense/*.json"))
    card.write_text(card.read_text().replace('"alpha": 2.0', '"alpha": 3.0'))
    [problem] = verify(ResultsFolder(tmp_path / "copy")).problems
    assert problem.startswith(f"cards/defense/{card.name}: the card has the id")


def test_other_files_are_not_written_over(folder: ResultsFolder, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    with pytest.raises(BenchError, match="is no results folder"):
        export(folder, tmp_path / "thesis")
    with pytest.raises(BenchError, match="is the folder to export"):
        export(folder, folder.out)


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(opened(tmp_path / "made", Made()).out.joinpath("run.json").read_text())
    with pytest.raises(BenchError, match=r"no cell of .* is finished"):
        export(ResultsFolder(tmp_path), tmp_path / "copy")
