"""The page: its tables, its escaping, and how it behaves in a browser."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from fabricate import Made, opened, results_folder

from bench.builtin_tasks.zero_shot import ZeroShot
from bench.core.registry import load_plugins
from bench.papers import papers
from bench.results.folder import ResultsFolder
from reports.figures import Drawn
from reports.grid import Grid, main_grids
from reports.page import write_page
from reports.paper.grids import paper_grids
from reports.paper.tables import stem

load_plugins()
PAPER = papers["rvpt"]

EVIL = "<script>alert(1)</script>"
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


def results(*cells: tuple[str, str, int, int, int]) -> pd.DataFrame:
    """Rows for (attack, defense, seed, ASR's count, CA's count), of 100 images each."""
    rows = []
    for attack, defense, seed, asr, ca in cells:
        place = {"task": "zero_shot", "model": "mini", "attack": attack, "target": EVIL, "defense": defense}
        place |= {"dataset": "world"}
        for metric, count in (("ASR", asr), ("CA", ca)):
            share = {"metric": metric, "perturbation": "", "value": float(count), "count": float(count), "n": 100}
            made = {"bench": "0.1.0", "torch": EVIL, "hardware": "abacus"}
            rows.append({**place, "seed": seed, "variant": "", **share, "low": 0.0, "high": 100.0, **made})
    return pd.DataFrame(rows)


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A page of two attacks, one of an evil name, and two defenses; with a figure, a trigger and a paper's table."""
    card = {"torch": EVIL}
    shares = [("badnet", "none", 29, 40), ("badnet", "rvpt", 1, 38), (EVIL, "none", 3, 40)]
    cells = [Made(attack=a, defense=d, asr=asr, ca=ca, n=40, perturbations=(), card=card) for a, d, asr, ca in shares]
    file = results_folder(tmp_path, *cells) / "run.json"
    record = json.loads(file.read_text().replace('"banana"', json.dumps(EVIL)))
    [run] = record["runs"]
    skipped = {"defense": "linear_probe", "evaluation": None, "backdoor": None}
    skipped |= {"reason": "linear_probe: it has no text side, so it cannot face the key in the text"}
    run["cells"].append(next(cell for cell in run["cells"] if cell["attack"] == EVIL) | skipped)
    file.write_text(json.dumps(record))
    for folder in ("triggers", "figures", "tables"):
        (tmp_path / folder).mkdir()
    picture = '<svg xmlns="http://www.w3.org/2000/svg" width="30" height="20"><rect width="30" height="20"/></svg>'
    (tmp_path / "figures" / "figure1.svg").write_text(picture)
    picture = Path(__file__).parents[2] / "docs" / "results" / "figures" / "figureS2.png"
    shutil.copy(picture, tmp_path / "triggers" / "badnet.png")
    table = {"model": "mini", "dataset": "world", "target": "t", "method": EVIL, "defense": "rvpt", "attack": "badnet"}
    table |= {"took": True}
    shares = [{"metric": "ASR", "value": 5.0, "published": 1.84}, {"metric": "CA", "value": 95.0, "published": 58.09}]
    frame = pd.DataFrame([{**table, "perturbation": "", **share} for share in shares])
    frame.to_csv(tmp_path / "tables" / f"{stem(PAPER, 'table-1')}.csv", index=False)
    drawn = [Drawn("figure1", "The first", (tmp_path / "figures" / "figure1.svg",)), Drawn("figure6", EVIL, (), EVIL)]
    return write_page(ResultsFolder(tmp_path), drawn)


def grids(frame: pd.DataFrame, weak: tuple[str, ...] = ()) -> list[Grid]:
    return main_grids(frame, ZeroShot, weak)


def test_the_main_grid_has_values_intervals_and_the_spread_over_seeds() -> None:
    (grid,) = grids(results(("badnet", "none", 0, 90, 99), ("badnet", "none", 1, 70, 97), ("wanet", "rvpt", 0, 1, 2)))
    assert [row.defense for row in grid.rows] == ["none", "rvpt"]
    assert grid.rows[0].numbers[0].text == "80.0 (98.0)"
    assert grid.rows[0].numbers[0].small == "71.1–86.7 (93.0–99.4); seeds 70.0..90.0 (97.0..99.0)"
    assert grid.rows[0].numbers[1].text == "–", "a missing cell is a dash"


def test_a_view_has_the_attacks_and_defenses_that_it_has_numbers_of() -> None:
    cells = results(("badnet", "none", 0, 90, 99), ("trojvqa", "none", 0, 1, 2), ("trojvqa", "rvpt", 0, 1, 2))
    key = cells[(cells["attack"] == "trojvqa") & (cells["defense"] == "none") & (cells["metric"] == "ASR")]
    main, keys = grids(pd.concat([cells, key.assign(metric="ASR_image")]), weak=("trojvqa",))
    assert main.columns == (("badnet", "badnet"), ("trojvqa †", "trojvqa"))
    assert keys.columns == (("trojvqa †", "trojvqa"),) and [row.defense for row in keys.rows] == ["none"]


