"""Suites, variants and the paper's presets: which cells they declare, what they share, what they would cost."""

import json
from pathlib import Path

import pytest
from command import bench
from rich.console import Console
from tiny import TINY

from bench.core.attack import Facing
from bench.core.errors import BenchError
from bench.core.registry import load_plugins
from bench.experiment.resources import open_resources
from bench.experiment.settings import BASE, Variants, overlay, resolve
from bench.experiment.suites import suite_settings, variants_of
from bench.matrix.estimate import estimate
from bench.matrix.plan import Fingerprints, Plan, make_plan
from bench.matrix.runner import cells_of, run_matrix
from bench.models import ModelSettings, sizes
from bench.papers import find_suite, papers, suites
from bench.results.folder import ResultsFolder
from bench.results.run_file import label, write_run
from bench.results.store import CACHE
from bench.training import eda
from defenses.rvpt import RVPT
from reports.paper.published import published

PRESETS = ("mini", "paper-imagenet", "paper-caltech101", "paper-oxfordpets")
QUIET = Console(quiet=True)
# Suites by the tables of the paper whose variants they make.
TABLES = {
    "emerging-target": "emerging_target",
    "cross-dataset": "cross_dataset",
    "distance": "ablation_distance",
    "permutation": "ablation_permutation",
    "prompt": "ablation_prompt",
}


@pytest.fixture(autouse=True, scope="module")
def _plugins() -> None:
    load_plugins()


def declared(suite: str, preset: str = "mini", *assignments: str, **flags) -> tuple[Variants, dict[str, str]]:
    return variants_of(resolve(preset, None, flags, assignments, suite=suite_settings(suite)), suite)


def plan_of(variants: Variants) -> Plan:
    """A plan where fingerprints are names."""
    prints = {
        name: Fingerprints(run.model.label, "pairs", run.dataset, run.tuned_on or run.dataset, run.tested_on)
        for name, run in variants.items()
    }
    return make_plan(variants, prints)


def count(plan: Plan, kind: str) -> int:
    return sum(node.kind == kind for node in plan.nodes.values())


@pytest.mark.parametrize("suite", suites())
@pytest.mark.parametrize("preset", PRESETS)
def test_every_suite_has_a_plan_at_every_scale_and_says_what_it_leaves_out(suite: str, preset: str) -> None:
    variants, left_out = declared(suite, preset)
    names = set(find_suite(suite).declared(preset == "mini"))
    assert set(variants) - {BASE} == names - set(left_out)
    assert all(reason for reason in left_out.values())
    assert {cell.defense for cell in plan_of(variants).cells} >= set(find_suite(suite).defenses)


@pytest.mark.parametrize(("suite", "table"), TABLES.items())
def test_variants_are_called_as_the_paper_is_published(suite: str, table: str) -> None:
    numbers = published(papers["rvpt"], "v1")
    names = set(numbers[numbers["table"] == table]["variant"])
    assert set(declared(suite, "paper-caltech101")[0]) - {BASE} == names


@pytest.mark.parametrize(
    ("suite", "preset", "assignment", "expected"),
    [
        (
            "depth",
            "paper-caltech101",
            "seeds=[0]",
            {"depth=24": "last_blocks = 24, but this image tower has 12 blocks"},
        ),
        ("shots", "smoke", "world.train_per_class=32", {"shots=64": "64 images per class, and there are 32"}),
        ("cross-dataset", "mini", "seeds=[0]", {"tuned_elsewhere": "take a preset of another one"}),
        ("cross-dataset", "paper-imagenet", "seeds=[0]", {"tuned_elsewhere": "take a preset of another one"}),
        ("pr", "paper-imagenet", "seeds=[0]", {"supervised_vit": "bench measures CLIPs"}),
    ],
)
def test_what_cannot_be_is_left_out_by_name(suite: str, preset: str, assignment: str, expected: dict) -> None:
    variants, left_out = declared(suite, preset, assignment)
    for name, reason in expected.items():
        assert name not in variants and reason in left_out[name]


