"""The data of figures: numbers, curves, models and images of a results folder."""

from functools import cached_property

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.core.attack import stamp_images
from bench.core.dataset import target_index
from bench.core.errors import BenchError
from bench.core.randomness import generator
from bench.core.victim import Victim
from bench.experiment.resources import Resources
from bench.experiment.settings import RunSettings
from bench.papers import variants_in_matrix
from bench.results.folder import ResultsFolder
from bench.results.records import Cell
from bench.results.tidy import in_order, summarise

# The most images that are encoded for a figure: 5 of each of 20 classes.
CLASSES, IMAGES_A_CLASS = 20, 5


class Source:
    """The zero-shot results of a folder, with its models and images opened on demand.

    Models have the name of their defense; those of a suite with `Suite.in_matrix`, the name of their variant.
    """

    def __init__(self, folder: ResultsFolder) -> None:
        self.folder = folder
        self.results = folder.results[folder.results["task"] == "zero_shot"]

    @cached_property
    def summary(self) -> pd.DataFrame:
        """All rows summarised over seeds: `mean`, and the 95 % interval [`low`, `high`]."""
        return summarise(self.results)

    @cached_property
    def main(self) -> pd.DataFrame:
        """The results for the run's own model, data set and target, a row per seed; without ablations."""
        here = (self.results[list(self.place)] == pd.Series(self.place)).all(axis=1)
        rows = self.results[here & self.results["variant"].isin(["", *variants_in_matrix()])]
        if rows.empty:
            raise self.missing("cells of the matrix", "")
        return rows.assign(label=rows["variant"].where(rows["variant"] != "", rows["defense"]))

    @property
    def run(self) -> RunSettings:
        return self.folder.settings

    @property
    def resources(self) -> Resources:
        """Model and data."""
        return self.folder.resources

    @property
    def place(self) -> dict[str, str]:
        return self.run.place

    @property
    def perturbations(self) -> list[str]:
        """The perturbations of the run's own cells."""
        return [name for name in self.main["perturbation"].unique() if name]

    @property
    def attacks(self) -> list[str]:
        return list(self.main["attack"].unique())

    @property
    def models(self) -> list[str]:
        """The models of the matrix: clean, undefended, defended."""
        return in_order(self.main["label"])

    @property
    def target(self) -> int:
        return target_index(self.run.target, self.resources.test.classes)

    @cached_property
    def cells(self) -> dict[tuple[str, str], Cell]:
        """The finished cell of each attack and model of `main`, of the first seed."""
        keys = [self.main[name].astype(str) for name in ("attack", "defense", "variant", "label")]
        names = {(attack, *rest): (attack, label) for attack, *rest, label in zip(*keys, strict=True)}
        cells: dict[tuple[str, str], Cell] = {}
        for cell in sorted(self.folder.cells, key=lambda cell: cell.seed):
            key = names.get((cell.attack, cell.defense, cell.variant))
            here = cell.task == "zero_shot" and all(cell.place[name] == value for name, value in self.place.items())
            if key and here:
                cells.setdefault(key, cell)
        return cells

    def cell(self, attack: str, defense: str) -> Cell:
        if (attack, defense) not in self.cells:
            raise self.missing(f"the cell of {attack} and {defense}", f"--attacks {attack} --defenses {defense}")
        return self.cells[attack, defense]

    def victim(self, attack: str, defense: str) -> Victim:
        """The model that a cell evaluated.

        Raises:
            BenchError: there is no such cell, or its model is no longer in the folder.
        """
        return self.folder.victim(self.cell(attack, defense))

    def parts(self, attack: str, defense: str) -> tuple[str, ...]:
        """The ids of the backdoored model and the last defense of a cell's model; () for the clean model."""
        inputs = self.folder.lineage(self.cell(attack, defense)).evaluation.determined_by
        return () if inputs["clean"] else tuple(dict.fromkeys((inputs["backdoor"], inputs["subject"])))

    def curves(self, attack: str, defense: str) -> dict[str, list[float]]:
        """The training curves of a cell's last defense; {} if it logged none or its artefact was deleted."""
        chain = self.folder.lineage(self.cell(attack, defense)).defenses
        return chain[-1].log if chain else {}

    @cached_property
    def sample(self) -> Tensor:
        """Indices of evaluated images: up to 5 of each of up to 20 classes, the target's first."""
        labels, rng = self.resources.test.labels, generator(0, "figures")
        order = torch.randperm(len(self.resources.test.classes), generator=rng).tolist()
        chosen = []
        for label in [self.target, *(c for c in order if c != self.target)][:CLASSES]:
            rows = torch.where(labels == label)[0]
            chosen.append(rows[torch.randperm(len(rows), generator=rng)[:IMAGES_A_CLASS]])
        return torch.cat(chosen)

    @property
    def others(self) -> Tensor:
        """The images of the sample that are not of the target class."""
        return self.sample[self.resources.test.labels[self.sample] != self.target]

    def stamped(self, attack: str, index: Tensor) -> Tensor:
        """The evaluated images of `index` with an attack's stored trigger: uint8 (n, 3, size, size)."""
        cell = next((cell for (name, _), cell in self.cells.items() if name == attack), None)
        if cell is None:
            raise self.missing(f"a cell of {attack}", f"--attacks {attack}")
        resources = self.resources
        return stamp_images(resources.attack(attack), self.folder.trigger(cell), resources.test, index)

    def missing(self, what: str, options: str) -> BenchError:
        command = " ".join(["bench run", *options.split(), "--out", str(self.folder.out)])
        return BenchError(f"needs {what}: `{command}`")


@torch.no_grad()
def embed(victim: Victim, images: Tensor) -> Tensor:
    """Unit-norm embeddings (n, embed_dim) of images, on the CPU and in fp32."""
    return F.normalize(victim.encode(images).embedding.float().cpu(), dim=-1)
