"""Workers: what is made together, what waits for what, and workers that die."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from tiny import TINY

from bench.core.errors import BenchError
from bench.core.registry import load_plugins
from bench.core.victim import Delta
from bench.experiment.resources import Resources, open_resources
from bench.experiment.settings import BASE, RunSettings, resolve
from bench.matrix.job import make
from bench.matrix.plan import Node, Plan, make_plan, read_fingerprints
from bench.matrix.schedule import EVALUATIONS_PER_UNIT, Outcome, Schedule, WorkUnit, work_units
from bench.matrix.stages.trigger import make_trigger
from bench.matrix.workers import execute
from bench.results.store import CACHE, Store

# Defenses that change nothing. Each does what it is called if a file of that name lies beside the plug-in.
PLUGIN = """
import os, signal, time
from pathlib import Path
from bench import Defense, defense

HERE = Path(__file__).parent

def die():
    os.kill(os.getpid(), signal.SIGKILL)

@defense("dies_once")
class DiesOnce(Defense):
    def fit(self, victim, data):
        if (HERE / "dies_once").exists():
            (HERE / "dies_once").unlink()
            die()
        return victim

@defense("dies_always")
class DiesAlways(Defense):
    def fit(self, victim, data):
        if (HERE / "dies_always").exists():
            die()
        return victim

@defense("lingers")
class Lingers(Defense):
    def fit(self, victim, data):
        if (HERE / "lingers").exists():
            (HERE / "lingers").unlink()
            import ray
            (HERE / "lingering_on.tmp").write_text(ray.get_runtime_context().get_node_id())
            (HERE / "lingering_on.tmp").rename(HERE / "lingering_on")
            time.sleep(600)
        return victim

@defense("works_on")
class WorksOn(Defense):
    def fit(self, victim, data):
        (HERE / f"{os.getpid()}.worker").touch()
        time.sleep(3600)
        return victim