def test_flags_narrow_a_suite_and_variants_win_over_set() -> None:
    variants, left_out = declared("alpha", "mini", "rvpt.alpha=3", attacks=("badnet",))
    assert (variants[BASE].method("rvpt")["alpha"], variants["alpha=1"].method("rvpt")["alpha"]) == (3, 1)
    assert {cell.attack for cell in plan_of(variants).cells} == {"badnet"}
    variants, left_out = declared("cross-dataset", "paper-caltech101", defenses=("rvpt",))
    assert set(variants) == {BASE, "tuned_elsewhere"}
    assert left_out == {"tuned_on_pairs": "none of its defenses is among --defenses"}


def test_a_probe_of_the_whole_training_set_asks_for_no_shots() -> None:
    variants, left_out = declared("margin", "mini", "linear_probe.shots=null", defenses=("linear_probe", "rvpt"))
    assert len(variants) == 6 and not left_out


def test_a_variant_that_is_the_base_shares_its_nodes_and_has_cells_of_its_own() -> None:
    plan = plan_of(declared("alpha", "paper-imagenet", attacks=("badnet",))[0])
    nodes = {(cell.variant, cell.defense): cell.node for cell in plan.cells}
    assert nodes["alpha=2", "rvpt"] == nodes[BASE, "rvpt"] != nodes["alpha=1", "rvpt"]
    assert (count(plan, "backdoor"), count(plan, "defense")) == (1, 7)
    undefended = [cell.variant for cell in plan.cells if cell.defense in ("none", "clean_model")]
    assert undefended == [BASE, BASE]


def test_another_domain_remakes_the_evaluations_alone_and_needs_no_name() -> None:
    variants, _ = declared("cross-domain", "paper-imagenet")
    plan = plan_of(variants)
    # 3 attacks, cleanclip and rvpt; on five data sets the clean model, none and both defenses.
    assert [count(plan, kind) for kind in ("backdoor", "defense", "evaluation")] == [3, 6, 60]
    assert {label(name, variants) for name in variants} == {BASE}
    assert {run.tested_on for run in variants.values()} == {"imagenet", *find_suite("cross-domain").variants}


def test_tuning_on_another_data_set_keeps_the_backdoor() -> None:
    variants, _ = declared("cross-dataset", "paper-caltech101", attacks=("badnet",))
    plan = plan_of(variants)
    nodes = {(cell.variant, cell.defense): plan.nodes[cell.node] for cell in plan.cells if cell.node}
    own, other = nodes[BASE, "rvpt"], nodes["tuned_elsewhere", "rvpt"]
    assert own.needs[0] == other.needs[0] and own.needs[1] != other.needs[1]
    assert own.inputs["dataset"] == other.inputs["dataset"] == "caltech101"
    assert plan.nodes[other.needs[1]].inputs["dataset"] == "imagenet"
    assert label("tuned_elsewhere", variants) == "tuned_elsewhere"


def test_the_embedded_world_has_variants_of_its_own() -> None:
    domains, _ = declared("cross-domain", "mini", attacks=("badnet",))
    assert {run.tested_on for run in domains.values()} == {"world", "world-v2", "world-a", "world-r", "world-sketch"}
    towers, _ = declared("architecture", "mini", attacks=("badnet",))
    assert {run.model.name for run in towers.values()} == {"mini", "mini-p8", "mini-deep"}
    for preset, dataset in {"mini-objects": "world-objects", "mini-flowers": "world-flowers"}.items():
        elsewhere, left_out = declared("cross-dataset", preset, attacks=("badnet",))
        assert not left_out and elsewhere["tuned_elsewhere"].tuned_on == "world"
        assert {run.dataset for run in elsewhere.values()} == {dataset}
        assert plan_of(elsewhere).cells


@pytest.mark.parametrize("written", ["4e-4", "4E-4", "4.0e-4", "4.e-4", "0.0004"])
def test_a_number_is_a_number_however_it_is_written(written: str) -> None:
    run = resolve("mini", None, {}, [f"cleanclip.learning_rate={written}", f"poison.learning_rate={written}"])
    assert run.method("cleanclip")["learning_rate"] == run.poison.learning_rate == 0.0004
    assert resolve("mini", None, {}, ["target=1e4c"]).target == "1e4c"


