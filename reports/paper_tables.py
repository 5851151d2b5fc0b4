"""The paper's tables, a declaration each: version 1's tables 1 to 5 and S1 to S7, and version 3's of PA."""

from dataclasses import dataclass
from typing import Literal

from bench.core.names import CLEAN_MODEL, UNDEFENDED
from bench.experiment.suites import THREE, TRANSFERABLE

Axis = Literal["place", "method", "attack", "perturbation", "metric"]

ATTACKS = {
    "badnet": "BadNet",
    "blended": "Blended",
    "label_consistent": "Label Consistent",
    "issba": "ISSBA",
    "wanet": "WaNet",
    "trojvqa": "TrojVQA",
    "badclip": "BadCLIP",
}
PERTURBATIONS = {
    "gaussian-0.01": "Gaussian noise (std 0.01)",
    "gaussian-0.03": "Gaussian noise (std 0.03)",
    "blur-3": "Gaussian blur (kernel 3)",
    "blur-5": "Gaussian blur (kernel 5)",
    "jitter": "Color jitter",
    "flip": "Horizontal flip",
    **{name: f"{ATTACKS[name]} trigger" for name in ("badnet", "blended", "badclip")},
}
METRICS = {
    "PR_ratio": "PR",
    "seconds": "Training time",
    "peak_memory_mb": "Peak memory",
    "tunable": "Tunable parameters",
    "samples": "Training samples",
}


@dataclass(frozen=True)
class Method:
    """A defense in one of its variants; of several the first that there is."""

    label: str
    defense: str
    variants: tuple[str, ...] = ("",)


@dataclass(frozen=True)
class Place:
    """Where a cell is measured: a model (open_clip's architecture), a data set, a target class."""

    label: str
    model: str
    dataset: str
    target: str

    @property
    def key(self) -> tuple[str, str, str]:
        return self.model, self.dataset, self.target


@dataclass(frozen=True)
class PaperTable:
    """One table of the paper.

    Attributes:
        name: of its files and in the text.
        suite: `bench run --suite SUITE` measures its cells.
        published: its name in published.csv.
        metrics: one, or two of which the second stands in parentheses; or the columns, where `metric` is an axis.
        rows, columns: axes, outer first. Each cell has a place, a method, and an attack or a perturbation if named.
        beyond: its places are other data sets or models than that which was attacked, so no run on one's own data
            stands in for them.
    """

    name: str
    title: str
    suite: str
    published: str
    places: tuple[Place, ...]
    methods: tuple[Method, ...]
    attacks: tuple[str, ...] = ()
    perturbations: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("ASR", "CA")
    rows: tuple[Axis, ...] = ("method",)
    columns: tuple[Axis, ...] = ("attack",)
    beyond: Literal["dataset", "model"] | None = None


IMAGENET = Place("ImageNet", "ViT-B-32", "imagenet", "banana")
CALTECH101 = Place("Caltech101", "ViT-B-32", "caltech101", "accordion")
OXFORDPETS = Place("OxfordPets", "ViT-B-32", "oxfordpets", "samoyed")
DOMAINS = tuple(
    Place(label, "ViT-B-32", name, "banana")
    for label, name in {
        "ImageNet-V2": "imagenet-v2",
        "ImageNet-A": "imagenet-a",
        "ImageNet-R": "imagenet-r",
        "ImageNet-S": "imagenet-sketch",
    }.items()
)
ARCHITECTURES = tuple(Place(f"ViT-{v}", f"ViT-{v.replace('/', '-')}", "imagenet", "banana") for v in ("B/16", "L/14"))

NONE = Method("No defense", UNDEFENDED)
CLEANCLIP = Method("CleanCLIP", "cleanclip")
LINEAR_PROBE = Method("Linear Probe", "linear_probe")
RVPT = Method("RVPT", "rvpt")


def _variants(**labels: str) -> tuple[Method, ...]:
    """RVPT in several variants."""
    return tuple(Method(label, "rvpt", (variant,)) for variant, label in labels.items())


def _prompts() -> tuple[Method, ...]:
    texts = ("<CLS>", "###### <CLS>", "a photo of a <CLS>")
    return tuple(Method(f"“{text}”", "rvpt", (text,)) for text in texts)


