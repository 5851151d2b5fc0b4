"""The paper's tables, from results made by hand: their cells, their text, and what is said of what lacks."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from fabricate import Made, opened

from bench.core.registry import load_plugins
from bench.experiment.settings import RunSettings, resolve
from bench.papers import papers
from bench.results.folder import ResultsFolder
from bench.results.tidy import COLUMNS, NUMBERS
from reports.paper.costs import collect_costs
from reports.paper.latex import latex
from reports.paper.published import published
from reports.paper.render import comparison, layout, markdown, tidy, value_text
from reports.paper.tables import Table, fill
from reports.paper.write import notes, remedy, write_paper_tables

load_plugins()
PDFLATEX = shutil.which("pdflatex")
PAPER = papers["rvpt"]
WORLD, IMAGENET, PETS = (resolve(preset) for preset in ("mini", "paper-imagenet", "paper-oxfordpets"))
THEIRS = resolve("paper-imagenet", None, {"model": {"backdoored": "x/theirs.pt"}})


@dataclass
class Folder:
    """What tables are written from, without artefacts."""

    out: Path
    results: pd.DataFrame
    settings: RunSettings
    cells: tuple = ()


def rows(*cells: tuple, model: str = "mini", dataset: str = "world", target: str = "banana") -> pd.DataFrame:
    """Results of (attack, defense, variant, ASR's count, CA's count), of 200 images each, one seed."""
    table = []
    for attack, defense, variant, asr, ca in cells:
        place = {"task": "zero_shot", "model": model, "dataset": dataset, "target": target, "seed": 0}
        place |= {"attack": attack, "defense": defense, "variant": variant, "perturbation": ""}
        for metric, count in (("ASR", asr), ("CA", ca)):
            numbers = {"value": count / 2, "count": float(count), "n": 200, "low": 0.0, "high": 100.0}
            table.append({**place, "metric": metric, **numbers})
    return pd.DataFrame(table, columns=COLUMNS)


def table(name: str, results: pd.DataFrame, run: RunSettings = WORLD, source: str = "") -> Table:
    return fill(PAPER, name, results, run, published(PAPER, source) if source else None)


def printed(name: str, results: pd.DataFrame, run: RunSettings = WORLD) -> pd.DataFrame:
    return layout(table(name, results, run), lambda text: f"*{text}*")


MAIN = rows(
    ("badnet", "none", "", 190, 196),
    ("badnet", "rvpt", "", 4, 190),
    ("blended", "none", "", 80, 194),
    ("blended", "rvpt", "", 6, 188),
)


@pytest.mark.parametrize("name", PAPER.tables)
@pytest.mark.parametrize("source", ["v1", "v3"])
def test_every_number_of_a_published_table_has_its_cell(name: str, source: str) -> None:
    numbers = published(PAPER, source)
    numbers = numbers[numbers["table"] == PAPER.tables[name].published]
    if name in ("table-1", "table-2"):
        numbers = numbers[(numbers["dataset"] == "imagenet") == (name == "table-1")]
    if name == "table-3":
        # v1 tells BadCLIP's two numbers in its text alone.
        numbers = numbers[numbers["attack"] != "badclip"]
    cells = table(name, MAIN, IMAGENET, source).cells
    assert sorted(v for cell in cells for v in cell.published.values()) == sorted(numbers["value"])


def test_a_cell_is_asr_with_ca_in_parentheses_and_the_best_is_bold() -> None:
    shown = printed("table-1", MAIN)
    assert list(shown.columns) == list(PAPER.labels.attacks.values())
    assert shown.loc["No defense", "BadNet"] == "95.0 (*98.0*)"
    assert shown.loc["RVPT", "BadNet"] == "*2.0* (95.0)"
    assert shown.loc["CleanCLIP", "BadNet"] == "–"


def test_one_number_alone_is_not_the_best() -> None:
    assert printed("table-1", MAIN[:2]).loc["No defense", "BadNet"] == "95.0 (98.0)"


def test_an_attack_that_did_not_take_is_marked_in_its_cells() -> None:
    shown = printed("table-1", MAIN)
    assert shown.loc["RVPT", "Blended"].endswith(" †") and "†" not in shown.loc["RVPT", "BadNet"]
    assert "*" not in "".join(shown["Blended"]), "nothing is best against it"


def test_the_layout_is_that_of_the_paper() -> None:
    results = rows(
        ("badnet", "rvpt", "with_target_class", 4, 190),
        ("badnet", "rvpt", "without_target_class", 6, 188),
        ("badnet", "rvpt", "", 100, 100),
    )
    shown = printed("table-3", results)
    assert list(shown.index) == ["world", "world-flowers", "world-objects"]
    assert shown.loc["world", ("BadNet", "woTC")] == "3.0 (94.0)"
    assert shown.loc["world", ("BadNet", "with")] == "*2.0* (*95.0*)"
    five = printed("table-5", MAIN, IMAGENET)
    assert list(five.loc["ImageNet-A"].index) == ["No defense", "CleanCLIP", "RVPT"]


def test_rows_of_the_papers_data_sets_are_told_apart() -> None:
    pets = rows(("badnet", "rvpt", "", 8, 180), model="ViT-B-32 openai", dataset="oxfordpets", target="samoyed")
    caltech = rows(("badnet", "rvpt", "", 2, 198), model="ViT-B-32 openai", dataset="caltech101", target="accordion")
    shown = printed("table-2", pd.concat([pets, caltech]), PETS)
    assert shown.loc["RVPT", ("OxfordPets", "BadNet")] == "4.0 (90.0)"
    assert shown.loc["RVPT", ("Caltech101", "BadNet")] == "1.0 (99.0)"


def test_models_of_one_architecture_are_not_pooled() -> None:
    there = {"dataset": "imagenet", "target": "banana"}
    results = pd.concat(
        rows(("badnet", "rvpt", "", count, 190), model=model, **there)
        for model, count in (
            ("ViT-B-32 laion2b", 196),
            ("ViT-B-32 openai", 4),
            ("ViT-B-32 openai, backdoored x/theirs.pt", 100),
        )
    )
    assert printed("table-1", results, IMAGENET).loc["RVPT", "BadNet"] == "2.0 (95.0)"
    both = printed("table-S7", with_costs(results), IMAGENET)
    assert {label for _, label in both.index} >= {"ImageNet, ViT-B-32 openai", "ImageNet, ViT-B-32 laion2b"}
    assert printed("table-1", results, THEIRS).loc["RVPT", "BadNet"] == "50.0 (95.0)"
    assert not table("table-1", results, THEIRS).replicates


def with_costs(results: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([results, results[results["metric"] == "CA"].assign(metric="seconds", attack="badnet")])


# Cells on the embedded world beyond the run's own place.
ELSEWHERE = pd.concat(
    [
        rows(("badnet", "rvpt", "", 6, 170), ("badnet", "cleanclip", "tuned_on_pairs", 40, 180),
             dataset="world-objects", target="gear"),
        rows(("badnet", "rvpt", "", 8, 160), ("badnet", "rvpt", "tuned_elsewhere", 10, 150),
             dataset="world-flowers", target="lily"),
        rows(("badnet", "rvpt", "", 12, 120), dataset="world-r"),
        rows(("badnet", "rvpt", "", 14, 110), model="mini-p8"),
    ]
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "row", "column", "text"),
    [
        ("table-1", "RVPT", "BadNet", "2.0 (95.0)"),
        ("table-2", "RVPT", ("world-objects", "BadNet"), "3.0 (85.0)"),
        ("table-2", "RVPT", ("world-flowers", "BadNet"), "4.0 (80.0)"),
        ("table-4", "CleanCLIP", ("world-objects", "BadNet"), "20.0 (90.0)"),
        ("table-4", "RVPT*", ("world-flowers", "BadNet"), "5.0 (75.0)"),
        ("table-5", ("world-r", "RVPT"), "BadNet", "6.0 (60.0)"),
        ("table-S6", ("mini-p8", "RVPT"), "BadNet", "7.0 (55.0)"),
    ],
)
def test_a_table_has_the_embedded_counterparts_of_the_papers_places(
    name: str, row: str | tuple, column: str | tuple, text: str
) -> None:
    shown = printed(name, pd.concat([MAIN, ELSEWHERE]))
    assert shown.loc[row, column].replace("*", "") == text
    assert shown.size == len(table(name, MAIN).cells), "a cell that is not measured has its place, too"


def test_the_papers_number_stands_beside_that_of_the_counterpart() -> None:
    filled = table("table-2", pd.concat([MAIN, ELSEWHERE]), WORLD, "v1")
    there = published(PAPER, "v1")
    there = there[(there["table"] == "main") & (there["dataset"] == "oxfordpets") & (there["defense"] == "rvpt")]
    [theirs] = there[(there["attack"] == "badnet") & (there["metric"] == "ASR")]["value"]
    frame = tidy(filled)
    mine = frame[(frame["dataset"] == "world-flowers") & (frame["defense"] == "rvpt") & (frame["metric"] == "ASR")]
    line = mine[mine["attack"] == "badnet"].iloc[0]
    assert (line["value"], line["published"], line["stands_for"]) == (4.0, theirs, "OxfordPets")
    pairs = "world-objects for Caltech101, world-flowers for OxfordPets"
    said = f"Embedded counterparts stand for the paper's places: {pairs}."
    assert f"{said} This is no replication." in list(notes(filled, Path("results")))
    assert not filled.replicates


def test_a_table_of_one_version_alone_has_its_numbers_whichever_is_asked_for(tmp_path: Path) -> None:
    write_paper_tables(Folder(tmp_path, MAIN.assign(metric="PA"), WORLD), "v1")
    text = (tmp_path / "tables" / "table-PA.md").read_text()
    assert "(paper v3, arXiv 2412.20392)" in text and "PA published" in text


def test_a_place_without_a_counterpart_is_named() -> None:
    places = {**PAPER.places, "imagenet-a": PAPER.places["imagenet-a"].model_copy(update={"embedded": None})}
    filled = fill(PAPER.model_copy(update={"places": places}), "table-5", MAIN, WORLD)
    assert "– ImageNet-A: it has no counterpart on the embedded world." in list(notes(filled, Path("results")))
    assert [cell.place.dataset for cell in filled.cells if "-a" in cell.place.dataset] == []


def test_a_run_elsewhere_stands_in_at_its_own_place() -> None:
    key = MAIN.assign(target="key")
    filled = table("table-1", key, resolve("mini", None, {"target": "key"}), "v1")
    assert {cell.place.target for cell in filled.cells} == {"key"} and not filled.stands_for
    assert not table("table-2", key, resolve("mini", None, {"target": "key"})).cells


def test_a_shift_of_domain_has_the_data_set_that_was_tested_on() -> None:
    results = rows(("badnet", "rvpt", "", 8, 120), model="ViT-B-32 openai", dataset="imagenet-r")
    assert printed("table-5", results, IMAGENET).loc[("ImageNet-R", "RVPT"), "BadNet"] == "4.0 (60.0)"


def test_resistivity_is_the_mean_over_the_models_that_were_defended() -> None:
    results = rows(("badnet", "rvpt", "rvpt_16shot", 0, 0), ("blended", "rvpt", "rvpt_16shot", 0, 0))
    results = results[results["metric"] == "CA"].assign(metric="PR_ratio", perturbation="flip", count=float("nan"))
    shown = printed("table-S1", results.assign(value=[0.8, 0.9], low=[0.7, 0.8], high=[0.9, 1.0]))
    assert shown.loc["Horizontal flip", "RVPT, 16 shots"] == "0.850"
    assert shown.loc["Color jitter", "RVPT, 16 shots"] == "–"
    assert shown.loc["Horizontal flip", "RVPT, 16 shots, on backdoored models"] == "–"


def test_published_measured_and_difference_stand_side_by_side() -> None:
    frame = comparison(table("table-1", MAIN, WORLD, "v1")).set_index(["method", "attack"])
    line = frame.loc[("RVPT", "BadNet")]
    # Wilson's interval of 4 of 200 is [0.78, 5.03] %, and the paper prints 1.84 %.
    assert list(line[["ASR published", "ASR measured", "ASR difference"]]) == ["1.84", "2.0", "+0.2 [-1.1, +3.2]"]
    assert line["CA published"] == "58.09"
    lacking = frame.loc[("CleanCLIP", "BadNet")]
    assert list(lacking[["ASR published", "ASR measured", "ASR difference"]]) == ["56.55", "–", "–"]


def test_the_csv_has_intervals_counts_and_the_difference() -> None:
    frame = tidy(table("table-1", MAIN, WORLD, "v1"))
    line = frame[(frame["method"] == "RVPT") & (frame["attack"] == "badnet") & (frame["metric"] == "ASR")].iloc[0]
    assert (line["value"], line["n"], line["published"]) == (2.0, 200, 1.84)
    # Wilson by hand: (p + z²/2n ± z sqrt(p q / n + z²/4n²)) / (1 + z²/n)
    p, n, z = 0.02, 200, 1.959963984540054
    middle, half = p + z**2 / (2 * n), z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    ends = [100 * end / (1 + z**2 / n) for end in (middle - half, middle + half)]
    assert list(line[["low", "high"]]) == pytest.approx(ends)
    assert line["difference_low"] == pytest.approx(line["low"] - 1.84)
    assert "published" not in tidy(table("table-1", MAIN))


@pytest.mark.parametrize(("run", "said"), [(WORLD, True), (IMAGENET, False)])
def test_only_the_papers_model_and_data_speak_of_replication(run: RunSettings, said: bool, tmp_path: Path) -> None:
    main = MAIN.assign(model="ViT-B-32 openai", dataset="imagenet") if run is IMAGENET else MAIN
    write_paper_tables(Folder(tmp_path, main, run), "v1")
    text = (tmp_path / "tables" / "table-1.md").read_text()
    above = text[text.index("### Published") : text.index("| ASR published")]
    assert ("says nothing about replication" in above) is said
    assert "(paper v1, arXiv 2412.20392)" in above and "taken as exact" in above


def test_a_table_without_a_measured_cell_is_not_written_but_told(tmp_path: Path) -> None:
    stale = tmp_path / "tables" / "table-S3.csv"
    stale.parent.mkdir()
    stale.write_text("of an earlier report")
    written, lacking = write_paper_tables(Folder(tmp_path, MAIN, WORLD))
    assert written == ["- [Table 1: Defenses against seven attacks](tables/table-1.md)"]
    assert sorted(file.name for file in stale.parent.iterdir()) == ["table-1.csv", "table-1.md", "table-1.tex"]
    distance = next(line for line in lacking if "Table S3" in line)
    assert distance.startswith("- not measured:") and f"`bench run --suite distance --out {tmp_path}`" in distance
    domains = next(line for line in lacking if "Table 5" in line)
    assert domains.endswith(f": `bench run --suite cross-domain --out {tmp_path}` with this folder's preset")
    assert len(written) + len(lacking) == len(PAPER.tables)


def test_footnotes_tell_missing_cells_from_impossible_ones() -> None:
    lines = list(notes(table("table-1", MAIN), Path("results")))
    because = "it has no text side, so it cannot face the key in the text"
    assert f"– Linear Probe against TrojVQA: {because}." in lines
    assert any(line.startswith("– not measured yet: `bench run --suite main --out results`") for line in lines)
    assert "† The attack did not take: undefended ASR below 60 %." in lines
    vit = table("table-S1", MAIN.assign(metric="PR_ratio", perturbation="flip"))
    assert "– Supervised ViT: bench measures CLIPs, and a supervised ViT has no text side." in list(
        notes(vit, Path("r"))
    )


def test_cells_of_another_data_set_need_its_preset() -> None:
    commands = remedy(table("table-2", MAIN, IMAGENET), Path("results"))
    assert "`bench run --preset paper-caltech101 --suite main --out results`" in commands
    assert "paper-oxfordpets" in commands
    shifted = rows(("badnet", "rvpt", "", 8, 120), model="ViT-B-32 openai", dataset="imagenet-r")
    assert "with this folder's preset" in remedy(table("table-5", shifted, IMAGENET), Path("results"))
    embedded = remedy(table("table-4", MAIN), Path("results"))
    assert embedded == ", ".join(
        f"`bench run --preset {preset} --suite cross-dataset --out results`"
        for preset in ("mini-objects", "mini-flowers")
    )


def test_a_chain_with_a_linear_probe_cannot_face_a_key_in_the_text() -> None:
    reasons = {(c.method.defense, c.attack): c.reason for c in table("table-1", MAIN).cells}
    assert [pair for pair, reason in reasons.items() if reason] == [("linear_probe", "trojvqa")]


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("ASR", 12.34, "12.3"),
        ("PR_cos", 0.98765, "0.988"),
        ("seconds", 3700.2, "1:01:40"),
        ("tunable", 1e6, "1,000,000"),
    ],
)
def test_a_value_is_printed_as_its_metric_asks(metric: str, value: float, text: str) -> None:
    assert value_text(metric, value) == text


def test_latex_is_booktabs_and_escapes_names() -> None:
    results = rows(("badnet", "rvpt", "###### <CLS>", 4, 190), ("badnet", "rvpt", "<CLS>", 8, 190))
    text = latex(
        table("table-S5", results, WORLD, "v1"), ["50 % of a_b", "not measured: `bench run --suite prompt`"], "of 100 %"
    )
    assert r"\toprule" in text and r"\bottomrule" in text
    assert r"“\#\#\#\#\#\# \textless{}CLS\textgreater{}”" in text
    assert r"\textbf{2.0} (\textbf{95.0})" in text
    assert "of 100 \\%" in text and r"50 \% of a\_b" in text
    assert "\n% not measured: `bench run" in text, "a command is for those who make the table"
    assert text.count(r"\begin{table}") == 2, "the second is published and measured"
    unescaped = [line for line in text.splitlines() if not line.startswith("%") and "#" in line.replace(r"\#", "")]
    assert not unescaped


@pytest.mark.skipif(PDFLATEX is None, reason="no pdflatex: apt-get install texlive-latex-recommended")
def test_latex_compiles_and_fits_the_line(tmp_path: Path) -> None:
    write_paper_tables(Folder(tmp_path, MAIN, WORLD), "v1")
    inputs = "".join(rf"\input{{{file}}}" for file in sorted((tmp_path / "tables").glob("*.tex")))
    packages = r"\usepackage{booktabs,graphicx}"
    (tmp_path / "all.tex").write_text(rf"\documentclass{{article}}{packages}\begin{{document}}{inputs}\end{{document}}")
    command = [str(PDFLATEX), "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout
    assert "Overfull" not in ended.stdout and "too large" not in ended.stdout, ended.stdout


def test_markdown_names_the_columns_of_two_levels() -> None:
    text = markdown(table("table-3", rows(("wanet", "rvpt", "with_target_class", 4, 190))), [], "")
    assert "| WaNet: with" in text and "200 images, 1 seed(s)" in text


def test_costs_come_from_the_cards_of_defenses(tmp_path: Path) -> None:
    tuned = {"seconds": 90.0, "peak_memory_mb": 400, "tunable": 15_345, "token_embedding": 3_000, "samples": 320}
    folder: ResultsFolder = opened(
        tmp_path,
        Made(defense="none"),
        Made(defense="rvpt", card=tuned),
        Made(defense="cleanclip", card={"seconds": 3700.0, "peak_memory_mb": None}),
        Made(defense="cleanclip+rvpt"),
    )
    costs = collect_costs(folder)
    assert set(costs["defense"]) == {"rvpt", "cleanclip"}, "a chain's last card is not its cost"
    assert set(NUMBERS) <= set(costs)
    shown = printed("table-S7", costs)
    assert list(shown.loc[("RVPT", "world")])[:3] == ["*0:01:30*", "400 MB", "12,345"]
    assert list(shown.loc[("CleanCLIP", "world")])[:2] == ["1:01:40", "–"]