def test_a_preset_starts_from_the_one_that_it_names() -> None:
    mini, objects = resolve("mini"), resolve("mini-objects")
    assert (objects.dataset, objects.target) == ("world-objects", "gear")
    assert objects.model_copy(update={"dataset": mini.dataset, "target": mini.target}) == mini
    dose = resolve("mini-label-consistent")
    assert (dose.poison.count, dose.poison.pairs) == (1600, mini.poison.pairs), "inner settings are kept, too"
    changed = mini.method("label_consistent") | {"learning_rate": 1e-3}
    assert dose.method("label_consistent") == changed != mini.method("label_consistent")


@pytest.mark.parametrize("name", ["mini-p8", "mini-deep"])
def test_the_settings_of_mini_suit_the_other_embedded_towers(name: str) -> None:
    base = resolve(name, None, {"attacks": ("all",), "defenses": ("all",)})
    assert base.model.name == name
    assert plan_of({BASE: base}).cells
    for defense in base.single_defenses:
        assert not base.defense(defense).unsuited(Facing(sizes=sizes(base.model)))
    mini, other = (sizes(ModelSettings(name=model)) for model in ("mini", name))
    assert mini is not None and other is not None
    assert (other.tokens > mini.tokens, other.blocks > mini.blocks) == (name == "mini-p8", name == "mini-deep")


def test_the_papers_presets() -> None:
    first, third = (resolve("paper-imagenet", paper=paper) for paper in ("v1", "v3"))
    assert (first.poison.learning_rate, third.poison.learning_rate) == (1e-5, 1e-6)
    assert (first.method("cleanclip")["pairs"], third.method("cleanclip")["pairs"]) == (100_000, 250_000)
    assert third.method("wanet") == {"learning_rate": None}
    assert [resolve(name).target for name in PRESETS] == ["banana", "banana", "accordion", "samoyed"]
    plan = plan_of({BASE: resolve("paper-imagenet", None, {"defenses": ("cleanclip",)})})
    rates = {
        n.attack: n.inputs["defense"]["settings"]["learning_rate"]
        for n in plan.nodes.values()
        if n.chain == ("cleanclip",) and n.kind == "defense"
    }
    assert {attack for attack, rate in rates.items() if rate == 3e-6} == {"wanet", "issba"}
    assert rates["badnet"] == 5e-6


