"""The tidy table and its summary; `bench verify`, which must be able to fail; no mixtures."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fabricate import Made, opened, results_folder
from scipy import stats
from typer.testing import CliRunner

from bench.cli_gate import app
from bench.core.errors import BenchError
from bench.core.images import hash_file
from bench.core.registry import load_plugins
from bench.results.folder import ResultsFolder
from bench.results.store import Store
from bench.results.tidy import COLUMNS, NOT_THE_SPREAD, pooled, summarise
from reports import report
from reports.files import write_results
from reports.verify import verify

load_plugins()

TWO_SEEDS = [
    Made(defense=defense, seed=seed, asr=asr, ca=ca)
    for defense, seed, asr, ca in [("none", 0, 75, 98), ("none", 1, 69, 98), ("rvpt", 0, 3, 90), ("rvpt", 1, 6, 92)]
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two defenses and seeds, as `bench report` leaves them."""
    out = results_folder(tmp_path, *TWO_SEEDS)
    write_results(ResultsFolder(out))
    return out


def test_the_tidy_table_reads_in_one_line_and_says_where_numbers_come_from(folder: Path) -> None:
    results = pd.read_csv(folder / "results.csv")
    assert list(results) == COLUMNS
    row = results[(results.defense == "rvpt") & (results.seed == 1) & (results.metric == "ASR")].iloc[0]
    assert (row["count"], row["n"], row["value"]) == (6, 75, 8.0)
    low, high = stats.binomtest(6, 75).proportion_ci(method="wilson")
    assert (row["low"], row["high"]) == pytest.approx((100 * low, 100 * high))
    assert (row["bench"], row["torch"], row["device"], row["hardware"]) == ("0.1.0", "2.6.0", "cpu", "abacus")
    assert (folder / "artefacts" / "evaluation" / row["cell"] / "card.json").is_file()
    again = pd.read_parquet(folder / "results.parquet")
    np.testing.assert_array_equal(again["value"], results["value"])


def test_a_variant_is_a_column_and_nothing_where_there_is_none(tmp_path: Path) -> None:
    out = results_folder(tmp_path, Made(), Made(alpha=3.0, variant="alpha 3"))
    assert list(ResultsFolder(out).results["variant"].unique()) == ["", "alpha 3"]


def test_the_spread_over_seeds_stands_apart_from_the_sampling_interval(folder: Path) -> None:
    summary = pd.read_csv(folder / "summary.csv")
    row = summary[(summary.defense == "rvpt") & (summary.metric == "ASR")].iloc[0]
    assert (row["seeds"], row["mean"], row["min"], row["max"]) == (2, 6.0, 4.0, 8.0)
    # 4.5 of 75 images, the mean of 3 and 6: not 9 of 150, since both seeds saw the same images.
    low, high = stats.binomtest(4, 75).proportion_ci(method="wilson")
    assert (row["count"], row["n"], row["low"], row["high"]) == pytest.approx((4.5, 75, 100 * low, 100 * high))


