"""Run every check against original code, and print the table of docs/fidelity.md.

    PYTHONPATH=. python benchmarks/fidelity/run.py ORIGINALS --photos DIR [--write docs/fidelity.md]

ORIGINALS holds checkouts of CleanCLIP, BadCLIP and Decomposition-Backdoor-CLIP, by these names; DIR photos in their own
sizes. What has no checkout is skipped, and said.
"""

import argparse
import sys
from pathlib import Path

# Importing them registers their checks.
import models  # noqa: F401
import texts  # noqa: F401
import torch
import training  # noqa: F401
import triggers  # noqa: F401
from checks import CHECKS, Check, Inputs, Result

START, END = "<!-- table -->\n", "<!-- end of table -->"
HEAD = "| what | original | result | our setting for it |\n|---|---|---|---|\n"


def lacking(check: Check, inputs: Inputs) -> str:
    """The checkout that a check needs and does not have."""
    return "" if (inputs.originals / check.repository).is_dir() else check.repository


def row(check: Check, result: Result) -> str:
    verdict = {True: "equal", False: "**not equal**", None: "differs"}[result.equal]
    files = ", ".join(f"`{name}`" for name in check.original.split(", "))
    return f"| {check.what} | {check.repository}: {files} | {verdict}: {result.summary} | {check.setting} |\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("originals", type=Path)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--only", help="checks whose names hold this text")
    given = parser.parse_args()
    torch.set_num_threads(1)
    inputs = Inputs(given.originals.resolve(), given.photos.resolve())
    rows, unequal = "", 0
    for check in (check for check in CHECKS if (given.only or "") in check.what):
        if folder := lacking(check, inputs):
            print(f"skipped: {check.what}: there is no {inputs.originals / folder}", file=sys.stderr)
            continue
        result = check.see(inputs)
        rows += row(check, result)
        unequal += result.equal is False
        print(row(check, result), end="", flush=True)
    commits = ", ".join(f"{name} {inputs.commit(name)}" for name in sorted({check.repository for check in CHECKS}))
    print(f"\noriginals: {commits}; torch {torch.__version__}")
    if given.write is not None:
        before, _, rest = given.write.read_text().partition(START)
        given.write.write_text(f"{before}{START}{HEAD}{rows}{END}{rest.partition(END)[2]}")
    sys.exit(1 if unequal else 0)


if __name__ == "__main__":
    main()
