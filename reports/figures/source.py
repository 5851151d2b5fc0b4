"""What figures are drawn from: the numbers, curves, models and images of a results folder."""

from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.core.attack import stamp
from bench.core.clip import Clip
from bench.core.dataset import target_index
from bench.core.errors import BenchError
from bench.core.randomness import generator
from bench.core.victim import Victim
from bench.experiment.resources import Resources
from bench.experiment.settings import RunSettings
from bench.experiment.suites import find_suite
from bench.matrix.plan import CLEAN_MODEL, UNDEFENDED
from bench.matrix.runner import open_device
from bench.matrix.stages import load_backdoor, load_trigger, open_victim, trigger_at_test
from bench.results.store import Store
from reports.results import finished_cells, read_run, summarise

# At most so many images are encoded for a picture: 10 of each of 20 classes.
CLASSES, IMAGES_A_CLASS = 20, 10


class Source:
    """A results folder and its `results` (`reports.results.collect`), opened as far as a figure needs it.

    A model of the matrix is called by its defense; those of the suite `pr`, which are its variants, by theirs.
    """

    def __init__(self, out: Path, results: pd.DataFrame) -> None:
        self.out = out
        self.results = results
        self._open: tuple[str, Clip] | None = None

    @cached_property
    def summary(self) -> pd.DataFrame:
        """All rows over their seeds: `mean`, and the 95 % interval `low` to `high` of the test images."""
        return summarise(self.results)

    @cached_property
    def main(self) -> pd.DataFrame:
        """The results on the run's own model, data set and target, a row per seed; without the ablations."""
        here = (self.results[list(self.place)] == pd.Series(self.place)).all(axis=1)
        rows = self.results[here & self.results["variant"].isin(["", *find_suite("pr").paper])]
        if rows.empty:
            raise self.missing("cells of the matrix", "")
        return rows.assign(label=rows["variant"].where(rows["variant"] != "", rows["defense"]))

    @cached_property
    def run(self) -> RunSettings:
        return RunSettings.model_validate(read_run(self.out)["settings"])

    @property
    def place(self) -> dict[str, str]:
        return {"model": self.run.model.label, "target": self.run.target.lower(), "dataset": self.run.dataset}

    @property
    def attacks(self) -> list[str]:
        return list(self.main["attack"].unique())

    @property
    def models(self) -> list[str]:
        """Rows of the matrix: the clean model, the undefended one, the defended ones."""
        found = list(self.main["label"].unique())
        first = [name for name in (CLEAN_MODEL, UNDEFENDED) if name in found]
        return first + [name for name in found if name not in first]

    @cached_property
    def resources(self) -> Resources:
        """Model, data and store, on the GPU where there is one."""
        return Resources(self.run, Store(self.out), open_device("auto"))

    @property
    def target(self) -> int:
        return target_index(self.run.target, self.resources.test.classes)

    @cached_property
    def cells(self) -> dict[tuple[str, str], dict]:
        """The finished cell of each attack and model of `main`, of the first seed."""
        keys = [self.main[name].astype(str) for name in ("attack", "defense", "variant", "label")]
        names = {(attack, *rest): (attack, label) for attack, *rest, label in zip(*keys, strict=True)}
        found: dict[tuple[str, str], dict] = {}
        for cell in finished_cells(self.out)[0]:
            key = names.get((cell["attack"], cell["defense"], cell.get("variant", "")))
            if key and all(cell[name] == value for name, value in self.place.items()):
                found.setdefault(key, cell)
        return found

    def cell(self, attack: str, defense: str) -> dict:
        if (attack, defense) not in self.cells:
            raise self.missing(f"the cell of {attack} and {defense}", f"--attacks {attack} --defenses {defense}")
        return self.cells[attack, defense]

    def victim(self, attack: str, defense: str) -> Victim:
        """The model that a cell evaluated.

        Raises:
            BenchError: there is no such cell, or its model is no longer in the folder.
        """
        parts, store = self.parts(attack, defense), self.resources.store
        if not parts:
            return Victim(self.resources.clip)
        backdoor, subject = parts[0], parts[-1]
        if not (store.has("backdoor", backdoor) and (subject == backdoor or store.has("defense", subject))):
            raise BenchError(f"the model of {attack} and {defense} is no longer in {store.root}")
        return open_victim(parts, self.resources, self._backdoored(backdoor))

    def parts(self, attack: str, defense: str) -> tuple[str, ...]:
        """What a cell's model is made of: a backdoored model and perhaps a defense, by id; nothing, if it is clean."""
        id = self.cell(attack, defense)["evaluation"]
        made = self.resources.store.card("evaluation", id)["determined_by"]
        return () if made["clean"] else tuple(dict.fromkeys((made["backdoor"], made["subject"])))

    def _backdoored(self, id: str) -> Clip:
        """A backdoored model; the last one stays open, since those with its defenses are mostly asked for next."""
        if self._open is None or self._open[0] != id:
            # Let go of the other one first: two large models may not fit.
            self._open = None
            self._open = id, load_backdoor(id, self.resources)
        return self._open[1]

    def curves(self, attack: str, defense: str) -> dict[str, list[float]]:
        """The training curves of a cell's last defense; none where it logged none, or its artefact is gone."""
        store = self.resources.store
        id = store.card("evaluation", self.cell(attack, defense)["evaluation"])["determined_by"]["subject"]
        return store.card("defense", id)["log"] if store.has("defense", id) else {}

    @cached_property
    def sample(self) -> Tensor:
        """Indices of evaluated images: up to 10 of each of up to 20 classes, the target's first."""
        labels, rng = self.resources.test.labels, generator(0, "figures")
        order = torch.randperm(len(self.resources.test.classes), generator=rng).tolist()
        chosen = []
        for label in [self.target, *(c for c in order if c != self.target)][:CLASSES]:
            rows = torch.where(labels == label)[0]
            chosen.append(rows[torch.randperm(len(rows), generator=rng)[:IMAGES_A_CLASS]])
        return torch.cat(chosen)

    @property
    def others(self) -> Tensor:
        """Those of the sample that a trigger should turn into the target: images of other classes."""
        return self.sample[self.resources.test.labels[self.sample] != self.target]

    def stamped(self, attack: str, index: Tensor) -> Tensor:
        """The evaluated images `index` under the trigger of an attack's stored model: uint8 (n, 3, size, size)."""
        made = next((cell["backdoor"] for (name, _), cell in self.cells.items() if name == attack), "")
        if not self.resources.store.has("backdoor", made):
            raise BenchError(f"the trigger of {attack} is no longer in {self.resources.store.root}")
        trigger = trigger_at_test(load_trigger(made, self.resources))
        return stamp(self.resources.attack(attack), trigger, self.resources.test.load(index), index)

    def missing(self, what: str, options: str) -> BenchError:
        command = " ".join(["bench run", *options.split(), "--out", str(self.out)])
        return BenchError(f"needs {what}: `{command}`")


@torch.no_grad()
def embed(victim: Victim, images: Tensor) -> Tensor:
    """Unit-norm embeddings (n, embed_dim) of a picture's few images, on the CPU and in fp32."""
    return F.normalize(victim.encode(images).embedding.float().cpu(), dim=-1)
