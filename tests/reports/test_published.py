"""The paper's numbers in the package, against its text."""

import pytest

from bench.core.errors import BenchError
from bench.papers import find_version, papers
from reports.paper.published import published

PAPER = papers["rvpt"]


def one(source: str, table: str, **where: str) -> float:
    """The one number that fits."""
    rows = published(PAPER, source)
    rows = rows[rows["table"] == table]
    for column, value in where.items():
        rows = rows[rows[column] == value]
    assert len(rows) == 1, f"{len(rows)} numbers fit"
    return float(rows["value"].iloc[0])


@pytest.mark.parametrize(
    ("value", "table", "where"),
    [
        (1.84, "main", "imagenet rvpt badnet ASR"),
        (58.09, "main", "imagenet rvpt badnet CA"),
        (67.53, "main", "imagenet cleanclip badclip ASR"),
        (2.97, "main", "oxfordpets rvpt blended ASR"),
        (93.33, "main", "caltech101 rvpt wanet CA"),
        (12.84, "cross_domain", "imagenet-a rvpt badclip ASR"),
        (0.54, "combination", "imagenet cleanclip+rvpt badnet ASR"),
    ],
)
def test_numbers_are_those_of_the_papers_text(value: float, table: str, where: str) -> None:
    names = dict(zip(("dataset", "defense", "attack", "metric"), where.split(), strict=True))
    assert one("v1", table, **names) == value


def test_variants_and_models_are_told_apart() -> None:
    cell = {"attack": "blended", "metric": "ASR"}
    assert one("v1", "ablation_distance", variant="l2", **cell) == 77.44
    assert one("v1", "ablation_prompt", variant="###### <CLS>", **cell) == 0.01
    assert one("v1", "ablation_architecture", model="ViT-L-14", defense="linear_probe", **cell) == 0.65
    assert one("v1", "emerging_target", variant="without_target_class", dataset="oxfordpets", **cell) == 0.03


def test_the_undefended_row_is_a_name_not_a_missing_value() -> None:
    assert one("v1", "main", dataset="imagenet", defense="none", attack="badclip", metric="ASR") == 99.83
    assert not published(PAPER, "v1").isna().any().any()


def test_perturbation_resistivity_has_the_suites_perturbations_and_defenses() -> None:
    cell = {"perturbation": "gaussian-0.01", "metric": "PR_ratio"}
    assert one("v1", "perturbation_resistivity", defense="clean_model", **cell) == 0.572
    assert one("v1", "perturbation_resistivity", defense="rvpt", variant="rvpt_1shot", **cell) == 0.942
    assert one("v1", "perturbation_resistivity", variant="supervised_vit", target="banana", **cell) == 0.959


def test_costs_are_in_the_units_of_the_cards() -> None:
    # 'CleanCLIP 4:46:21, 13854 MB, 126 M, 100K', 'RVPT on OxfordPets 2:19, ..., 0.34 M, 0.6 K'
    assert one("v1", "cost", defense="cleanclip", metric="seconds") == 4 * 3600 + 46 * 60 + 21
    assert one("v1", "cost", defense="cleanclip", metric="samples", dataset="imagenet") == 100_000
    assert one("v1", "cost", dataset="oxfordpets", metric="tunable") == pytest.approx(340_000)
    assert one("v1", "cost", dataset="oxfordpets", metric="samples") == pytest.approx(600)


def test_poisoned_accuracy_is_version_3s() -> None:
    assert one("v3", "poisoned_accuracy", defense="clean_model", attack="badnet", metric="PA") == 58.29
    assert "PA" not in set(published(PAPER, "v1")["metric"])


def test_counts() -> None:
    tables = published(PAPER, "v1").groupby("table").size()
    # Table 1 has 27 cells (Linear Probe is not applied to TrojVQA), table 2 has 24: ASR and CA of each.
    assert tables["main"] == 2 * (27 + 24)
    assert tables["cross_domain"] == 2 * 4 * 9
    assert tables["perturbation_resistivity"] == 9 * 5
    assert (len(published(PAPER, "v1")), len(published(PAPER, "v3"))) == (407, 345)


def test_an_unknown_version_is_told() -> None:
    with pytest.raises(BenchError, match=r"unknown version of the paper 'v2'.*\n?.*Known: v1, v3"):
        find_version("v2")
