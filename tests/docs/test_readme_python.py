"""What the README says about Python, done to the letter: it runs, and prints what stands there."""

import re
import subprocess
import sys
from pathlib import Path

README = (Path(__file__).parents[2] / "README.md").read_text()
NUMBER = re.compile(r"-?\d+(\.\d+)?")


def without_numbers(text: str) -> list[list[str]]:
    """The words of each line: another processor trains to other numbers, and they take other room."""
    return [NUMBER.sub("0", line).split() for line in text.strip().splitlines()]


def test_the_python_block_prints_what_the_readme_shows(tmp_path: Path) -> None:
    section = README.split("## From Python")[1]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    shown = re.search(r"```text\n(.*?)```", section, re.DOTALL)
    assert code and shown
    done = subprocess.run([sys.executable, "-c", code[1]], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert without_numbers(done.stdout) == without_numbers(shown[1])
    assert NUMBER.search(shown[1])