def test_a_dry_run_needs_neither_weights_nor_data(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(eda, "wordnet", lambda: None)
    words = ["run", "--preset", "paper-imagenet", "--suite", "main", "--dry-run", "--out"]
    code, out, _ = bench(capsys, monkeypatch, *words, str(tmp_path / "out"))
    assert code == 0
    out = " ".join(out.split())
    assert "35 cells" in out and "backdoors: 7, of which 7 to make" in out and "h of one GPU" in out
    assert "missing: weights of ViT-B-32 openai are not on this machine: the run downloads them." in out
    assert "no image-text pairs of its own. Give --pairs FILE, or a folder; `bench data get cc3m --data-root" in out
    assert "missing: cleanclip.synonyms = wordnet needs nltk and its corpus: pip install" in out
    assert not (tmp_path / "out").exists()


def test_data_are_looked_for_before_weights_are_downloaded(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(eda, "wordnet", lambda: lambda _: [])
    monkeypatch.setattr("bench.experiment.resources.load_model", lambda *_: pytest.fail("the model was loaded"))
    (tmp_path / "pairs.csv").write_text("image,caption\na.jpg,a banana\n")
    words = ["run", "--preset", "paper-imagenet", "--suite", "main", "--pairs", str(tmp_path / "pairs.csv")]
    words += ["--data-root", str(tmp_path / "none"), "--device", "cpu", "--out", str(tmp_path / "out")]
    code, _, error = bench(capsys, monkeypatch, *words)
    assert code == 2
    assert "there is no folder" in error and "`bench data get imagenet --data-root DIR` downloads it, or says" in error


def test_costs_are_those_that_the_paper_measured() -> None:
    run = resolve("paper-imagenet", None, {"attacks": ("badnet",), "defenses": ("cleanclip", "rvpt")})
    nodes = {"+".join(n.chain) or n.kind: n for n in plan_of({BASE: run}).nodes.values() if n.kind != "evaluation"}
    costs = {name: estimate([node], {BASE: run})[node.kind] for name, node in nodes.items()}
    # Table S7: 4:46:21 and 45:05; poisoning is 5 epochs of five times the pairs in one view: 2.5 times CleanCLIP's.
    assert costs["cleanclip"].seconds == pytest.approx(17181)
    assert costs["rvpt"].seconds == pytest.approx(2705)
    assert costs["backdoor"].seconds == pytest.approx(17181 * 2.5 / 2)
    assert estimate([nodes["rvpt"]], {BASE: run}, speed=2)["defense"].seconds == pytest.approx(2705 / 2)
    # 9 blocks of 50 prompts of 768 numbers, and 151,277,313 parameters, of 4 bytes.
    assert costs["rvpt"].size == 345_600 * 4
    assert costs["backdoor"].size == pytest.approx(151_277_313 * 4, rel=0.01)
    works = {name: sizes(ModelSettings(name=name, pretrained="openai")) for name in ("ViT-B-32", "ViT-L-14")}
    assert works["ViT-L-14"].work / works["ViT-B-32"].work == pytest.approx(18.8, rel=0.01)  # type: ignore[union-attr]


def test_cells_of_other_variants_stay_and_those_of_other_settings_leave(tmp_path: Path) -> None:
    def write(suite: str, *assignments: str) -> list[str]:
        variants, _ = declared(suite, "mini", *assignments, attacks=("badnet",), defenses=("rvpt",))
        write_run(variants, cells_of(plan_of(variants), variants), tmp_path, (), lambda _: None)
        written = ResultsFolder(tmp_path).run
        assert {cell.settings for cell in written.cells} == set(written.variants)
        return sorted({cell.variant for cell in written.cells})

    margins = ["margin=-1", "margin=0", "margin=0.1", "margin=0.3", "margin=0.5"]
    assert write("margin") == ["", *margins]
    assert write("distance") == ["", "cosine", "l1", "l2", *margins]
    assert write("distance", "rvpt.epochs=2") == ["", "cosine", "l1", "l2"]


def test_variants_run_together_and_share_what_is_open(tmp_path: Path) -> None:
    flags = {"attacks": ("badnet",), "defenses": ("none", "rvpt")}
    base = resolve("smoke", None, flags, (*TINY, "zero_shot.perturbations=[]"))
    variants = {BASE: base, "alpha=0": overlay(base, {"rvpt": {"alpha": 0}, "defenses": ["rvpt"]})}
    resources_of = open_resources(variants, tmp_path / CACHE, "cpu")
    assert (
        resources_of[BASE].clip is resources_of["alpha=0"].clip
        and resources_of[BASE].train is resources_of["alpha=0"].train
    )

    report = run_matrix(variants, tmp_path, (), QUIET)

    # A trigger, a backdoor, two defenses; the clean model, none, and twice rvpt.
    assert (report.made, report.failures) == (8, {})
    results = ResultsFolder(tmp_path).results
    assert set(zip(results["variant"], results["defense"], strict=True)) == {
        ("", "clean_model"), ("", "none"), ("", "rvpt"), ("alpha=0", "rvpt"),
    }  # fmt: skip
    logs = {
        json.loads(card.read_text())["label"]: "fr" in json.loads(card.read_text())["log"]
        for card in tmp_path.glob("artefacts/defense/*/card.json")
    }
    assert logs == {"defense badnet / rvpt, seed 0": True, "defense badnet / rvpt, alpha=0, seed 0": False}


def test_blocks_are_counted_from_the_input() -> None:
    assert RVPT(first_blocks=2).arrangement(4) == ([0, 1], [0, 1])
    assert RVPT(first_blocks=4, permutation="split").arrangement(12) == ([0, 1], [2, 3])
    with pytest.raises(BenchError, match="first_blocks = 5, but this image tower has 4 blocks"):
        RVPT(first_blocks=5).arrangement(4)
    with pytest.raises(BenchError, match="first_blocks = 2 goes with neither depth nor last_blocks"):
        RVPT(first_blocks=2, depth=1)
