"""The data of a paper: settings, suites, tables, and labels."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from bench.core.settings import merge, nest

# A name that the command line takes and that files can have.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][\w.-]*$")]
Values = dict[str, Any]
# The variants of a suite by name: their settings, or the reason why a variant is not run.
Declared = dict[str, Values | str]
Axis = Literal["place", "method", "attack", "perturbation", "metric"]
Column = Literal[
    "version", "table", "dataset", "model", "defense", "attack", "target", "variant", "perturbation", "metric", "value",
    "unit",
]  # fmt: skip


FigureKind = Literal[
    "attention",
    "blocks",
    "correlation",
    "embedding",
    "loss_term",
    "permutations",
    "perturbations",
    "resistivity",
    "triggers",
]
# How many defenses a figure names, at least and at most; one of another kind names none.
DEFENSES_SHOWN: dict[str, tuple[int, int]] = {"attention": (1, 1), "embedding": (1, 9), "loss_term": (2, 2)}


class Data(BaseModel):
    """Base of the data in a paper's folder; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Place(Data):
    """A model (open_clip's architecture), a data set and a target class, on which cells are measured.

    `preset` is the preset of a run for these cells; null if there is none. `embedded` is the place's counterpart on the
    embedded world: the same tables are measured there without downloads, and that is no replication.
    """

    label: str
    model: str
    dataset: str
    target: str
    preset: str | None = None
    embedded: "Place | None" = None

    @property
    def key(self) -> tuple[str, str, str]:
        return self.model, self.dataset, self.target


class Method(Data):
    """A row or column of a table: a defense in one variant."""

    label: str
    defense: str
    variant: str = ""


class Sweep(Data):
    """Variants `KEY=VALUE`, one for each value of a setting.

    `setting` is its dotted name; `also` are other settings of all these variants. `figure` is the name of a figure of
    the sweep, `label` the label of its axis.
    """

    key: Name
    setting: str
    values: tuple[int | float, ...]
    embedded: tuple[int | float, ...] | None = None
    also: Values = {}
    figure: Name | None = None
    label: str = ""

    def declared(self, embedded: bool) -> Declared:
        values = self.embedded if embedded and self.embedded is not None else self.values
        return {f"{self.key}={value:g}": merge(self.also, nest(self.setting, value)) for value in values}


class Suite(Data):
    """The cells of a suite: its `settings`, and variants of them, each with all defenses against all attacks.

    `attacks`: null for the preset's. `embedded`: the variants on the embedded world, null if they are the same.
    `in_matrix`: figures show the variants beside the defenses, as separate models.
    """

    shows: str
    defenses: tuple[str, ...] = Field(min_length=1)
    attacks: tuple[str, ...] | None = None
    settings: Values = {}
    variants: Declared = {}
    embedded: Declared | None = None
    sweeps: tuple[Sweep, ...] = ()
    in_matrix: bool = False

    def declared(self, embedded: bool) -> Declared:
        """The variants at the paper's scale, or on the embedded world."""
        own = self.embedded if embedded and self.embedded is not None else self.variants
        return {**own, **{name: values for sweep in self.sweeps for name, values in sweep.declared(embedded).items()}}


class PaperTable(Data):
    """A table of the paper.

    Attributes:
        suite: `bench run --suite SUITE` measures its cells.
        task: the task that measures them.
        published: its name in published.csv; null if it is not there.
        version: the only version of the paper that prints it; null if the version asked for does.
        places: names of the paper's places.
        methods: defenses, or methods with a label of their own.
        metrics: the metrics in a cell, all but the first in parentheses; or one per row or column, if `metric` is an
            axis.
        rows, columns: axes, outer first. Each cell has a place, a method, and an attack or a perturbation if named.
        beyond: the places have other data sets or models than the attacked ones, so a run on other data cannot take
            their place.
        notes: notes for readers.
    """

    title: str
    suite: str
    task: str = "zero_shot"
    published: str | None = None
    version: Name | None = None
    places: tuple[str, ...] = Field(min_length=1)
    methods: tuple[str | Method, ...] = Field(min_length=1)
    attacks: tuple[str, ...] = ()
    perturbations: tuple[str, ...] = ()
    metrics: tuple[str, ...] = Field(("ASR", "CA"), min_length=1)
    rows: tuple[Axis, ...] = Field(("method",), min_length=1)
    columns: tuple[Axis, ...] = Field(("attack",), min_length=1)
    beyond: Literal["dataset", "model"] | None = None
    notes: tuple[str, ...] = ()