"""


def settings(*assignments: str, **flags) -> RunSettings:
    load_plugins()
    assignments = (*TINY, "zero_shot.perturbations=[flip, blended, trigger]", *assignments)
    return resolve("smoke", None, {"attacks": ("badnet",), **flags}, assignments)


def plan_of(run: RunSettings, out: Path) -> Plan:
    return make_plan({BASE: run}, {BASE: read_fingerprints(resources_of(run, out))})


def resources_of(run: RunSettings, out: Path) -> Resources:
    return open_resources({BASE: run}, out / CACHE, "cpu")[BASE]


def run_all(run: RunSettings, out: Path, workers: int = 1, plugins: tuple[Path, ...] = ()) -> dict[str, Outcome]:
    """Make all nodes that are not there."""
    with Store(out).locked():
        store, nodes = Store(out), plan_of(run, out).nodes.values()
        todo = [node for node in nodes if not store.has(node.kind, node.id)]
        return {o.node.label: o for o in execute(todo, {BASE: run}, out, "cpu", workers, plugins)}


def node(id: str, kind: str = "defense", needs: tuple[str, ...] = (), **inputs) -> Node:
    return Node(id=id, kind=kind, attack="badnet", seed=0, needs=needs, inputs=inputs)  # type: ignore[arg-type]


def evaluations(backdoor: str, count: int) -> list[Node]:
    return [
        node(f"{backdoor}-e{i}", "evaluation", (backdoor, f"{backdoor}-d{i}"), backdoor=backdoor, subject=str(i))
        for i in range(count)
    ]


def ids(unit: WorkUnit) -> list[str]:
    return [n.id for n in unit.nodes]


def test_evaluations_of_a_backdoor_are_one_unit_where_the_last_of_them_stands() -> None:
    first, second = evaluations("a", 2), evaluations("b", 2)
    nodes = [node("a", "backdoor"), first[0], node("a-d1"), first[1], node("b", "backdoor"), *second]
    assert [ids(unit) for unit in work_units(nodes)] == [["a"], ["a-d1"], ["a-e0", "a-e1"], ["b"], ["b-e0", "b-e1"]]


def test_no_unit_holds_more_evaluations_than_memory_should() -> None:
    units = work_units(evaluations("a", EVALUATIONS_PER_UNIT + 3))
    assert [len(unit.nodes) for unit in units] == [EVALUATIONS_PER_UNIT, 3]


def test_evaluations_on_other_images_are_another_unit() -> None:
    one, other = node("1", "evaluation", dataset="x"), node("2", "evaluation", dataset="y")
    assert [ids(unit) for unit in work_units([one, other])] == [["1"], ["2"]]


def test_a_unit_waits_for_all_it_needs_and_goes_on_without_those_that_failed() -> None:
    schedule = Schedule(
        [node("a", "backdoor"), node("a-d0", needs=("a",)), node("a-d1", needs=("a",)), *evaluations("a", 2)]
    )
    backdoor = schedule.next()
    assert backdoor and ids(backdoor) == ["a"] and schedule.next() is None
    schedule.ended(backdoor, {})
    first, second = schedule.next(), schedule.next()
    assert first and second and schedule.next() is None
    schedule.ended(first, {"a-d0": "broken"})
    assert schedule.next() is None, "the evaluations wait for the other defense"
    assert [o.node.id for o in schedule.blocked()] == ["a-e0"]
    schedule.ended(second, {})
    rest = schedule.next()
    assert rest and ids(rest) == ["a-e1"]


def test_what_needs_a_failed_node_is_not_tried_down_to_the_last() -> None:
    schedule = Schedule([node("a"), node("b", needs=("a",)), node("c", needs=("b",)), node("d")])
    first = schedule.next()
    assert first
    schedule.ended(first, {"a": "broken"})
    assert [(o.node.id, o.error.split(",")[0]) for o in schedule.blocked()] == [("b", "not tried"), ("c", "not tried")]
    last = schedule.next()
    assert last and ids(last) == ["d"]


def test_a_unit_whose_worker_died_is_tried_again_alone_after_all_others() -> None:
    schedule = Schedule([node("a"), *evaluations("a", 2), node("x"), node("y")])
    a = schedule.next()
    assert a and ids(a) == ["a"]
    schedule.ended(a, {})
    group, x = schedule.next(), schedule.next()
    assert group and x
    assert schedule.died(group) == [] and schedule.died(x) == []
    y = schedule.next()
    assert y and ids(y) == ["y"] and schedule.next() is None, "y is still at work"
    schedule.ended(y, {})
    order = []
    while unit := schedule.next():
        assert unit.alone and schedule.next() is None, "nothing starts beside it"
        order += ids(unit)
        outcomes = schedule.died(unit) if unit.nodes[0].id == "x" else schedule.ended(unit, {})
        assert [bool(o.error) for o in outcomes] == [unit.nodes[0].id == "x"]
    assert order == ["a-e0", "a-e1", "x"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunSettings, Path]:
    """A run in this process: four models of one backdoor, evaluated together."""
    out = tmp_path_factory.mktemp("made")
    run = settings(defenses=("none", "rvpt", "linear_probe", "rvpt+linear_probe"))
    outcomes = run_all(run, out)
    assert {label: o.error for label, o in outcomes.items() if o.error} == {}
    return run, out


def test_evaluations_one_by_one_give_the_same_files(made: tuple[RunSettings, Path], tmp_path: Path) -> None:
    run, out = made
    shutil.copytree(out / "artefacts", tmp_path / "artefacts")
    shutil.rmtree(tmp_path / "artefacts" / "evaluation")
    resources, store, own_store = resources_of(run, tmp_path), Store(out), Store(tmp_path)
    alone = [node for node in plan_of(run, out).nodes.values() if node.kind == "evaluation"]
    assert len(alone) == 5
    for evaluation in alone:
        assert store.evaluation_card(evaluation.id).seconds_shared_by == 5
        assert make((evaluation,), resources, own_store) == {}
        assert_same_observations(store, own_store, evaluation.id)


def assert_same_observations(first: Store, second: Store, id: str) -> None:
    one, other = (store.observations(id) for store in (first, second))
    assert one.facts == other.facts and list(one.tables) == list(other.tables) == ["predictions", "similarities"]
    for name in one.tables:
        pd.testing.assert_frame_equal(one[name], other[name], check_exact=True)


def test_cards_tell_what_a_defense_cost(made: tuple[RunSettings, Path]) -> None:
    run, out = made
    resources, store = resources_of(run, out), Store(out)
    cards = {
        node.chain: store.defense_card(node.id) for node in plan_of(run, out).nodes.values() if node.kind == "defense"
    }
    vision = resources.clip.config["model_cfg"]["vision_cfg"]
    classes, head = len(resources.train.classes), resources.clip.config["model_cfg"]["embed_dim"] + 1
    assert cards["rvpt",].tunable == vision["layers"] * 4 * vision["width"]
    assert cards["linear_probe",].tunable == cards["rvpt", "linear_probe"].tunable == classes * head
    assert all(card.samples == 2 * classes for card in cards.values())
    assert all(card.peak_memory_of == "process" and (card.peak_memory_mb or 0) > 100 for card in cards.values())


def test_tensors_that_a_defense_left_alone_are_not_counted() -> None:
    kept, changed = torch.ones(3), torch.ones(2, 2)
    before = Delta({"prompts": kept, "clip.a": changed})
    after = {"prompts": kept.clone(), "clip.a": changed + 1, "head.bias": torch.zeros(5)}
    assert Delta(after, {"blocks": list(range(9))}).tunable(before) == 4 + 5
    texts = {"clip.text.token_embedding.weight": torch.ones(7, 2)}
    assert Delta(after | texts, {}).tunable(before) == 4 + 5 + 14
    assert Delta(after | texts, {}).tunable(before, "token_embedding") == 14


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))],
)
def test_a_trigger_is_stored_wherever_its_tensors_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    from attacks.badnet import BadNet

    whole = torch.arange(24, dtype=torch.float32).view(2, 3, 4)

    def awkward(*_: object) -> dict[str, torch.Tensor]:
        transposed = whole.to(device).requires_grad_().transpose(0, 2)
        return {"transposed": transposed, "half": whole.to(device).bfloat16()[:, 1], "scalar": torch.tensor(3)}

    monkeypatch.setattr(BadNet, "prepare", awkward)
    run = settings(defenses=("none",))
    trigger = next(node for node in plan_of(run, tmp_path).nodes.values() if node.kind == "trigger")
    make_trigger(trigger, resources_of(run, tmp_path), Store(tmp_path))
    stored = Store(tmp_path).prepared(trigger.id)
    assert torch.equal(stored["transposed"], whole.transpose(0, 2)) and stored["half"].dtype == torch.bfloat16


def test_a_trigger_is_shared_by_recipes_of_poisoning(tmp_path: Path) -> None:
    variants = {BASE: settings(), "twice": settings("poison.epochs=2"), "other pairs": settings("poison.pairs=40")}
    opened = open_resources(variants, tmp_path / CACHE, "cpu")
    plan = make_plan(variants, {name: read_fingerprints(resources) for name, resources in opened.items()})
    backdoors = [node for node in plan.nodes.values() if node.kind == "backdoor"]
    triggers = {node.variant: node.needs for node in backdoors}
    assert len(backdoors) == 3
    assert triggers[BASE] == triggers["twice"] != triggers["other pairs"]


def test_a_group_that_fails_altogether_is_tried_one_by_one(
    made: tuple[RunSettings, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.builtin_tasks.zero_shot import ZeroShot

    run, out = made
    shutil.copytree(out / "artefacts", tmp_path / "artefacts")
    shutil.rmtree(tmp_path / "artefacts" / "evaluation")
    observe = ZeroShot.observe

    def tight(task, victims, case):
        if len(victims) > 1 or victims[0].head is not None:
            raise MemoryError("too many models")
        return observe(task, victims, case)

    monkeypatch.setattr(ZeroShot, "observe", tight)
    outcomes = run_all(run, tmp_path)
    failed = {label for label, o in outcomes.items() if o.error == "MemoryError: too many models"}
    assert failed == {f"evaluation badnet / {name}, seed 0" for name in ("linear_probe", "rvpt+linear_probe")}
    assert len(outcomes) == 5


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("mishaps") / "mishaps.py"
    file.write_text(PLUGIN)
    load_plugins((file,))
    return file


@pytest.mark.slow
def test_a_dying_worker_takes_no_healthy_node_with_it(plugin: Path, tmp_path: Path) -> None:
    run = settings("zero_shot.perturbations=[]", defenses=("dies_once", "dies_always"))
    for flag in ("dies_once", "dies_always"):
        (plugin.parent / flag).touch()
    outcomes = run_all(run, tmp_path, workers=2, plugins=(plugin,))
    (plugin.parent / "dies_always").unlink()
    assert not (plugin.parent / "dies_once").exists(), f"no worker died: {outcomes}"
    errors = {label: o.error for label, o in outcomes.items() if o.error}
    assert errors.keys() == {f"{kind} badnet / dies_always, seed 0" for kind in ("defense", "evaluation")}
    assert "died again, with nothing else at work" in errors["defense badnet / dies_always, seed 0"]
    assert errors["evaluation badnet / dies_always, seed 0"].startswith("not tried")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_a_run_that_is_killed(how: signal.Signals, tmp_path: Path) -> None:
    file = tmp_path / "mishaps.py"
    file.write_text(PLUGIN)
    tiny = [word for assignment in (*TINY, "zero_shot.perturbations=[]") for word in ("--set", assignment)]
    command = ["-m", "bench.cli", "run", "--preset", "smoke", "--attacks", "badnet", "--out", str(tmp_path / "out")]
    command += ["--defenses", "works_on", "--seeds", "0,1", "--workers", "2", "--plugin", str(file), *tiny]
    returncode, printed = kill(command, how, tmp_path)
    if how == signal.SIGTERM:
        assert returncode == 130 and printed.endswith("the same command goes on from there.\n")


# Makes a node on two GPUs, with the CPU in their place.
ON_TWO_GPUS = """
import os, signal, time
from pathlib import Path
from bench.core.registry import load_plugins
from bench.experiment.settings import resolve
from bench.matrix.multi_gpu import make_on_gpus

