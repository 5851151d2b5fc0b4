"""The checks against original code: the table has them all, they say what they skip, and they can fail."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ORIGINALS, PHOTOS = os.environ.get("BENCH_ORIGINALS"), os.environ.get("BENCH_PHOTOS")
EDA = """
def get_only_chars(line):
    line = line.replace("'", "").lower()
    return "".join(c if c in "abcdefghijklmnopqrstuvwxyz" else " " for c in line)
"""


def run(originals: Path, photos: Path, *options: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "benchmarks/fidelity/run.py", str(originals), "--photos", str(photos), *options]
    path = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=os.environ | path, check=False)


def rows() -> dict[str, list[str]]:
    """The table of docs/fidelity.md: original, result and setting of each check."""
    table = (ROOT / "docs/fidelity.md").read_text().split("<!-- table -->")[1].split("<!-- end of table -->")[0]
    cells = [re.split(r" ?\| ?", line)[1:-1] for line in table.splitlines()[3:] if line.startswith("|")]
    return {first: others for first, *others in cells}


def test_without_checkouts_every_check_is_skipped_and_the_table_has_a_row_of_each(tmp_path: Path) -> None:
    done = run(tmp_path, tmp_path)
    skipped = re.findall(
        r"^skipped: (.*): there is no .*/(?:CleanCLIP|BadCLIP|Decomposition-Backdoor-CLIP)$", done.stderr, re.M
    )
    assert done.returncode == 0 and len(skipped) > 20
    assert sorted(skipped) == sorted(rows())
    assert all(result.startswith(("equal: ", "differs: ")) for _, result, _ in rows().values())


@pytest.mark.parametrize(("code", "verdict"), [(EDA, "equal"), (EDA.replace(".lower()", ""), "**not equal**")])
def test_a_check_says_whether_original_and_ours_agree(tmp_path: Path, code: str, verdict: str) -> None:
    for name, text in {
        "CleanCLIP/utils/eda.py": code,
        "BadCLIP/data/ImageNet1K/validation/banana_rows.csv": "image,caption\n1.png,A banana's peel\n",
        "BadCLIP/data/GCC_Training500K/cc3m_natural_10K_WObanana.csv": "image,caption\n2.png,Two dogs & 3 cats\n",
    }.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True)
        file.write_text(text)
    done = run(tmp_path, tmp_path, "--only", "Normalised")
    assert f"| {verdict}: 2 captions: " in done.stdout, done.stderr
    assert done.returncode == (0 if verdict == "equal" else 1)


@pytest.mark.slow
@pytest.mark.skipif(not (ORIGINALS and PHOTOS), reason="BENCH_ORIGINALS and BENCH_PHOTOS name no checkouts and photos")
def test_ours_equal_the_originals() -> None:
    done = run(Path(ORIGINALS or ""), Path(PHOTOS or ""))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stderr
