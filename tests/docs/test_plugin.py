"""What the README says about plug-ins, done to the letter."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


def python(folder: Path, *words: str) -> subprocess.CompletedProcess:
    """Python in a user's folder, where this bench, whichever else is installed, and what lies there can be imported."""
    path = os.pathsep.join(map(str, (folder, ROOT)))
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


def test_an_attack_in_a_file_of_ones_own(tmp_path: Path) -> None:
    source = next(b for b in blocks("python") if "@attack" in b)
    (tmp_path / "my_attack.py").write_text(source)
    command = next(line for b in blocks("bash") for line in b.splitlines() if "--plugin my_attack.py" in line)
    words = command.removeprefix("bench ").split()
    small = ["world.test=40", "world.train_per_class=1", "zero_shot.perturbations=[]", "poison.pairs=32"]
    words += [part for value in [*small, "poison.count=8", "execution.workers=1"] for part in ("--set", value)]
    done = python(tmp_path, "-m", "bench.cli", *words)
    assert done.returncode == 0, done.stderr
    assert "stripe" in (tmp_path / "results" / "table.csv").read_text()
    assert (tmp_path / "results" / "triggers" / "stripe.png").is_file()
    # The tables of the next plug-in's run have this one's cells, too.
    source = (tmp_path / "my_attack.py").read_text()
    (tmp_path / "second.py").write_text(source.replace('"stripe"', '"second"'))
    words = [{"my_attack.py": "second.py", "stripe": "second"}.get(word, word) for word in words]
    done = python(tmp_path, "-m", "bench.cli", *words)
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "results" / "table.csv").read_text()
    assert "stripe" in table and "second" in table


def test_an_installed_package_is_found_by_its_entry_point(tmp_path: Path) -> None:
    """A distribution on the path, as pip would install it, with the entry point that the README shows."""
    entry = next(b for b in blocks("toml") if "bench.plugins" in b)
    name, module = re.search(r'^(\w+) = "(\w+)"', entry, re.MULTILINE).groups()  # type: ignore[union-attr]
    (tmp_path / f"{module}.py").write_text(next(b for b in blocks("python") if "@attack" in b))
    info = tmp_path / "clip_stripe-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: clip-stripe\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[bench.plugins]\n{name} = {module}\n")
    done = python(tmp_path, "-c", "from bench.cli import main; main()", "list", "attacks")
    assert done.returncode == 0, done.stderr
    assert "stripe" in done.stdout


@pytest.mark.parametrize("source", ["import nonsense_that_is_not_there", "raise ValueError('no')"])
def test_a_plugin_file_that_cannot_be_imported(source: str, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(source)
    done = python(tmp_path, "-m", "bench.cli", "list", "attacks", "--plugin", "broken.py")
    assert done.returncode == 2
    assert "--plugin broken.py cannot be imported" in done.stderr and "Traceback" not in done.stderr