def make(nodes, resources, store):
    Path(f"{os.getpid()}.worker").touch()
    time.sleep(3600)

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    load_plugins()
    make_on_gpus(make, None, resolve("smoke", None, {}, ("execution.gpus=2",)), Path("out"), "cpu")
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_processes_of_several_gpus_end_with_a_run_that_is_killed(how: signal.Signals, tmp_path: Path) -> None:
    file = tmp_path / "on_two_gpus.py"
    file.write_text(ON_TWO_GPUS)
    kill([str(file)], how, tmp_path)


def kill(command: list[str], how: signal.Signals, folder: Path) -> tuple[int, str]:
    """Kill a Python command as soon as a process of it makes ID.worker in `folder`, and wait until all have ended.

    Returns:
        Its exit code, and what it printed.
    """
    code = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(code), os.environ.get("PYTHONPATH", "")])}
    with subprocess.Popen(
        [sys.executable, *command], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    ) as run:
        while not (started := list(folder.glob("*.worker"))):
            assert run.poll() is None, run.stdout and run.stdout.read()
            time.sleep(0.1)
        run.send_signal(how)
        # Until all processes have closed their output; the time is for a failure alone.
        printed, _ = run.communicate(timeout=300)
    for worker in (int(name.stem) for name in started):
        while _alive(worker):
            time.sleep(0.1)
    return run.returncode, printed


