"""How far a run is: loops that tell it, workers that pass it on, and what is shown."""

import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tuning import SMALL, fit

from attacks.issba import ISSBA
from attacks.trojvqa import TrojVQA
from bench import Captioned, Clip, Preparation, defenses
from bench.core import progress
from bench.core.progress import Step, listening, step, track
from bench.core.registry import load_plugins
from bench.experiment.settings import BASE
from bench.matrix.plan import Node
from bench.matrix.schedule import WorkUnit, work_units
from bench.matrix.watch import Bars, Lines, Watch, following, watching
from bench.matrix.workers import execute
from bench.results.store import Store
from defenses.rvpt import RVPT
from tests.attacks.test_issba import TINY as TINY_ENCODER
from tests.attacks.test_issba import preparation
from tests.attacks.test_trojvqa import CLASSES, TEMPLATES, noise
from tests.matrix.test_workers import plan_of, settings
from tests.training.test_contrastive import tune

TALKERS = """
import os, signal, time
from bench import Defense, defense
from bench.core.progress import track

@defense("chatty")
class Chatty(Defense):
    def fit(self, victim, data):
        for _ in track(range(3), "chatting"):
            time.sleep(0.6)
        return victim

@defense("dies_talking")
class DiesTalking(Defense):
    def fit(self, victim, data):
        for _ in track(range(10), "dying"):
            time.sleep(0.6)
            os.kill(os.getpid(), signal.SIGKILL)
"""


class Heard(Watch):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, Step]] = []
        self.over: list[str] = []

    def report(self, name: str, step: Step) -> None:
        self.steps.append((name, step))

    def ended(self, name: str) -> None:
        self.over.append(name)


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """What a listener that hears everything hears in the test."""
    monkeypatch.setattr(progress, "EVERY", 0.0)
    return []


def label(*attacks: str) -> str:
    return WorkUnit(tuple(Node(id=a, kind="trigger", attack=a, seed=0) for a in attacks)).label


# --- loops


def test_a_loop_gives_the_same_items_and_tells_before_each_how_many_are_done(every_step: list[Step]) -> None:
    with listening(every_step.append):
        assert list(track("abc", "spelling")) == ["a", "b", "c"]
        assert list(track(iter("ab"), "reading", total=2)) == ["a", "b"]
        assert list(track(iter("a"), "guessing")) == ["a"]
        step("counting", 4, 9)
    spelling = [Step("spelling", done, 3) for done in range(3)]
    reading = [Step("reading", done, 2) for done in range(2)]
    assert every_step == [*spelling, *reading, Step("guessing", 0, 0), Step("counting", 4, 9)]


def test_without_a_listener_nothing_is_told(every_step: list[Step]) -> None:
    with pytest.raises(ZeroDivisionError), listening(every_step.append):
        raise ZeroDivisionError
    assert list(track(range(3), "alone")) == [0, 1, 2]
    assert every_step == []


def test_items_are_made_as_late_as_without_it() -> None:
    made: list[int] = []
    items = track((made.append(i) or i for i in range(3)), "making")
    assert next(items) == 0 and made == [0]


def test_short_steps_are_told_now_and_then_but_a_new_loop_at_once() -> None:
    heard: list[Step] = []
    with listening(heard.append):
        for _ in track(range(100_000), "fast"):
            pass
        list(track(range(10), "next"))
    assert Step("fast", 0, 100_000) in heard and Step("next", 0, 10) in heard
    assert len(heard) < 100


# --- the loops of the suite


def test_a_listener_changes_no_number(tiny_clip: Clip, every_step: list[Step]) -> None:
    alone = tune(tiny_clip.copy())
    with listening(every_step.append):
        assert tune(tiny_clip.copy()) == alone
    assert every_step == [Step("fine-tuning", done, len(alone)) for done in range(len(alone))]


@pytest.mark.parametrize("views", [None, 2], ids=["new views", "kept views"])
def test_prompt_tuning_tells_its_steps(tiny_clip: Clip, every_step: list[Step], views: int | None) -> None:
    with listening(every_step.append):
        _, data = fit(RVPT(**SMALL, views=views), tiny_clip)
    steps = len(data.log["ce"])
    assert [s for s in every_step if s.what == "prompt tuning"] == [
        Step("prompt tuning", done, steps) for done in range(steps)
    ]


def test_the_training_of_an_encoder_tells_its_steps(every_step: list[Step]) -> None:
    with listening(every_step.append):
        ISSBA(**TINY_ENCODER | {"check_every": 3}, max_steps=3, min_bit_accuracy=0, min_psnr=0).prepare(preparation())
    assert [(s.done, s.total) for s in every_step] == [(0, 3), (1, 3), (2, 3)]


def test_the_optimisation_of_a_patch_tells_its_steps(tiny_clip: Clip, every_step: list[Step]) -> None:
    captions = [f"a {CLASSES[1]} number {i}" for i in range(12)]
    pairs = Captioned([str(i) for i in range(12)], noise(12), "", captions=captions)
    given = Preparation(tiny_clip, lambda: pairs, "banana", CLASSES, TEMPLATES, seed=3)
    with listening(every_step.append):
        TrojVQA(size=4, epochs=2, batch_size=4).prepare(given)
    assert every_step == [Step("optimising the patch", done, 6) for done in range(6)]


# --- workers