class PaperFigure(Data):
    """A figure drawn from the cells of a run, whatever the variants; figures of sweeps are declared with them.

    Attributes:
        kind: what is drawn (reports/figures/draw.py).
        defenses: those shown; of `loss_term`, first the one without the term, then the one with it. Kinds that show all
            models of a run name none.
        attacks: of `attention`: the first of them that was run is shown.
    """

    title: str
    kind: FigureKind
    defenses: tuple[str, ...] = ()
    attacks: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _has_what_it_shows(self) -> "PaperFigure":
        least, most = DEFENSES_SHOWN.get(self.kind, (0, 0))
        if not least <= len(self.defenses) <= most:
            wanted = str(least) if least == most else f"{least} to {most}"
            raise ValueError(f"a figure of kind {self.kind} names {wanted} defenses, not {len(self.defenses)}")
        return self


class Labels(Data):
    """Labels that the paper prints for names; names without a label are printed as they are."""

    attacks: dict[str, str] = {}
    defenses: dict[str, str] = {}
    perturbations: dict[str, str] = {}
    metrics: dict[str, str] = {}


class Fallback(Data):
    """The meaning of an empty column, by the value of another column."""

    by: Column
    values: dict[str, str]


class Translation(Data):
    """Names in published.csv: `columns` are its names of bench's columns, `values` map its values to bench's.

    `empty` gives the meaning of empty columns, by values as in the file. `units` are factors by which numbers with a
    unit are multiplied.
    """

    columns: dict[Column, str] = {}
    values: dict[Column, dict[str, str]] = {}
    empty: dict[Column, Fallback] = {}
    units: dict[str, float] = {}


class Version(BaseModel):
    """What a version of the paper sets otherwise than its presets, and which of their methods it does not have."""

    model_config = ConfigDict(frozen=True, extra="allow")

    without: tuple[str, ...] = ()

    @property
    def settings(self) -> Values:
        return dict(self.model_extra or {})


class Recipe(BaseModel):
    """Another way to run a paper: settings on top of its presets, and what they follow."""

    model_config = ConfigDict(frozen=True, extra="allow")

    shows: str

    @property
    def settings(self) -> Values:
        return dict(self.model_extra or {})


class PaperFile(Data):
    """The contents of paper.yaml.

    `presets` have the paper's settings; `versions` have those that differ, and `without` names methods that a version
    does not have. `recipes` are other ways to run the paper, by name (`--recipe`). `--defenses all` includes `chains`.
    `figures` are those that are no sweep's, and `drawings` those without a measurement, each with what it shows.
    """

    title: str
    arxiv: str = ""
    versions: dict[Name, Version] = Field(min_length=1)
    presets: tuple[str, ...] = ()
    recipes: dict[Name, Recipe] = {}
    chains: tuple[str, ...] = ()
    places: dict[str, Place] = {}
    figures: dict[Name, PaperFigure] = {}
    drawings: dict[Name, str] = {}
    labels: Labels = Labels()


class Paper(PaperFile):
    """The contents of a paper's folder, whose name is the paper's. `numbers` is the file published.csv, if any."""

    name: Name
    folder: Path
    suites: Mapping[str, Suite] = {}
    tables: Mapping[str, PaperTable] = {}
    translation: Translation = Translation()
    numbers: Path | None = None

    @property
    def counterparts(self) -> dict[str, Place]:
        """The counterparts of places on the embedded world, by the names of those places."""
        return {name: place.embedded for name, place in self.places.items() if place.embedded}

    def places_of(self, table: PaperTable) -> tuple[Place, ...]:
        return tuple(self.places[name] for name in table.places)

    def methods_of(self, table: PaperTable) -> tuple[Method, ...]:
        """The methods of a table; a defense given by name gets the paper's label."""
        return tuple(m if isinstance(m, Method) else self._defense(m) for m in table.methods)

    def _defense(self, name: str) -> Method:
        return Method(label=self.labels.defenses.get(name, name), defense=name)