TABLES = (
    PaperTable(
        "table-1", "Defenses against seven attacks", "main", "main", (IMAGENET,),
        (NONE, CLEANCLIP, LINEAR_PROBE, RVPT), tuple(ATTACKS),
    ),
    PaperTable(
        "table-2", "Defenses on other data sets", "main", "main", (CALTECH101, OXFORDPETS),
        (NONE, CLEANCLIP, LINEAR_PROBE, RVPT), TRANSFERABLE, columns=("place", "attack"), beyond="dataset",
    ),
    PaperTable(
        "table-3", "RVPT tuned without the target class (woTC), and with it", "emerging-target", "emerging_target",
        (IMAGENET, OXFORDPETS, CALTECH101),
        _variants(without_target_class="woTC", with_target_class="with"), TRANSFERABLE,
        rows=("place",), columns=("attack", "method"),
    ),
    PaperTable(
        "table-4", "RVPT tuned on ImageNet, on other data sets", "cross-dataset", "cross_dataset",
        (CALTECH101, OXFORDPETS),
        (Method("CleanCLIP", "cleanclip", ("tuned_on_cc3m",)), Method("RVPT*", "rvpt", ("tuned_on_imagenet",))),
        TRANSFERABLE, columns=("place", "attack"),
    ),
    PaperTable(
        "table-5", "Defenses under a shift of domain", "cross-domain", "cross_domain", DOMAINS,
        (NONE, CLEANCLIP, RVPT), THREE, rows=("place", "method"), beyond="dataset",
    ),
    PaperTable(
        "table-S1", "Perturbation Resistivity", "pr", "perturbation_resistivity", (IMAGENET,),
        (
            Method("Supervised ViT", "", ("supervised_vit",)),
            Method("CLIP ViT", CLEAN_MODEL, ("", "clip_vit")),
            Method("VPT, 16 shots", "vpt", ("vpt_16shot",)),
            Method("RVPT, 1 shot", "rvpt", ("rvpt_1shot",)),
            Method("RVPT, 16 shots", "rvpt", ("rvpt_16shot",)),
        ),
        perturbations=tuple(PERTURBATIONS), metrics=("PR_ratio",), rows=("perturbation",), columns=("method",),
    ),
    PaperTable(
        "table-S2", "Combinations of defenses", "combination", "combination", (IMAGENET,),
        (
            Method("CleanCLIP + Linear Probe", "cleanclip+linear_probe"),
            Method("RVPT + Linear Probe", "rvpt+linear_probe"),
            Method("CleanCLIP + RVPT", "cleanclip+rvpt"),
        ),
        THREE,
    ),
    PaperTable(
        "table-S3", "The distance that RVPT repels by", "distance", "ablation_distance", (IMAGENET,),
        _variants(l1="L1 distance", l2="L2 distance", cosine="cos similarity"), THREE,
    ),
    PaperTable(
        "table-S4", "Permutation of prompts and repelled features", "permutation", "ablation_permutation", (IMAGENET,),
        _variants(split="Split", overlap="Overlap", intertwine="Intertwine", mix="Mix"), THREE,
    ),
    PaperTable(
        "table-S5", "The handcrafted prompt", "prompt", "ablation_prompt", (IMAGENET,), _prompts(), THREE,
    ),
    PaperTable(
        "table-S6", "Other architectures", "architecture", "ablation_architecture", ARCHITECTURES,
        (NONE, LINEAR_PROBE, RVPT), THREE, rows=("place", "method"), beyond="model",
    ),
    PaperTable(
        "table-S7", "Cost of a defense", "main", "cost", (IMAGENET, OXFORDPETS), (CLEANCLIP, RVPT),
        metrics=("seconds", "peak_memory_mb", "tunable", "samples"), rows=("method", "place"), columns=("metric",),
    ),
    PaperTable(
        "table-PA", "Accuracy on triggered images of other classes (version 3)", "main", "poisoned_accuracy",
        (IMAGENET,), (Method("Clean model", CLEAN_MODEL), NONE, CLEANCLIP, LINEAR_PROBE, RVPT), THREE,
        metrics=("PA",),
    ),
)  # fmt: skip
PAPER_PLACES = {place.key for table in TABLES for place in table.places}