@pytest.mark.parametrize("seeds", [1, 2])
def test_tables_over_seeds_say_that_an_interval_is_not_their_spread(
    tmp_path: Path, seeds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # There are no triggers of models that never were.
    monkeypatch.setattr(report, "trigger_pictures", lambda _: None)
    cells = [cell for cell in TWO_SEEDS if cell.seed < seeds]
    said = report.write_report(opened(tmp_path, *cells))
    assert said.count(NOT_THE_SPREAD) == (seeds > 1)
    assert ("seeds 4.0..8.0" in said) == ("[seeds 0.900..0.900]" in said) == (seeds > 1)
    (note,) = [line for line in (tmp_path / "tables" / "table-1.md").read_text().splitlines() if "table-1.csv" in line]
    assert note == "95 % intervals: table-1.csv." + (f" {NOT_THE_SPREAD}" if seeds > 1 else "")
    written = pd.read_csv(tmp_path / "tables" / "table-1.csv").set_index(["defense", "metric"])
    assert list(written.loc[("rvpt", "ASR"), ["min", "max"]]) == [4.0, 4.0 * seeds]


def test_a_mean_over_images_is_pooled_end_by_end() -> None:
    rows = pd.DataFrame(
        {"value": [0.8, 0.9], "count": [np.nan] * 2, "n": [10, 10], "low": [0.7, 0.86], "high": [0.84, 0.94]}
    )
    found = pooled(rows)
    assert (found.value, found.n, found.low, found.high) == pytest.approx((0.85, 10, 0.78, 0.89))
    assert np.isnan(found.count)


def test_no_row_is_lost_in_the_summary(folder: Path) -> None:
    results = ResultsFolder(folder).results
    assert summarise(results)["seeds"].sum() == len(results)


# --- verify ----------------------------------------------------------------------------------------------------------


def problems_of(out: Path) -> list[str]:
    return verify(ResultsFolder(out)).problems


def test_untouched_results_are_verified_and_counted(folder: Path) -> None:
    found = verify(ResultsFolder(folder))
    assert found.problems == []
    results = len(pd.read_csv(folder / "results.csv"))
    assert found.compared["rows of results.csv"] == results == found.compared["rows of results.parquet"]
    assert found.compared["predictions"] == 4 * 100
    assert found.compared["artefacts"] == 2 + 2 + 4  # a backdoor a seed, rvpt on each, four evaluations
    assert found.compared["files"] == 2 + 2 + 2 * 4
    done = CliRunner().invoke(app, ["verify", str(folder)])
    assert done.exit_code == 0 and f"{results} rows of results.csv" in done.output


def alter(file: Path, row: dict[str, object], column: str, value: float) -> None:
    table = pd.read_csv(file)
    table.loc[(table[list(row)] == pd.Series(row)).all(axis=1), column] = value
    table.to_csv(file, index=False)


@pytest.mark.parametrize("column", ["value", "count", "n", "low", "high"])
def test_an_altered_number_is_named(folder: Path, column: str) -> None:
    alter(folder / "results.csv", {"defense": "rvpt", "seed": 1, "metric": "ASR"}, column, 7)
    done = CliRunner().invoke(app, ["verify", str(folder)])
    assert done.exit_code == 1
    assert f"results.csv: ASR of badnet / rvpt, seed 1: {column} 7.0, computed again" in done.output
    assert "1 of these differ" in done.output


def test_a_number_altered_in_its_eighth_digit_is_seen(folder: Path) -> None:
    results = pd.read_csv(folder / "results.csv")
    old = results[(results.metric == "PR_cos") & (results.perturbation == "trigger") & (results.seed == 0)].iloc[0]
    row = {key: old[key] for key in ("defense", "seed", "metric", "perturbation")}
    alter(folder / "results.csv", row, "value", old["value"] * (1 + 1e-8))
    assert [p for p in problems_of(folder) if "PR_cos (trigger) of badnet / none, seed 0: value" in p]


def test_an_altered_summary_is_named(folder: Path) -> None:
    alter(folder / "summary.csv", {"defense": "rvpt", "metric": "CA"}, "min", 92)
    assert problems_of(folder) == ["summary.csv: CA of badnet / rvpt: min 92.0, computed again 90.0"]


def test_an_altered_prediction_differs_from_its_evaluation_and_changes_numbers(folder: Path) -> None:
    file = folder / "predictions.parquet"
    predictions = pd.read_parquet(file)
    first = predictions.index[(predictions.defense == "rvpt") & (predictions.seed == 0) & (predictions.label != 0)][0]
    predictions.loc[first, "triggered"] = 2
    predictions.to_parquet(file, index=False)
    problems = problems_of(folder)
    image = predictions.loc[first, "id"]
    assert any(
        f"predictions.parquet: badnet / rvpt, seed 0, other values in 1 rows ({image} first)" in p for p in problems
    )
    assert any("results.csv: ASR of badnet / rvpt, seed 0: value 4.0, computed again 2.6666" in p for p in problems)
    assert not any("none" in p or "seed 1" in p for p in problems)


@pytest.mark.parametrize(
    ("kind", "file", "message"),
    [
        ("evaluation", "predictions.parquet", "is not the file that was written"),
        ("backdoor", "model.bin", "is not the file that was written"),
    ],
)
def test_an_altered_file_of_an_artefact_is_named(folder: Path, kind: str, file: str, message: str) -> None:
    changed = sorted((folder / "artefacts" / kind).glob(f"*/{file}"))[0]
    if file.endswith(".parquet"):
        pd.read_parquet(changed).assign(extra=1).to_parquet(changed, index=False)
    else:
        changed.write_text("other weights")
    assert [p for p in problems_of(folder) if p.endswith(message)] == [f"{changed.relative_to(folder)} {message}"]


def test_a_lost_file_an_altered_card_and_a_lost_row_are_named(folder: Path) -> None:
    lost, *_ = sorted(folder.glob("artefacts/defense/*/delta.bin"))
    lost.unlink()
    card, *_ = sorted(folder.glob("artefacts/backdoor/*/card.json"))
    contents = json.loads(card.read_text())
    contents["determined_by"]["poison"]["count"] = 17
    card.write_text(json.dumps(contents))
    results = pd.read_csv(folder / "results.csv")
    results.drop(index=results.index[results.metric == "CA"][0]).to_csv(folder / "results.csv", index=False)
    problems = problems_of(folder)
    assert f"{lost.relative_to(folder)} is missing" in problems
    assert any(
        p.startswith(f"{card.parent.relative_to(folder)}: its card has the id {card.parent.name}") for p in problems
    )
    assert "results.csv: CA of badnet / none, seed 0 is missing" in problems
    assert len(problems) == 3


def test_a_row_of_no_cell_and_a_row_told_twice_are_named(folder: Path) -> None:
    file = folder / "results.csv"
    results = pd.read_csv(file)
    pd.concat([results, results.tail(1).assign(attack="wanet")]).to_csv(file, index=False)
    [problem] = problems_of(folder)
    assert "wanet / rvpt, seed 1 is of no finished cell" in problem
    pd.concat([results, results.tail(1)]).to_csv(file, index=False)
    [problem] = problems_of(folder)
    assert "results.csv has rows twice" in problem


def test_files_without_a_hash_on_their_card_are_named(folder: Path) -> None:
    for card in folder.glob("artefacts/backdoor/*/card.json"):
        contents = json.loads(card.read_text())
        del contents["files"]
        card.write_text(json.dumps(contents))
    problems = problems_of(folder)
    assert len(problems) == 2 and all("model.bin has no hash on the card" in problem for problem in problems)


def test_an_altered_number_of_many_cells_is_named(folder: Path) -> None:
    over = {"metric": "PR_ASR", "what": "PR_cos, Spearman"}
    alter(folder / "cell_metrics.csv", over, "n", 5)
    assert problems_of(folder) == ["cell_metrics.csv: zero_shot PR_ASR PR_cos, Spearman: n 5.0, computed again 4"]


def test_a_value_that_was_missing_when_it_was_observed_is_no_difference(folder: Path) -> None:
    for file in folder.glob("artefacts/evaluation/*/predictions.parquet"):
        table = pd.read_parquet(file)
        table.assign(confidence=np.where(table["label"] == 0, np.nan, 0.5)).to_parquet(file, index=False)
        card = json.loads((file.parent / "card.json").read_text())
        card["files"][file.name] = hash_file(file)
        (file.parent / "card.json").write_text(json.dumps(card))
    write_results(ResultsFolder(folder))
    assert problems_of(folder) == []
    published = pd.read_parquet(folder / "predictions.parquet")
    published["confidence"] = published["confidence"].fillna(0.1)
    published.to_parquet(folder / "predictions.parquet", index=False)
    assert [p for p in problems_of(folder) if "badnet / rvpt, seed 1, other values in 25 rows (image 0 first)" in p]


def test_without_a_report_there_is_nothing_to_verify(tmp_path: Path) -> None:
    out = results_folder(tmp_path, Made())
    with pytest.raises(BenchError, match=r"results\.csv is missing\. `bench report .*` writes it"):
        verify(ResultsFolder(out))


# --- mixtures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            Made(seed=1, card={"bench": "0.2.0"}),
            r"mixes versions of bench.*0\.1\.0: badnet / rvpt, seed 0; 0\.2\.0: badnet",
        ),
        (Made(seed=1, card={"torch": "2.7.0"}), r"mixes versions of torch.*2\.7\.0: badnet / rvpt, seed 1"),
        (Made(attack="wanet", split="val"), r"mixes splits.*test: badnet / rvpt, seed 0; val: wanet / rvpt, seed 0"),
        (Made(attack="wanet", checkpoint="another"), r"mixes checkpoints of mini.*another: wanet / rvpt, seed 0"),
        (Made(attack="wanet", backdoored="theirs"), r"mixes checkpoints of mini.*the model and theirs: wanet / rvpt"),
    ],
)
def test_a_table_refuses_mixtures_and_says_which(tmp_path: Path, other: Made, message: str) -> None:
    out = results_folder(tmp_path, Made(), other)
    with pytest.raises(BenchError, match=f"(?s){message}.*in another folder: `bench run"):
        _ = ResultsFolder(out).results