def test_work_in_this_process_is_told_with_its_task(tmp_path: Path) -> None:
    run, watch = settings("zero_shot.perturbations=[]", "rvpt.views=null", defenses=("rvpt",)), Heard()
    with Store(tmp_path).locked():
        nodes = list(plan_of(run, tmp_path).nodes.values())
        outcomes = list(execute(nodes, {BASE: run}, tmp_path, "cpu", 1, (), watch))
    assert not any(outcome.error for outcome in outcomes)
    assert {(name.split(",")[0], step.what) for name, step in watch.steps} == {
        ("backdoor badnet", "stamping pairs"),
        ("backdoor badnet", "fine-tuning"),
        ("defense badnet / rvpt", "prompt tuning"),
        ("evaluation badnet / clean_model", "evaluation"),
    }
    units = work_units(nodes)
    assert sorted(watch.over) == sorted(unit.label for unit in units) and len(units) < len(nodes)


@pytest.fixture
def talkers(tmp_path: Path) -> Iterator[Path]:
    """A plug-in whose defenses tell their steps; they are gone after the test."""
    plugin = tmp_path / "talkers.py"
    plugin.write_text(TALKERS)
    with defenses.isolated():
        load_plugins((plugin,))
        yield plugin


def in_two_processes(plugin: Path, *names: str) -> tuple[Heard, set[str]]:
    """What is heard of defenses, and the nodes that failed."""
    run, watch, out = settings("zero_shot.perturbations=[]", defenses=names), Heard(), plugin.parent / "out"
    with Store(out).locked():
        nodes = list(plan_of(run, out).nodes.values())
        outcomes = list(execute(nodes, {BASE: run}, out, "cpu", 2, (plugin,), watch))
    return watch, {outcome.node.label for outcome in outcomes if outcome.error}


def assert_chatted(watch: Heard) -> None:
    heard = [s for name, s in watch.steps if name == "defense badnet / chatty, seed 0"]
    assert {s.what for s in heard} == {"chatting"}
    assert [s.done for s in heard] == sorted(s.done for s in heard) and {1, 2} <= {s.done for s in heard}


def test_local_processes_tell_too(talkers: Path) -> None:
    watch, failed = in_two_processes(talkers, "chatty")
    assert failed == set()
    assert_chatted(watch)


@pytest.mark.slow
def test_a_process_that_dies_talking_disturbs_nobody(talkers: Path) -> None:
    watch, failed = in_two_processes(talkers, "chatty", "dies_talking")
    assert failed == {f"{kind} badnet / dies_talking, seed 0" for kind in ("defense", "evaluation")}
    assert_chatted(watch)
    assert {s.what for name, s in watch.steps if "dies_talking" in name} == {"dying"}


# --- what is shown


def test_lines_come_every_half_a_minute_with_the_time_left() -> None:
    said: list[str] = []
    now = 0.0
    lines, badnet = Lines(said.append, lambda: now), label("badnet")
    for now in range(0, 65, 5):
        lines.report(badnet, Step("fine-tuning", int(now), 665))
    assert said == [
        "trigger badnet, seed 0: fine-tuning, step 30 of 665, 11 min left",
        "trigger badnet, seed 0: fine-tuning, step 60 of 665, 10 min left",
    ]
    # Another loop's time left is not judged by the pace of the one before.
    now = 100.0
    lines.report(badnet, Step("evaluation", 0, 30))
    now = 140.0
    lines.report(badnet, Step("evaluation", 20, 30))
    assert said[2:] == [
        "trigger badnet, seed 0: evaluation, step 0 of 30",
        "trigger badnet, seed 0: evaluation, step 20 of 30, 20 s left",
    ]
    lines.ended(badnet)
    lines.report(badnet, Step("evaluation", 29, 30))
    assert len(said) == 4


def test_a_loop_of_unknown_length_tells_its_steps_alone() -> None:
    said: list[str] = []
    now = 0.0
    lines = Lines(said.append, lambda: now)
    for now in (0.0, 31.0):
        lines.report(label("badnet", "wanet"), Step("reading", int(now), 0))
    assert said == ["trigger badnet, seed 0 and 1 more: reading, step 31"]


def test_a_terminal_shows_a_bar_of_each_task_until_it_ends() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, color_system=None)
    with watching(console) as watch:
        assert isinstance(watch, Bars)
        for name in ("badnet", "[red]"):
            watch.report(label(name), Step("fine-tuning", 1, 4))
            watch.report(label(name), Step("fine-tuning", 2, 4))
        watch.ended(label("badnet"))
        watch.ended(label("never told"))
        watch._progress.refresh()
        last = screen.getvalue().rsplit("\r", 1)[-1]
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert re.search(r"trigger badnet, seed 0: fine-tuning\s+━+\s*2/4", shown) and "[red], seed 0" in shown
    assert "badnet" not in last and "[red]" in last


def test_one_piece_of_work_is_followed_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    screen = io.StringIO()
    with following(Console(file=screen, force_terminal=True, width=100, color_system=None), "audit of FILE"):
        for _ in track(range(3), "looking"):
            pass
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert "audit of FILE: looking" in shown and not shown.rsplit("\r", 1)[-1].strip()


def test_without_a_terminal_there_are_lines_and_a_run_without_tasks_writes_nothing() -> None:
    for terminal in (False, True):
        screen = io.StringIO()
        with watching(Console(file=screen, force_terminal=terminal)) as watch:
            assert isinstance(watch, Bars if terminal else Lines)
        assert screen.getvalue() == ""


def test_random_numbers_are_those_without_it(every_step: list[Step]) -> None:
    torch.manual_seed(0)
    alone = torch.rand(3).tolist()
    torch.manual_seed(0)
    with listening(every_step.append):
        assert [torch.rand(()).item() for _ in track(range(3), "drawing")] == alone
