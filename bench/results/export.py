"""Results to publish: a results folder without models, triggers and images, of which all numbers are still computed."""

import shutil
from pathlib import Path

from bench.core.errors import BenchError
from bench.results.folder import ResultsFolder
from bench.results.run_file import RUN_FILE
from bench.results.store import LEFT_OUT

# What a report writes into folders of a results folder.
REPORTED = ("tables", "figures")


def export(folder: ResultsFolder, out: Path) -> int:
    """Copy what was observed of all finished cells, the cards of the artefacts behind them, and the tables.

    The copy is a results folder: its tables can be written anew, verified, compared and checked, and `bench run` goes
    on in it, making again the models that it needs. What an earlier export left in `out` stays, so that a run can grow
    over several machines or days.

    Returns:
        The number of artefacts that are in the copy with their cards alone.

    Raises:
        BenchError: no cell is finished, cells differ in code, or `out` holds something else.
    """
    if out.exists() and not (out / RUN_FILE).is_file() and any(out.iterdir()):
        raise BenchError(f"{out} is there and is no results folder. Give a new folder: --out FOLDER")
    if out.exists() and out.samefile(folder.out):
        raise BenchError(f"{out} is the folder to export. Give another one: --out FOLDER")
    folder.refuse_mixture()
    out.mkdir(parents=True, exist_ok=True)
    store, left_out = folder.store, set[tuple[str, str]]()
    for cell in folder.finished_cells:
        lineage = folder.lineage(cell)
        kept = store.path("evaluation", lineage.evaluation.id)
        shutil.copytree(kept, out / kept.relative_to(folder.out), dirs_exist_ok=True)
        left_out |= {("defense", card.id) for card in lineage.defenses}
        left_out |= {("backdoor", lineage.backdoor.id)} if lineage.backdoor else set()
    for kind, id in left_out:
        copy = out / LEFT_OUT / kind / f"{id}.json"
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(store.card(kind, id).model_dump_json(indent=2) + "\n")  # type: ignore[arg-type]
    for file in folder.out.iterdir():
        if file.is_file() and not file.name.startswith("."):
            shutil.copy2(file, out)
    for name in REPORTED:
        if (folder.out / name).is_dir():
            shutil.copytree(folder.out / name, out / name, dirs_exist_ok=True)
    return len(left_out)
