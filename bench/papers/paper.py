"""What a paper declares, as data: its settings, suites and tables, and how it calls things."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from bench.core.settings import merge, nest

# A name that the command line takes and that files can have.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][\w.-]*$")]
Values = dict[str, Any]
# What a suite declares by the names of its variants: their settings, or why there is no such variant.
Declared = dict[str, Values | str]
Axis = Literal["place", "method", "attack", "perturbation", "metric"]
Column = Literal[
    "version", "table", "dataset", "model", "defense", "attack", "target", "variant", "perturbation", "metric", "value",
    "unit",
]  # fmt: skip


class Data(BaseModel):
    """Something that a paper's folder declares; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Place(Data):
    """Where a cell is measured: a model (open_clip's architecture), a data set, a target class.

    `preset` is that of the run whose table has the cell; null where no preset has it.
    """

    label: str
    model: str
    dataset: str
    target: str
    preset: str | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        return self.model, self.dataset, self.target


class Method(Data):
    """A row or column of a table: a defense in one of its variants."""

    label: str
    defense: str
    variant: str = ""


class Sweep(Data):
    """Variants `KEY=VALUE`, a value of one setting each.

    `setting` is its name with dots, `also` what all of the variants set. A figure shows the sweep if it has a name; its
    axis says `label`.
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
    """What a suite runs: the run's own settings with `settings` on top, and variants of them; each against all attacks.

    `attacks` are null where the preset's are meant. `embedded` are the variants on the embedded world, null where they
    are the same. `in_matrix`: figures show the variants beside the defenses, as models of their own.
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
    """A table as the paper prints it.

    Attributes:
        suite: `bench run --suite SUITE` measures its cells.
        task: what they are measured by.
        published: its name in published.csv; null where it is not there.
        places: names of the paper's places.
        methods: defenses, or methods with a label of their own.
        metrics: one, or several of which the others stand in parentheses; or the columns, where `metric` is an axis.
        rows, columns: axes, outer first. Each cell has a place, a method, and an attack or a perturbation if named.
        beyond: its places are other data sets or models than that which was attacked, so no run on one's own data
            stands in for them.
        notes: what a reader must know.
    """

    title: str
    suite: str
    task: str = "zero_shot"
    published: str | None = None
    places: tuple[str, ...] = Field(min_length=1)
    methods: tuple[str | Method, ...] = Field(min_length=1)
    attacks: tuple[str, ...] = ()
    perturbations: tuple[str, ...] = ()
    metrics: tuple[str, ...] = Field(("ASR", "CA"), min_length=1)
    rows: tuple[Axis, ...] = Field(("method",), min_length=1)
    columns: tuple[Axis, ...] = Field(("attack",), min_length=1)
    beyond: Literal["dataset", "model"] | None = None
    notes: tuple[str, ...] = ()


class Labels(Data):
    """How the paper prints names; what has no label is printed as it is called."""

    attacks: dict[str, str] = {}
    defenses: dict[str, str] = {}
    perturbations: dict[str, str] = {}
    metrics: dict[str, str] = {}


class Fallback(Data):
    """What an empty column means, by the value of another column."""

    by: Column
    values: dict[str, str]


class Translation(Data):
    """How published.csv calls things: `columns` are its own names of columns, `values` map its values to bench's.

    `empty` says what an empty column means, by values as they are in the file. A number is multiplied by the factor
    that `units` has for its unit, if any.
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


class PaperFile(Data):
    """What paper.yaml says.

    `presets` have the paper's settings; a version of it names what it sets otherwise, and under `without` the attacks
    and defenses of the presets that it does not have. `recipes` are other ways to run it, settings that `--recipe`
    puts on top. `chains` of defenses are among those that `--defenses all` runs.
    """

    title: str
    arxiv: str = ""
    versions: dict[Name, Version] = Field(min_length=1)
    presets: tuple[str, ...] = ()
    recipes: dict[Name, Values] = {}
    chains: tuple[str, ...] = ()
    places: dict[str, Place] = {}
    labels: Labels = Labels()


class Paper(PaperFile):
    """All that a paper's folder says; the folder's name is the paper's. `numbers` is published.csv, if it is there."""

    name: Name
    folder: Path
    suites: Mapping[str, Suite] = {}
    tables: Mapping[str, PaperTable] = {}
    translation: Translation = Translation()
    numbers: Path | None = None

    def places_of(self, table: PaperTable) -> tuple[Place, ...]:
        return tuple(self.places[name] for name in table.places)

    def methods_of(self, table: PaperTable) -> tuple[Method, ...]:
        """The methods of a table; a defense that is named alone has the paper's label."""
        return tuple(m if isinstance(m, Method) else self._defense(m) for m in table.methods)

    def _defense(self, name: str) -> Method:
        return Method(label=self.labels.defenses.get(name, name), defense=name)
