"""A paper is data: one made up by a test is planned, filled and printed beside bench's own."""

import shutil
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest
from command import bench
from fabricate import Made, opened

from bench.core.errors import BenchError
from bench.core.registry import load_plugins
from bench.experiment.settings import BASE, presets, resolve
from bench.experiment.suites import suite_settings, variants_of
from bench.matrix.plan import Fingerprints, make_plan
from bench.papers import Paper, find_suite, papers, register, suites
from bench.results.records import Cell, Run
from reports.command import command_of
from reports.paper.grids import paper_grids
from reports.paper.published import published
from reports.paper.write import lacking_tables, write_paper_tables

load_plugins()
PAPER_YAML = """
title: Cleaning Is Enough
versions:
  v1: {}
  second: {cleanclip: {pairs: 16}}
presets: [smoke]
chains: [cleanclip+vpt]
places:
  world: {label: The world, model: mini, dataset: world, target: banana, preset: smoke}
  elsewhere: {label: Elsewhere, model: mini, dataset: folder, target: cat}
figures:
  figure8: {title: Losses, kind: loss_term, defenses: [vpt, cleanclip]}
labels:
  attacks: {badnet: Patch}
  defenses: {cleanclip: Ours}
"""
SUITES_YAML = """
main:
  shows: table 1
  defenses: [none, cleanclip]
  attacks: [badnet]
pairs:
  shows: "table A: pairs to clean with"
  defenses: [none, cleanclip]
  attacks: [badnet]
  variants:
    l1: {cleanclip: {epochs: 2}}
    impossible: nobody has that many
  sweeps:
    - {key: pairs, setting: cleanclip.pairs, values: [16, 32], figure: figure9, label: pairs}
"""
TABLES_YAML = """
table-1:
  title: Defenses
  suite: main
  published: first
  places: [world, elsewhere]
  methods: [none, cleanclip]
  attacks: [badnet]
  rows: [place, method]
table-A:
  title: Pairs
  suite: pairs
  places: [world]
  methods:
    - {label: 16 pairs, defense: cleanclip, variant: pairs=16}
    - {label: 32 pairs, defense: cleanclip, variant: pairs=32}
    - {label: all pairs, defense: cleanclip, variant: impossible}
  attacks: [badnet]
  notes: [Fewer is better.]
"""
PUBLISHED_YAML = """
columns: {defense: ours, version: edition}
values: {defense: {cleaning: cleanclip}, metric: {success: ASR}}
empty: {model: {by: dataset, values: {world: mini}}}
units: {share: 100}
"""
PUBLISHED_CSV = """edition,table,dataset,target,ours,attack,metric,value,unit
v1,first,world,banana,none,badnet,success,0.99,share
v1,first,world,banana,cleaning,badnet,success,12.5,percent
"""
CONTENTS = {
    "paper.yaml": PAPER_YAML,
    "suites.yaml": SUITES_YAML,
    "tables.yaml": TABLES_YAML,
    "published.yaml": PUBLISHED_YAML,
    "published.csv": PUBLISHED_CSV,
}
ATTACKED = Made(defense="none", asr=60)