def test_a_defense_of_another_version_than_its_backdoor_is_a_mixture(tmp_path: Path) -> None:
    out = results_folder(tmp_path, Made())
    card = Store(out).path("backdoor", ResultsFolder(out).run.cells[0].backdoor or "") / "card.json"
    card.write_text(card.read_text().replace('"0.1.0"', '"0.0.9"'))
    with pytest.raises(BenchError, match=r"mixes versions of bench"):
        _ = ResultsFolder(out).results


def test_variants_may_have_checkpoints_of_their_own(tmp_path: Path) -> None:
    out = results_folder(tmp_path, Made(), Made(checkpoint="another", variant="model another"))
    assert set(ResultsFolder(out).results["variant"]) == {"", "model another"}


def test_a_folder_of_another_format_is_refused_with_the_mend(folder: Path) -> None:
    record = json.loads((folder / "run.json").read_text())
    told = r"run\.json was written by another version of bench \(format 1, and this one reads \d\)\. Open it with that"
    for written in (record | {"format": 1}, {name: value for name, value in record.items() if name != "format"}):
        (folder / "run.json").write_text(json.dumps(written))
        with pytest.raises(BenchError, match=told):
            ResultsFolder(folder)


@pytest.mark.parametrize(
    ("file", "mend"),
    [
        ("run.json", "Remove it; the same `bench run` makes it again."),
        ("artefacts/evaluation/*/card.json", "Remove its folder; the same"),
        ("artefacts/evaluation/*/predictions.parquet", "Remove the folder; the same"),
    ],
)
def test_a_damaged_file_is_an_error_that_names_it_and_the_mend(folder: Path, file: str, mend: str) -> None:
    for damaged in folder.glob(file):
        damaged.write_text("{")
    with pytest.raises(BenchError) as error:
        verify(ResultsFolder(folder))
    assert " is damaged: " in str(error.value) and mend in str(error.value)
