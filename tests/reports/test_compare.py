"""Two defenses on the same images, and the correlation of PR and ASR with its caution."""

import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from fabricate import Made, opened, results_folder
from scipy import stats
from typer.testing import CliRunner

from bench.builtin_tasks.zero_shot import ZeroShot
from bench.cli_gate import app
from bench.core.errors import BenchError
from bench.core.registry import load_plugins
from bench.results.folder import ResultsFolder
from bench.results.run_file import RUN_FILE, read_run_file
from metrics.correlation import correlation_points
from reports.compare import compare, two_by_two
from reports.report import over_cells_text

load_plugins()


def pair(seed: int = 0, attack: str = "badnet", second: range = range(12, 34)) -> list[Made]:
    """Newcombe's table 20, 12, 2, 16 of 50 images, in CA: vpt hits 0..31, rvpt 12..33."""
    first = Made(attack=attack, defense="vpt", seed=seed, n=50, asr=30, ca_hits=range(32), perturbations=())
    return [first, replace(first, defense="rvpt", asr=2, ca_hits=second)]


def test_counts_of_pairs() -> None:
    first = pd.Series([True, True, True, False, False])
    second = pd.Series([True, False, False, True, False])
    assert two_by_two(first, second) == (1, 2, 1, 1)


def test_the_difference_has_newcombes_interval_and_mcnemars_test(tmp_path: Path) -> None:
    table, unpaired = compare(opened(tmp_path, *pair()), "vpt", "rvpt")
    assert unpaired == 0
    assert list(table["metric"]) == ["ASR", "CA"] and list(table["seed"]) == [0, 0]
    ca = table.set_index("metric").loc["CA"]
    assert (ca["first"], ca["second"], ca["difference"]) == pytest.approx((64, 44, 20))
    assert (ca["first_only"], ca["second_only"]) == (12, 2)
    # Newcombe (1998), Stat. Med. 17, 2635-2650, Table III, method 10.
    assert (ca["low"], ca["high"]) == pytest.approx((5.62, 32.92), abs=0.01)
    # 12 against 2 of 14 tosses of a coin, in both directions.
    assert ca["p"] == pytest.approx(2 * (1 + 14 + 91) / 2**14)


def test_asr_is_compared_among_the_images_of_other_classes(tmp_path: Path) -> None:
    folder = opened(tmp_path, *pair())
    table, _ = compare(folder, "vpt", "rvpt")
    asr = table.set_index("metric").loc["ASR"]
    n = 37  # of 50 images, 13 are of the target's class
    assert (asr["first"], asr["second"]) == pytest.approx((100 * 30 / n, 100 * 2 / n))
    assert (asr["first_only"], asr["second_only"]) == (28, 0)
    results = folder.results.query("metric == 'ASR'").set_index("defense")["value"]
    assert (results["vpt"], results["rvpt"]) == pytest.approx((asr["first"], asr["second"]))


def test_the_other_order_turns_the_sign(tmp_path: Path) -> None:
    folder = opened(tmp_path, *pair())
    one, other = (compare(folder, *names)[0] for names in (("vpt", "rvpt"), ("rvpt", "vpt")))
    assert list(one["difference"]) == pytest.approx(list(-other["difference"]))
    assert list(one["low"]) == pytest.approx(list(-other["high"]))
    assert list(one["p"]) == pytest.approx(list(other["p"]))


def test_more_seeds_of_the_same_images_do_not_narrow_the_interval(tmp_path: Path) -> None:
    folder = opened(tmp_path, *pair(0), *pair(1), *pair(2))
    ca = compare(folder, "vpt", "rvpt")[0].query("metric == 'CA'").set_index("seed")
    assert list(ca.index) == [0, 1, 2, "all"]
    assert ca.loc["all", ["first", "second", "difference", "low", "high"]].tolist() == pytest.approx(
        ca.loc[0, ["first", "second", "difference", "low", "high"]].tolist()
    )
    assert math.isnan(ca.loc["all", "p"]) and ca.loc[0, "p"] < 0.05


def test_seeds_are_averaged(tmp_path: Path) -> None:
    folder = opened(tmp_path, *pair(0), *pair(1, second=range(32)))
    ca = compare(folder, "vpt", "rvpt")[0].query("metric == 'CA'").set_index("seed")
    assert ca.loc["all", "difference"] == pytest.approx((20 + 0) / 2)
    assert (ca.loc["all", "first_only"], ca.loc["all", "second_only"]) == (6, 1)
    assert ca.loc["all", "low"] < 10 < ca.loc["all", "high"]


def test_places_with_only_one_of_the_two_are_counted(tmp_path: Path) -> None:
    out = results_folder(tmp_path, *pair(), Made(attack="wanet", defense="vpt"))
    table, unpaired = compare(ResultsFolder(out), "vpt", "rvpt")
    assert set(table["attack"]) == {"badnet"} and unpaired == 1
    said = CliRunner().invoke(app, ["compare", str(out), "vpt", "rvpt"]).output
    assert "Left out, as only one of the two is finished: 1" in said