@pytest.fixture(autouse=True)
def known() -> Iterator[None]:
    """What a test registers is gone after it."""
    before = dict(papers)
    yield
    papers.clear()
    papers.update(before)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a paper that is not registered yet."""
    made = tmp_path / "cleaning"
    made.mkdir()
    for name, text in CONTENTS.items():
        (made / name).write_text(text)
    return made


@pytest.fixture
def second(folder: Path) -> Paper:
    return register(folder)


def written(folder: Path, name: str) -> str:
    return (folder / "tables" / name).read_text()


# --- by name


def test_names_of_one_paper_are_asked_for_plainly_and_others_with_their_paper(second: Paper) -> None:
    assert {"rvpt/main", "cleaning/main", "pairs", "alpha"} <= suites().keys()
    assert find_suite("pairs") is find_suite("cleaning/pairs") is second.suites["pairs"]
    with pytest.raises(BenchError, match=r"several papers have a suite 'main': write (rvpt|cleaning)/main or"):
        find_suite("main")
    with pytest.raises(BenchError, match=r"unknown suite 'pars'. Did you mean 'pairs'"):
        find_suite("pars")


@pytest.mark.usefixtures("second")
def test_a_version_of_any_paper_sets_what_its_file_says() -> None:
    assert resolve("smoke", paper="second").method("cleanclip")["pairs"] == 16
    assert resolve("paper-imagenet", paper="v3").method("cleanclip")["pairs"] == 250_000
    with pytest.raises(BenchError, match=r"several papers have a version of the paper 'v1': write"):
        resolve("smoke", paper="v1")
    assert resolve("smoke", paper="cleaning/v1") == resolve("smoke")
    with pytest.raises(BenchError, match="--paper second goes with --preset smoke, not with mini"):
        resolve("mini", paper="second")


@pytest.mark.usefixtures("second")
def test_all_defenses_are_the_chains_of_all_papers() -> None:
    defenses = resolve("smoke", None, {"defenses": ("all",)}).defenses
    assert {"cleanclip+vpt", "rvpt+linear_probe"} <= set(defenses)


def test_a_plugin_file_brings_its_paper(
    folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = folder.parent / "with_paper.py"
    registers = 'bench.papers.register(Path(__file__).parent / "cleaning")'
    plugin.write_text(f"from pathlib import Path\n\nimport bench.papers\n\n{registers}\n")
    code, out, _ = bench(capsys, monkeypatch, "list", "suites", "--plugin", str(plugin))
    assert code == 0 and "cleaning/main" in out and "table A: pairs to clean with" in out and "alpha" in out


def test_two_papers_cannot_have_one_name(second: Paper, tmp_path: Path) -> None:
    assert register(second.folder) == second, "the same folder again is no second paper"
    other = shutil.copytree(second.folder, tmp_path / "other" / "cleaning")
    with pytest.raises(BenchError, match="two papers are called 'cleaning'"):
        register(other)


# --- its cells


@pytest.mark.usefixtures("second")
def test_its_suite_is_planned() -> None:
    base = resolve("smoke", None, {"seeds": (0, 1)}, suite=suite_settings("pairs"))
    variants, left_out = variants_of(base, "pairs")
    assert left_out == {"impossible": "nobody has that many"}
    assert [run.method("cleanclip")["pairs"] for run in variants.values()] == [32, 32, 16, 32]
    prints = dict.fromkeys(variants, Fingerprints("weights", "pairs", "words", "tuned", "tested"))
    plan = make_plan(variants, prints)
    cells = {(cell.variant, cell.defense) for cell in plan.cells}
    assert {(BASE, "none"), (BASE, "cleanclip"), ("pairs=16", "cleanclip"), ("l1", "cleanclip")} <= cells
    assert sum(node.kind == "backdoor" for node in plan.nodes.values()) == 2


@pytest.mark.usefixtures("second")
def test_the_command_of_a_variant_is_of_the_paper_whose_variant_it_is() -> None:
    variants, _ = variants_of(resolve("smoke"), "pairs")
    variants = {name: variants[name] for name in (BASE, "l1")}
    place = {"task": "zero_shot", **variants[BASE].place, "attack": "badnet", "defense": "cleanclip", "seed": 0}
    cells = [Cell(**place, variant=name, settings=name) for name in variants]
    settings = {name: run.model_dump(mode="json") for name, run in variants.items()}
    command = command_of(Run(settings=settings[BASE], variants=settings, cells=tuple(cells)), cells)
    assert command.startswith("bench run --suite pairs --preset smoke"), "RVPT's paper has a variant l1, too"


# --- its tables


@pytest.mark.usefixtures("second")
def test_its_tables_are_filled_and_printed(tmp_path: Path) -> None:
    cells = [
        ATTACKED,
        Made(defense="cleanclip", asr=15),
        Made(defense="cleanclip", asr=30, variant="pairs=16", alpha=1),
    ]
    folder = opened(tmp_path, *cells)
    lines, _ = write_paper_tables(folder, "cleaning/v1")
    assert "- [Table 1 of cleaning: Defenses](tables/cleaning-table-1.md)" in lines
    assert "- [Table A of cleaning: Pairs](tables/table-A.md)" in lines
    assert "- [Table 1 of rvpt: Defenses against seven attacks](tables/rvpt-table-1.md)" in lines

    text = written(tmp_path, "cleaning-table-1.md")
    assert "| The world | Ours" in text and "**20.0**" in text and "Patch" in text
    assert "(Cleaning Is Enough, v1)" in text and "says nothing about replication" not in text
    assert "12.50" in text and "99.00" in text, "0.99 is a share"
    assert "--suite cleaning/main" in text and "with model, data set and target of Elsewhere" in text
    assert "published" not in written(tmp_path, "rvpt-table-1.csv"), "the numbers are of one paper"

    text = written(tmp_path, "table-A.md")
    assert "| 16 pairs" in text and "40.0" in text
    assert "Fewer is better." in text and "– all pairs: nobody has that many." in text
    assert "– not measured yet: `bench run --suite pairs" in text and "preset" in text
    assert r"\label{tab:cleaning-table-1}" in written(tmp_path, "cleaning-table-1.tex")


@pytest.mark.usefixtures("second")
def test_the_page_has_its_tables(tmp_path: Path) -> None:
    folder = opened(tmp_path, ATTACKED, Made(defense="cleanclip", asr=15))
    write_paper_tables(folder)
    grid = next(grid for grid in paper_grids(folder) if grid.title == "Table 1 of cleaning: Defenses")
    assert grid.columns == (("Patch", "badnet"),)
    assert [(row.names, row.numbers[0].text) for row in grid.rows] == [
        (("none",), "80.0 (90.0)"),
        (("Ours",), "20.0 (90.0)"),
    ]
    assert dict(lacking_tables(folder))["Table A of cleaning: Pairs"].startswith("`bench run --suite pairs")


def test_a_table_that_gets_a_namesake_changes_its_files(folder: Path, tmp_path: Path) -> None:
    out = opened(tmp_path, ATTACKED)
    write_paper_tables(out)
    assert (tmp_path / "tables/table-1.md").is_file()
    register(folder)
    write_paper_tables(out)
    assert not (tmp_path / "tables/table-1.md").exists() and (tmp_path / "tables/rvpt-table-1.md").is_file()


def test_numbers_that_are_not_there_are_told(second: Paper, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"published.csv has no numbers of version second"):
        write_paper_tables(opened(tmp_path, ATTACKED), "second")
    bare = second.model_copy(update={"numbers": None})
    with pytest.raises(BenchError, match=r"has no published.csv"):
        published(bare, "v1")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("edition,", "year,", "it has the column year; it has no column version"),
        ("0.99", "a lot", "cannot be read"),
    ],
)
def test_a_damaged_file_of_numbers_is_told(old: str, new: str, message: str, folder: Path) -> None:
    (folder / "published.csv").write_text(PUBLISHED_CSV.replace(old, new))
    with pytest.raises(BenchError, match=message):
        published(register(folder), "v1")


# --- mistakes


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("paper.yaml", "title:", "titel:", r"paper.yaml: unknown key titel."),
        ("paper.yaml", "title: Cleaning Is Enough", "", r"paper.yaml: title is missing."),
        ("paper.yaml", "label: The world, ", "", r"paper.yaml: places.world.label is missing"),
        ("paper.yaml", "kind: loss_term", "kind: losses", r"figures.figure8.kind = 'losses'"),
        ("paper.yaml", "[vpt, cleanclip]", "[vpt]", r"figures.figure8.*of kind loss_term names 2 defenses, not 1"),
        ("suites.yaml", "shows: table 1", "show: table 1", r"suites.yaml: unknown key main.show."),
        ("suites.yaml", "values: [16, 32]", "values: many", r"suites.yaml: pairs.sweeps.0.values = 'many'"),
        ("suites.yaml", "pairs:\n  shows", "a/b:\n  shows", r"suites.yaml: a/b.*pattern"),
        ("tables.yaml", "suite: main", "suite: mian", r"table-1.suite: suites.yaml has no suite 'mian'. Did you mean"),
        ("tables.yaml", "published: first", "version: v2", r"table-1.version: paper.yaml has no version 'v2'."),
        ("tables.yaml", "places: [world]", "places: [wrold]", r"table-A.places: paper.yaml has no place 'wrold'"),
        ("tables.yaml", "variant: pairs=16", "variant: pairs=17", r"suite pairs has no variant 'pairs=17'. Did you"),
        ("tables.yaml", "rows: [place, method]", "rows: [palce]", r"tables.yaml: table-1.rows.0 = 'palce'"),
        ("published.yaml", "units:", "unit:", r"published.yaml: unknown key unit."),
        ("paper.yaml", "title:", "title: [", r"paper.yaml is no YAML"),
    ],
)
def test_a_mistake_names_its_file_and_key(file: str, old: str, new: str, message: str, folder: Path) -> None:
    (folder / file).write_text(CONTENTS[file].replace(old, new, 1))
    with pytest.raises(BenchError, match=message) as error:
        register(folder)
    assert "docs/papers.md" in str(error.value)
    assert folder.name not in papers


def test_a_folder_without_a_paper_is_told(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"holds no paper: there is no paper.yaml"):
        register(tmp_path)


# --- bench's own, and that of the documentation


def test_the_paper_of_the_documentation_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "papers.md").read_text()
    example = page.split("```yaml\n")[1].split("```")[0]
    for part in example.split("# ")[1:]:
        name, text = part.split("\n", 1)
        (tmp_path / name).write_text(text)
    paper = register(tmp_path)
    table = paper.tables["table-1"]
    assert [method.label for method in paper.methods_of(table)] == ["none", "cleanclip", "Longer"]
    base = resolve("mini", suite=suite_settings(table.suite))
    assert set(variants_of(base, table.suite)[0]) == {BASE, "long"}


def test_presets_of_papers_are_there() -> None:
    named = {p for paper in papers.values() for p in (*paper.presets, *(x.preset for x in paper.places.values())) if p}
    assert named <= presets().keys()


def test_a_wheel_has_the_files_of_papers() -> None:
    folder = Path(str(files("bench"))) / "papers"
    patterns = ("papers/*/*.yaml", "papers/*/*.csv")
    packed = {file for pattern in patterns for file in folder.parent.glob(pattern)}
    assert {file for file in folder.glob("*/*") if file.parent.name != "__pycache__"} == packed