def test_a_paper_table_stands_beside_the_paper(page: Path) -> None:
    (grid,) = paper_grids(ResultsFolder(page.parent))
    assert grid.title.startswith("Table 1")
    assert grid.columns == (("BadNet", "badnet"),)
    assert (grid.rows[0].numbers[0].text, grid.rows[0].numbers[0].small) == ("5.0 (95.0)", "paper 1.8 (58.1)")


def with_table(out: Path, name: str, rows: list[dict]) -> ResultsFolder:
    """A results folder with a paper's table in it."""
    folder = opened(out, Made())
    (out / "tables").mkdir()
    pd.DataFrame(rows).to_csv(out / "tables" / f"{stem(PAPER, name)}.csv", index=False)
    return folder


def test_a_table_of_resistivity_has_perturbations_for_columns(tmp_path: Path) -> None:
    row = {"model": "m", "dataset": "d", "target": "t", "method": "CLIP ViT", "defense": "clean_model", "attack": ""}
    row |= {"took": True}
    numbers = [{"perturbation": p, "metric": "PR_ratio", "value": v} for p, v in (("flip", 0.95), ("jitter", 0.8324))]
    (grid,) = paper_grids(with_table(tmp_path, "table-S1", [row | number for number in numbers]))
    assert grid.columns == (("Horizontal flip", ""), ("Color jitter", ""))
    assert [number.text for number in grid.rows[0].numbers] == ["0.950", "0.832"]


def test_a_table_of_costs_has_the_units_of_its_file(tmp_path: Path) -> None:
    row = {"model": "m", "dataset": "d", "target": "t", "method": "RVPT", "defense": "rvpt", "attack": ""}
    row |= {"perturbation": "", "took": True}
    costs = {"seconds": 77.4, "peak_memory_mb": 400.4, "tunable": 12_345.0, "samples": 960.0}
    (grid,) = paper_grids(with_table(tmp_path, "table-S7", [row | {"metric": m, "value": v} for m, v in costs.items()]))
    assert [number.text for number in grid.rows[0].numbers] == ["0:01:17", "400 MB", "12,345", "960"]


def test_names_are_text_and_nothing_comes_from_elsewhere(page: Path) -> None:
    text = page.read_text()
    assert text.count("<script") == 1, "the page's own"
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert "10.0 % &lt; 60 %" in text, "what did not take is said"
    assert "has no text side" in text, "the reason why nothing fills a column"
    assert "<code>bench run --suite distance" in text, "what is not here is listed with its command"


def test_what_was_not_run_cannot_be_chosen_and_stays_in_the_papers_tables(page: Path) -> None:
    """`--published` fills the paper's tables with all of its rows and columns."""
    file = page.parent / "tables" / f"{stem(PAPER, 'table-1')}.csv"
    table = pd.read_csv(file)
    table.assign(attack="issba", defense="cleanclip", value=None).to_csv(file, mode="a", header=False, index=False)
    text = write_page(ResultsFolder(page.parent), []).read_text()
    boxes = re.findall(r'<input type="checkbox" name="(\w+)" value="(\w+)"', text)
    assert boxes == [("attack", "badnet"), ("defense", "none"), ("defense", "rvpt")]
    assert '<th scope="col">ISSBA</th>' in text
    assert set(re.findall(r'data-(?:attack|defense)="(\w+)"', text)) == {"badnet", "none", "rvpt"}


@pytest.fixture
def browser(tmp_path: Path) -> Iterator:
    if not (CHROMIUM and DRIVER):
        pytest.skip("no Chromium: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    flags = "headless=new no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    for flag in [*flags.split(), "disable-component-update", "disable-sync", "window-size=1300,1000"]:
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.mark.slow
def test_the_page_in_a_browser(page: Path, browser) -> None:
    browser.get(page.as_uri())

    def shown(selector: str) -> list[str]:
        return [e.text for e in browser.find_elements("css selector", selector) if e.is_displayed()]

    assert browser.title == "bench: mini on world"
    # ASR and CA, PA, and the paper's table.
    assert shown("thead th[data-attack]") == ["badnet", f"{EVIL} †"] * 2 + ["BadNet"], "an evil name is text"
    assert len(shown("tr[data-defense]")) == 2 + 2 + 1
    browser.find_element("css selector", 'input[name="attack"][value="badnet"]').click()
    assert shown("thead th[data-attack]") == [f"{EVIL} †"] * 2
    assert shown("output") == ["1 of 2 attacks and 2 of 2 defenses shown"]
    rvpt = browser.find_element("css selector", 'input[name="defense"][value="rvpt"]')
    rvpt.send_keys(" ")
    assert [text.split()[0] for text in shown("tr[data-defense]")] == ["none"] * 2, "by keyboard, in every table"
    browser.find_element("css selector", 'button[data-kind="attack"][data-all="yes"]').click()
    assert shown("thead th[data-attack]") == ["badnet", f"{EVIL} †"] * 2
    widths = browser.execute_script("return [...document.images].map(i => i.naturalWidth * i.offsetWidth)")
    assert len(widths) == 2
    assert all(widths), "every figure is drawn"
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