def _alive(pid: int) -> bool:
    """Whether a process works; a dead one that its parent has not yet taken note of does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def test_ray_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(BenchError, match=r"pip install 'clip-backdoor-bench\[ray\]'"):
        run_all(settings("execution.executor=ray", defenses=("none",)), tmp_path)


@pytest.fixture(scope="module")
def cluster():
    """Ray as a cluster of two machines with a core each, beside a head without; all of them this one."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'clip-backdoor-bench[ray]'")
    with pytest.MonkeyPatch.context() as patch:
        # Ray writes no token into the home folder, and sends no statistics.
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]))
        import ray
        from ray.cluster_utils import Cluster

        size = {"object_store_memory": 80 * 2**20}
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **size})
        for _ in range(2):
            cluster.add_node(num_cpus=1, **size)
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="module")
def local(plugin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("local")
    assert not [o for o in run_all(on_ray("local"), out, plugins=(plugin,)).values() if o.error]
    return out


def on_ray(executor: str = "ray") -> RunSettings:
    return settings(f"execution.executor={executor}", defenses=("none", "dies_once", "lingers", "linear_probe"))


def assert_same_numbers(first: Path, second: Path) -> None:
    folders = sorted((first / "artefacts" / "evaluation").iterdir())
    assert len(folders) == 5
    for folder in folders:
        assert_same_observations(Store(first), Store(second), folder.name)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_ray_tries_a_unit_again_whose_process_was_killed(local: Path, plugin: Path, tmp_path: Path) -> None:
    (plugin.parent / "dies_once").touch()
    outcomes = run_all(on_ray(), tmp_path, plugins=(plugin,))
    assert not (plugin.parent / "dies_once").exists(), "no process was killed"
    assert {label: o.error for label, o in outcomes.items() if o.error} == {}
    assert_same_numbers(local, tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_ray_says_what_no_machine_has(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="a unit asks for 1 CPU, 2 GPU, and none of the 3 machines"):
        run_all(settings("execution.executor=ray", "execution.gpu_share=2", defenses=("none",)), tmp_path)


@pytest.mark.slow
def test_ray_goes_on_without_a_lost_machine(cluster, local: Path, plugin: Path, tmp_path: Path) -> None:
    import threading
    import time

    where = plugin.parent / "lingering_on"

    def lose() -> None:
        deadline = time.monotonic() + 300
        while not where.exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        machine = next(n for n in cluster.list_all_nodes() if n.node_id == where.read_text())
        cluster.remove_node(machine, allow_graceful=False)

    (plugin.parent / "lingers").touch()
    thief = threading.Thread(target=lose)
    thief.start()
    outcomes = run_all(on_ray(), tmp_path, plugins=(plugin,))
    thief.join()
    assert len(cluster.list_all_nodes()) == 2, "no machine was lost"
    assert {label: o.error for label, o in outcomes.items() if o.error} == {}
    assert_same_numbers(local, tmp_path)