def test_a_task_that_does_not_say_what_was_looked_at_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ZeroShot, "published", ())
    with pytest.raises(BenchError, match=r"no attack and seed of .* has both vpt and rvpt"):
        compare(opened(tmp_path, *pair()), "vpt", "rvpt")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("vpt", "rvtp"), "unknown defense 'rvtp'. Did you mean 'rvpt'?"),
        (("vpt", "rvpt", "badnett"), "unknown attack 'badnett'. Did you mean 'badnet'?"),
        (("vpt", "rvpt", "wanet"), "no attack and seed of .* has both vpt and rvpt. Give --defenses vpt,rvpt"),
        (("vpt", "none"), "vpt and none, badnet, seed 0: their images or labels differ"),
    ],
)
def test_what_cannot_be_compared_is_an_error(tmp_path: Path, words: tuple, message: str) -> None:
    cells = [*pair(), Made(defense="none", n=60), Made(attack="wanet", defense="vpt")]
    with pytest.raises(BenchError, match=message):
        compare(opened(tmp_path, *cells), *words)


def test_the_command_prints_the_table_and_writes_it(tmp_path: Path) -> None:
    out = results_folder(tmp_path, *pair(0), *pair(1))
    file = tmp_path / "deep" / "compared.csv"
    done = CliRunner().invoke(app, ["compare", str(out), "vpt", "rvpt", "--csv", str(file)])
    assert done.exit_code == 0
    assert "+20.0 [+5.6, +32.9]" in done.output and "0.013" in done.output and "12 / 2" in done.output
    assert "its interval is that of one seed's images" in done.output
    assert len(pd.read_csv(file)) == 2 * 3


# --- correlation -----------------------------------------------------------------------------------------------------

CELLS = [("none", 0.80, 70), ("vpt", 0.85, 40), ("rvpt", 0.97, 4), ("cleanclip", 0.82, 75)]


def correlated(out: Path, perturbations: tuple[str, ...] = ("trigger",)) -> pd.DataFrame:
    cells = (Made(defense=d, pr=pr, asr=asr, perturbations=perturbations) for d, pr, asr in CELLS)
    return opened(out, *cells).results


def correlation_text(results: pd.DataFrame) -> str:
    return "\n".join(over_cells_text(results))


def test_the_correlation_is_scipys_over_the_cells_own_triggers(tmp_path: Path) -> None:
    results = correlated(tmp_path)
    points = correlation_points(results, "PR_cos")
    assert sorted(points["pr"]) == pytest.approx(sorted(pr for _, pr, _ in CELLS))
    pr, asr = zip(*((pr, asr / 0.75) for _, pr, asr in CELLS), strict=True)
    text = correlation_text(results)
    assert f"PR_ASR (PR_cos, Pearson): {stats.pearsonr(pr, asr).statistic:.2f} [" in text
    assert f"PR_ASR (PR_cos, Spearman): {stats.spearmanr(pr, asr).statistic:.2f} [" in text
    assert text.count("n = 4.") == 4


def test_the_generic_correlation_is_of_the_mean_over_all_other_perturbations(tmp_path: Path) -> None:
    results = correlated(tmp_path, ("flip", "blur-3", "trigger"))
    blurred, flipped = (results["perturbation"] == name for name in ("blur-3", "flip"))
    results.loc[blurred, "value"] = [0.2, 0.9, 0.4, 0.7] * 2
    cosines = results[(results["metric"] == "PR_cos") & (blurred | flipped)]
    means = cosines.groupby("defense")["value"].mean()
    asr = results[results["metric"] == "ASR"].set_index("defense")["value"]
    wanted = stats.pearsonr(means, asr[means.index]).statistic
    assert f"PR_ASR_generic (PR_cos, Pearson): {wanted:.2f} [" in correlation_text(results)
    own = f"PR_ASR (PR_cos, Pearson): {stats.pearsonr(*zip(*((p, a) for _, p, a in CELLS), strict=True)).statistic:.2f}"
    assert own in correlation_text(results)
    assert "PR_ASR_generic" not in correlation_text(results[~(blurred | flipped)])


def test_a_line_without_a_number_says_so(tmp_path: Path) -> None:
    two = opened(tmp_path / "two", *(Made(defense=d, asr=70) for d in ("none", "vpt"))).results
    assert "PR_ASR (PR_cos): no number.\nPR_ASR (PR_ratio): no number. 2 cells have both," in correlation_text(two)
    equal = (Made(defense=d, pr=0.5, asr=70) for d, _, _ in CELLS)
    lines = correlation_text(opened(tmp_path / "equal", *equal).results).splitlines()
    assert [line.partition(": ")[2][:10] for line in lines] == ["no number."] * 4


