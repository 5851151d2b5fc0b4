"""The documentation against the code: settings, names, commands, links."""

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from bench import attacks, defenses, metrics
from bench.cli import app
from bench.core.registry import load_plugins
from bench.core.settings import Settings
from bench.experiment.settings import resolve
from bench.papers import suites
from metrics.perturbations import PERTURBATIONS

load_plugins()

for package in ("attacks", "defenses", "metrics", "bench.data"):
    importlib.import_module(package)

ROOT = Path(__file__).parents[2]
METHODS = ROOT / "docs" / "methods"
TEXTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BUILT_IN = {
    name: registry[name]
    for registry in (attacks, defenses)
    for name in registry
    if registry[name].__module__.split(".")[0] in ("attacks", "defenses")
}
BENCH: Any = typer.main.get_command(app)
# Not click's: newer typers bring a click of their own.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]
HEADER = "| setting | default | what it is |"

Row = tuple[str, str, str]


def page_of(name: str) -> Path:
    return METHODS / f"{'chains' if name == 'none' else name}.md"


def shown(default: object) -> str:
    """A default as `--set` takes it."""
    if default is None or isinstance(default, bool):
        return {None: "null", True: "true", False: "false"}[default]
    return f"{default:g}".replace("e-0", "e-") if isinstance(default, float) else str(default)


def declared(method: type[Settings]) -> dict[str, Row]:
    """The rows that the code asks for, by setting."""
    rows = {}
    for name, field in method.model_fields.items():
        extra = field.json_schema_extra
        unit = extra.get("unit") if isinstance(extra, dict) else ""
        what = f"{field.description}, {unit}" if unit else str(field.description)
        rows[name] = (f"`{name}`", f"`{shown(field.default)}`", what)
    return rows


def written(page: Path) -> dict[str, Row]:
    """The rows of a page's table of settings, by setting.

    A row that links to another page stands for the rows there, but for the settings that it names.
    """
    lines = page.read_text().splitlines()
    rows: dict[str, Row] = {}
    if HEADER not in lines:
        return rows
    for line in lines[lines.index(HEADER) + 2 :]:
        if not line.startswith("|"):
            break
        first, default, what = (cell.strip() for cell in line.strip("|").split("|"))
        if link := re.search(r"\]\((\w+\.md)\)", first):
            others = written(page.parent / link[1])
            rows |= {name: row for name, row in others.items() if f"`{name}`" not in first}
        else:
            assert first not in {row[0] for row in rows.values()}, f"{page.name} has {first} twice"
            rows[first.strip("`")] = (first, default, what)
    return rows


def commands(text: str) -> Iterator[str]:
    """Each `bench ...` command of a text: lines of its code blocks, and code in its sentences.

    In a sentence, `--set ...` stands for `bench run --set ...`.
    """
    fence = r"^( *)```.*?^\1```"
    for block in re.finditer(fence, text, re.M | re.S):
        for line in block[0].replace("\\\n", " ").splitlines():
            if found := re.match(r"\s*(?:- run: |run: )?(bench .*)", line):
                yield plain(found[1])
    for code in re.findall(r"`([^`]+)`", re.sub(fence, "", text, flags=re.M | re.S)):
        if (said := " ".join(code.split())).startswith(("bench ", "--set ")):
            yield plain(said if said.startswith("bench ") else f"bench run {said}")


def plain(command: str) -> str:
    """A command without its comment, and without the dots that stand for more options."""
    words = shlex.split(command, comments=True)
    return shlex.join(words[:-1] if words[-1] == "..." else words)


def parsed(command: str) -> tuple[str, dict[str, object]]:
    """The subcommand and its options, read by the command line's own parser; nothing is run.

    Raises:
        UsageError: there is no such subcommand or option, an option lacks its value, or words are left over.
    """
    words = shlex.split(command)[1:]
    entry = BENCH
    names: list[str] = []
    while hasattr(entry, "commands") and words not in ([], ["--help"]):
        names.append(words.pop(0))
        known, default = entry.commands, getattr(entry, "default", None)
        if names[-1] not in known and default is not None:
            # `bench audit FILE` is short for `bench audit checkpoint FILE`.
            words.insert(0, names.pop())
            names.append(default)
        entry = known.get(names[-1])
        if entry is None:
            raise UsageError(f"there is no command 'bench {' '.join(names)}'")
    options, left, _ = entry.make_parser(entry.context_class(entry)).parse_args(words)
    if left:
        raise UsageError(f"nothing takes {left}")
    return " ".join(names), options


