"""The command line as a user meets it: what it prints, and its exit codes."""

from pathlib import Path

import pytest
from command import bench

from bench import attacks, defenses
from bench.cli import RUN_EXAMPLES, screen
from bench.core.registry import load_plugins
from bench.experiment.settings import resolve
from bench.matrix.runner import Report
from bench.papers import chains, find_recipe
from reports.command import flat


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("run --attacks badnett", "unknown attack 'badnett'. Did you mean 'badnet'?"),
        ("run --defenses rvtp", "unknown defense 'rvtp'. Did you mean 'rvpt'?"),
        ("run --defenses vpt+rvtp", "unknown defense 'rvtp'. Did you mean 'rvpt'?"),
        ("run --auditors colapse", "unknown auditor 'colapse'. Did you mean 'collapse'?"),
        ("run --auditors zero_shot", "unknown auditor 'zero_shot'."),
        ("run --auditors ,", "--auditors names none. Known: collapse, decree"),
        ("run --preset minni", "unknown preset 'minni'. Did you mean 'mini'?"),
        ("run --dataset wrld", "unknown dataset 'wrld'. Did you mean 'world'?"),
        ("run --set rvpt.alhpa=3", "unknown setting rvpt.alhpa. Did you mean 'alpha'?"),
        ("run --set rvtp.alpha=3", "unknown setting 'rvtp'. Did you mean 'rvpt'?"),
        ("run --set rvpt.alpha=-3", "setting rvpt.alpha = -3: Input should be greater than or equal to 0"),
        ("run --set rvpt.alpha", "write key=value, such as --set rvpt.alpha=3"),
        ("run --set poison.epoch=3", "unknown setting poison.epoch. Did you mean 'epochs'?"),
        ("run --set zero_shot.perturbations=[blurr]", "unknown perturbation 'blurr'"),
        ("run --target bananna", "unknown target class 'bananna'. Did you mean 'banana'?"),
        ("run --seeds one", "--seeds one: write whole numbers, such as --seeds 0,1,2"),
        ("run --dataset folder", "Give --data-root DIR"),
        ("run --dataset folder --data-root nowhere", "there is no folder nowhere"),
        ("run --data-root somewhere", "--data-root needs --dataset NAME"),
        ("run --device cuda:77", "--device cuda:77"),
        ("run --config nowhere.yaml", "--config nowhere.yaml: no such file. Give a YAML file of settings; `bench show"),
        ("run --set rvpt=3", "setting rvpt = 3: write rvpt.KEY=VALUE. `bench show rvpt`"),
        ("run --attacks ,", "--attacks names none. `bench list attacks` lists them; `--attacks all` takes all."),
        ("run --defenses ,", "--defenses names none. `bench list defenses` lists them"),
        ("run --seeds -1", "setting seeds.0 = -1: Input should be greater than or equal to 0"),
        ("run --seeds 9223372036854775808", "setting seeds.0 = 9223372036854775808: Input should be less than"),
        ("run --set model.std=[0,0,0]", "setting model.std.0 = 0: Input should be greater than 0"),
        ("run --model ViT-B-33", "unknown model 'ViT-B-33'. Did you mean 'ViT-B-32'?"),
        ("run --device gpu", "--device gpu is not here. Use --device auto. (Expected one of cpu,"),
        ("run --plugin nowhere.py", "--plugin nowhere.py: no such Python file"),
        ("run --model ViT-B-32", "add --pretrained openai, or --checkpoint FILE"),
        ("run --checkpoint nowhere.pt", "nowhere.pt"),
        ("list attackers", "unknown kind 'attackers'. Did you mean 'attacks'?"),
        ("list paper", "unknown kind 'paper'. Did you mean 'papers'?"),
        ("show badnett", "unknown method 'badnett'. Did you mean 'badnet'?"),
        ("show author", "unknown method 'author'. Did you mean 'authors'?"),
        ("run --recipe author", "unknown recipe 'author'. Did you mean 'authors'?"),
        ("run --suite alhpa", "unknown suite 'alhpa'. Did you mean 'alpha'?"),
        (
            "run --paper v3",
            "--paper v3 goes with --preset paper-imagenet or paper-caltech101 or paper-oxfordpets, not with mini",
        ),
        ("run --preset paper-imagenet --paper v2 --dry-run", "unknown version of the paper 'v2'"),
        ("run --set against.badnet.cleanclip.lr=1 --dry-run", "unknown setting against.badnet.cleanclip.lr"),
        ("run --preset paper-imagenet --target bananna --dry-run", "unknown target class 'bananna'"),
        ("report nowhere", "nowhere holds no results. `bench run --out nowhere` makes some."),
    ],
)
def test_wrong_input_is_a_message_and_exit_code_2(
    words: str, message: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = bench(capsys, monkeypatch, *words.split())
    assert (code, message in err) == (2, True), err
    assert "Traceback" not in err


def test_help_shows_options_in_groups_and_examples(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = bench(capsys, monkeypatch, "run", "--help")
    groups = ["What to run", "Model", "Data", "Settings", "Execution", "Dry run"]
    places = [out.index(f"─ {group} ─") for group in groups]
    assert code == 0 and places == sorted(places)
    told = " ".join(out.split())
    assert all(example in told for example in RUN_EXAMPLES)


@pytest.mark.parametrize("command", ["triggers", "pretrain"])
def test_options_that_commands_share_are_in_the_same_groups(
    command: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, out, _ = bench(capsys, monkeypatch, command, "--help")
    data = out[out.index("─ Data ─") : out.index("─ Settings ─")]
    assert "--pairs" in data and "--preset" not in data


def test_brackets_in_what_a_user_wrote_are_no_markup(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "Got unexpected extra argument(s) ([red]x)" in bench(capsys, monkeypatch, "run", "[red]x")[2]
    assert "error: [red]x holds no results." in bench(capsys, monkeypatch, "report", "[red]x")[2]


@pytest.mark.parametrize(
    "kind", ["attacks", "defenses", "metrics", "datasets", "presets", "papers", "recipes", "models"]
)
def test_list(kind: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = bench(capsys, monkeypatch, "list", kind)
    expected = {"attacks": "wanet", "defenses": "rvpt", "metrics": "PR_ratio", "datasets": "folder"}
    expected |= {"papers": "Repulsive Visual Prompt Tuning", "recipes": "authors  what the authors' code does"}
    assert code == 0 and expected.get(kind, "mini") in out


def test_show_tells_source_defaults_and_ranges(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = bench(capsys, monkeypatch, "show", "rvpt")
    assert code == 0
    assert "rvpt.py" in out and "alpha" in out and "2.0" in out and ">= 0" in out
    assert "It may take: class names, shots." in out


def test_show_tells_what_a_recipe_sets(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = bench(capsys, monkeypatch, "show", "authors")
    rows = {words[0]: words[1:3] for line in out.splitlines() if len(words := line.split()) > 2}
    assert code == 0 and "authors (recipe): what the authors' code does" in out
    assert rows["badnet.overflow"] == ["wrap", "clip"] and rows["poison.warmup_steps"] == ["10000", "50"]
    # As many as it sets.
    assert set(flat(find_recipe("authors").settings)) <= rows.keys()


@pytest.mark.parametrize(
    ("options", "published"),
    [
        ("--preset paper-imagenet", "rvpt/v1"),
        ("--preset paper-oxfordpets --paper v3 --suite main", "rvpt/v3"),
        ("--preset mini", None),
    ],
)
def test_a_run_at_a_papers_preset_ends_with_the_published_numbers_beside(
    options: str, published: str | None, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("bench.matrix.runner.run_matrix", lambda *_: Report(1, 0, {}, shown=True))
    monkeypatch.setattr("bench.results.folder.ResultsFolder", lambda out: out)
    monkeypatch.setattr("reports.report.write_report", lambda folder, version: f"{folder} beside {version}")
    code, out, _ = bench(capsys, monkeypatch, "run", *options.split(), "--out", str(tmp_path))
    assert code == 0 and f"beside {published}" in " ".join(out.split())


def test_dry_run_prints_cells_and_makes_nothing(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = ["run", "--preset", "smoke", "--out", str(tmp_path / "out"), "--dry-run", "--seeds", "0,1"]
    code, out, _ = bench(capsys, monkeypatch, *words)
    assert code == 0
    assert "30 cells" in out and "backdoors: 6, of which 6 to make" in out
    assert not (tmp_path / "out").exists()


def test_dry_run_tells_what_an_attack_lacks(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "pairs.csv").write_text("image,caption\na.png,a cat\n")
    words = ["run", "--preset", "smoke", "--dry-run", "--attacks", "label_consistent", "--pairs"]
    code, out, _ = bench(capsys, monkeypatch, *words, str(tmp_path / "pairs.csv"))
    assert code == 0 and "missing: label_consistent: no caption names the target; give --pairs" in " ".join(out.split())


def test_a_config_that_is_no_text_is_an_error(capsys, monkeypatch, tmp_path):
    (tmp_path / "settings.yaml").write_bytes(b"\xff\xfe\x00")
    code, _, err = bench(capsys, monkeypatch, "run", "--config", str(tmp_path / "settings.yaml"), "--dry-run")
    assert code == 2 and "settings.yaml cannot be read as text: 'utf-8' codec can't decode byte 0xff" in err


@pytest.mark.parametrize(("kind", "left_out"), [("attacks", "benign"), ("defenses", "distill")])
def test_the_list_says_what_all_leaves_out(
    kind: str, left_out: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screen, "width", 400)
    code, out, _ = bench(capsys, monkeypatch, "list", kind)
    marked = {line.split()[0] for line in out.splitlines() if "not in all" in line}
    assert code == 0 and left_out in marked
    load_plugins()
    assert not marked & set(getattr(resolve("smoke", None, {kind: ("all",)}), kind))


def test_all_beside_other_names_is_all_and_these(capsys, monkeypatch):
    names = "--attacks", "all,badnet", "--defenses", "vpt+rvpt,all"
    code, out, _ = bench(capsys, monkeypatch, "run", *names, "--dry-run")
    # Other tests of this process may have registered methods of their own.
    alone = [name for name in defenses if defenses[name].alone]
    rows = len(alone) + len(chains()) + len(("vpt+rvpt", "clean_model"))
    assert code == 0 and f"{sum(attacks[name].in_all for name in attacks) * rows} cells" in out


def test_auditors_stand_beside_the_other_tasks_without_a_row_of_the_clean_model(capsys, monkeypatch):
    options = (
        "--preset",
        "smoke",
        "--attacks",
        "badnet,benign",
        "--defenses",
        "none,rvpt",
        "--auditors",
        "weights,decree",
    )
    code, out, _ = bench(capsys, monkeypatch, "run", *options, "--dry-run")
    zero_shot, auditors = 2 * len(("clean_model", "none", "rvpt")), 2 * 2 * len(("none", "rvpt"))
    assert code == 0 and f"{zero_shot + auditors} cells" in out