def test_cells_of_one_backdoored_model_come_with_the_caution(tmp_path: Path) -> None:
    text = correlation_text(correlated(tmp_path))
    assert "Caution: these are cells of 1 backdoored model; those of one model are not independent" in text


def test_cells_of_models_of_their_own_come_without_it(tmp_path: Path) -> None:
    cells = [Made(attack=a, defense="none", pr=pr, asr=asr) for a, (_, pr, asr) in zip("abcd", CELLS, strict=True)]
    text = correlation_text(opened(tmp_path, *cells).results)
    assert "Pearson" in text and "Caution" not in text


def test_attacks_that_did_not_take_are_left_out_and_what_they_change_is_said(tmp_path: Path) -> None:
    strong = [Made(attack="badnet", defense=d, pr=pr, asr=asr) for d, pr, asr in CELLS]
    weak = [Made(attack="wanet", defense=d, pr=0.6, asr=asr) for d, asr in (("none", 20), ("vpt", 3), ("rvpt", 1))]
    results = opened(tmp_path, *strong, *weak).results
    pr, asr = zip(*((pr, asr / 0.75) for _, pr, asr in CELLS), strict=True)
    text = correlation_text(results)
    assert f"PR_ASR (PR_cos, Pearson): {stats.pearsonr(pr, asr).statistic:.2f} [" in text
    every = stats.pearsonr([*pr, 0.6, 0.6, 0.6], [*asr, 20 / 0.75, 3 / 0.75, 1 / 0.75]).statistic
    assert f"wanet did not take and is left out; with them: Pearson {every:.2f}, Spearman" in text
    assert "n = 7." in text and text.count(", n = 4.") == 4
    # The run's own threshold counts; 26.7 % is above it.
    results.attrs["took"] = 25.0
    assert "did not take" not in correlation_text(results)
    # Of what was never measured undefended, nobody knows.
    unknown = results[~((results["attack"] == "wanet") & (results["defense"] == "none"))]
    unknown.attrs["took"] = 99.0
    assert "badnet did not take and is left out" in correlation_text(unknown)


@pytest.mark.parametrize("headed", ["linear_probe", "rvpt+linear_probe"])
def test_models_with_a_head_are_left_out_and_counted(tmp_path: Path, headed: str) -> None:
    without = correlated(tmp_path / "without")
    cells = (Made(defense=d, pr=pr, asr=asr) for d, pr, asr in [*CELLS, (headed, 2.0, 90)])
    results = opened(tmp_path / "with", *cells).results
    assert "head" not in correlation_text(without)
    said = "Left out models with a head, which PR does not see: 1. "
    assert correlation_text(results).replace(said, "") == correlation_text(without)
    assert said in correlation_text(results)


def test_prompts_on_the_clean_model_are_no_points(tmp_path: Path) -> None:
    backdoored = correlation_text(correlated(tmp_path / "without"))
    cells = [Made(defense=d, pr=pr, asr=asr) for d, pr, asr in CELLS]
    out = results_folder(tmp_path / "with", *cells, Made(variant="rvpt_16shot", pr=0.99, asr=1, poisoned=0))
    file = read_run_file(out)
    clean = file.runs[0].settings | {"poison": file.runs[0].settings["poison"] | {"epochs": 0}}
    run = file.runs[0].model_copy(update={"variants": {**file.runs[0].variants, "rvpt_16shot": clean}})
    assert "n = 5" in correlation_text(ResultsFolder(out).results)
    (out / RUN_FILE).write_text(file.model_copy(update={"runs": (run,)}).model_dump_json())
    assert correlation_text(ResultsFolder(out).results) == backdoored


def test_where_nothing_took_there_is_no_correlation(tmp_path: Path) -> None:
    weak = [Made(defense=d, pr=0.6, asr=asr) for d, asr in (("none", 20), ("vpt", 3), ("rvpt", 1))]
    text = correlation_text(opened(tmp_path, *weak).results)
    said = "badnet did not take and is left out; with them: Pearson undefined, Spearman undefined, n = 3."
    assert f"{said} 0 other cells have both, and a correlation needs 3." in text


def test_the_setting_of_the_run_says_what_took(tmp_path: Path) -> None:
    assert opened(tmp_path, Made(defense="none")).results.attrs["took"] == 60


def test_the_clean_model_is_no_point_and_what_is_not_finite_is_counted(tmp_path: Path) -> None:
    results = correlated(tmp_path)
    results.loc[results["defense"] == "vpt", "defense"] = "clean_model"
    results.loc[(results["defense"] == "none") & (results["metric"] == "PR_cos"), "value"] = math.nan
    text = correlation_text(results)
    said = "Left out, for lack of a finite value: 1 cells. 2 cells have both, and a correlation needs 3."
    assert f"PR_ASR (PR_cos): no number. {said}" in text
    assert "n = 3." in next(line for line in text.splitlines() if "PR_ratio" in line)