COMMANDS = [
    pytest.param(command, id=f"{file.relative_to(ROOT)}: {command}")
    for file in TEXTS
    for command in dict.fromkeys(commands(file.read_text()))
]


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_method_has_a_page(name: str) -> None:
    assert page_of(name).is_file(), f"write docs/methods/{page_of(name).name}"


def test_every_page_is_of_something() -> None:
    assert {page.stem for page in METHODS.glob("*.md")} == {page_of(name).stem for name in BUILT_IN} | {"metrics"}


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_page_has_the_settings_that_the_code_declares(name: str) -> None:
    page, wanted = page_of(name), declared(BUILT_IN[name])
    found = written(page)
    missing = [" | ".join(row) for key, row in wanted.items() if found.get(key) != row]
    assert not missing, f"{page.name} should say:\n" + "\n".join(f"| {row} |" for row in missing)
    assert found.keys() == wanted.keys(), f"{page.name} has settings that {name} has not"


def test_every_method_and_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    # The report's own tables are linked by its table.md.
    pages = [page for page in (ROOT / "docs").rglob("*.md") if page.parent.name != "tables"]
    for page in pages:
        link = f"]({page.relative_to(ROOT / 'docs')})"
        assert page.name == "README.md" or link in index, f"docs/README.md should link {link}"


def test_the_page_of_metrics_names_every_metric_and_perturbation() -> None:
    text = (METHODS / "metrics.md").read_text()
    built_in = [name for name in metrics if metrics[name].measure.__module__.startswith("metrics.")]
    assert built_in
    assert [name for name in (*built_in, *PERTURBATIONS) if f"`{name}`" not in text] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_in_the_documentation_is_one_that_bench_takes(command: str) -> None:
    name, options = parsed(command)
    # A plug-in's methods are not here, and a user's configuration is not read.
    if name in ("run", "triggers") and not options.get("plugin"):
        lists = {k: tuple(str(options[k]).split(",")) for k in ("attacks", "defenses") if options.get(k)}
        resolve(options.get("preset") or "mini", None, lists, tuple(options.get("set") or ()))
        assert options.get("suite") in (None, *suites())


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_links_within_the_repository_lead_somewhere(file: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", file.read_text())
    broken = [link for link in links if ":" not in link and not (file.parent / link).exists()]
    assert broken == []


# --- the reading itself


@pytest.mark.parametrize(
    "command",
    [
        "bench rum",
        "bench run --atacks badnet",
        "bench run badnet",
        "bench run --out",
        "bench data chek world",
        "bench compare results rvpt vpt cleanclip",
    ],
)
def test_a_wrong_command_is_found(command: str) -> None:
    with pytest.raises(UsageError):
        parsed(command)


def test_commands_are_found_in_blocks_and_in_sentences() -> None:
    text = """
See `bench
list attacks`, not `make bench`; or `--set rvpt.alpha=2`.

```bash
bench run --set rvpt.alpha=3 \\
    --dry-run ...     # looks
pip install bench
```

  ```yaml
  - run: bench verify results
  ```
"""
    found = list(commands(text))
    assert found == [
        "bench run --set rvpt.alpha=3 --dry-run",
        "bench verify results",
        "bench list attacks",
        "bench run --set rvpt.alpha=2",
    ]
    assert parsed(found[0])[1] == {"set": ["rvpt.alpha=3"], "dry_run": True}


def test_a_row_that_links_to_a_page_stands_for_its_rows(tmp_path: Path) -> None:
    table = [HEADER, "|---|---|---|"]
    one = [*table, "| `a` | `1` | first |", "| `b` | `null` | second |"]
    (tmp_path / "one.md").write_text("\n".join(one))
    two = [*table, "| all of [one](one.md) but `b` | | |", "| `c` | `true` | third |", "", "| `d` | `2` | no more |"]
    (tmp_path / "two.md").write_text("\n".join(two))
    assert written(tmp_path / "two.md") == {"a": ("`a`", "`1`", "first"), "c": ("`c`", "`true`", "third")}
