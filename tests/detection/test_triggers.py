"""Families of triggers: their budgets hold, and a settled trigger stamps what the search looked at."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bench import BenchError, generator
from bench.builtin_tasks.collapse import CollapseAuditor
from bench.detection.triggers import FAMILIES, Blend, Recovered, Square, Warp, families

SIDE = 28


def images(n: int = 3) -> torch.Tensor:
    return torch.rand((n, 3, SIDE, SIDE), generator=generator(0, "images"))


def settled(name: str, which: int = 1) -> tuple[torch.Tensor, Recovered]:
    """What the search sees of a trigger, and the trigger."""
    family = FAMILIES[name]()
    numbers = family.start(2, SIDE, generator(1, name))
    return family.apply(images(), numbers)[which], family.settle(numbers, which, SIDE)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_settled_trigger_stamps_what_the_search_saw(name: str) -> None:
    searched, trigger = settled(name)
    torch.testing.assert_close(trigger.stamp(images()), searched, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_trigger_survives_its_file(name: str, tmp_path: Path) -> None:
    _, trigger = settled(name)
    trigger.save(tmp_path / "trigger.safetensors", target="banana")
    again = Recovered.load(tmp_path / "trigger.safetensors")
    assert again.family == name
    assert torch.equal(again.stamp(images()), trigger.stamp(images()))


@pytest.mark.parametrize("name", FAMILIES)
def test_stamping_does_not_change_the_images(name: str) -> None:
    given = images()
    settled(name)[1].stamp(given)
    assert torch.equal(given, images())


def test_a_square_changes_its_pixels_alone() -> None:
    changed = (settled("square")[1].stamp(images()) != images()).any(0).any(0)
    rows, columns = torch.where(changed)
    side = Square().pixels(SIDE)
    assert 0 < changed.sum() <= side**2
    assert rows.max() - rows.min() < side
    assert columns.max() - columns.min() < side


def test_every_corner_of_a_square_lies_in_the_image() -> None:
    corners = Square().corners(SIDE).tolist()
    assert len(corners) == 64
    assert corners[0] == [0, 0]
    assert max(corners) == [SIDE - Square().pixels(SIDE)] * 2


@pytest.mark.parametrize("side", [28, 32, 56, 224])
def test_the_places_of_a_square_cover_every_pixel(side: int) -> None:
    covered, size = torch.zeros(side, side, dtype=torch.bool), Square().pixels(side)
    for top, left in Square().corners(side).tolist():
        covered[top : top + size, left : left + size] = True
    assert covered.all()


def test_a_blend_moves_no_value_by_more_than_its_share() -> None:
    assert (settled("blend")[1].stamp(images()) - images()).abs().max() <= Blend().alpha


def test_a_search_starts_from_more_warps_than_it_follows_to_the_end() -> None:
    for followed, starts in ((2, 5), (7, 7)):
        assert len(Warp(starts=5).start(followed, 32, torch.Generator())["shift"]) == starts
        assert len(Blend().start(followed, 32, torch.Generator())["key"]) == followed


def test_a_warp_without_shifts_changes_nothing_and_one_with_stays_in_reach() -> None:
    family = Warp()
    still = family.settle({"shift": torch.zeros(1, 2, family.grid, family.grid)}, 0, SIDE)
    torch.testing.assert_close(still.stamp(images()), images(), rtol=0, atol=1e-5)
    far = family.settle({"shift": torch.full((1, 2, family.grid, family.grid), 100.0)}, 0, SIDE)
    moved = (far.tensors["grid"] - still.tensors["grid"]) * SIDE / 2
    torch.testing.assert_close(moved, torch.full_like(moved, family.reach * SIDE))


def test_families_are_named_once_each() -> None:
    assert [family.label for family in families(("warp", "square", "warp"))] == ["warp", "square"]


def test_a_number_in_a_name_is_the_budget() -> None:
    names = ("square", "square:0.25", "blend:0.1", "warp:0.05", "square:0.250")
    found = families(names)
    assert [one.name for one in found] == ["square", "square:0.25", "blend", "warp:0.05"]
    assert [one.describe(56) for one in found[1:]] == [
        "a square of 14 px at one place",
        "a picture blended in at 10 %",
        "a warp that moves pixels by up to 3 px",
    ]
    assert CollapseAuditor(families=("square:0.250",)).families == ("square:0.25",)


@pytest.mark.parametrize("name", ["square:", "square:big", "square:2", "blend:0"])
def test_a_budget_is_a_share(name: str) -> None:
    with pytest.raises(BenchError, match=f"'{name}' is no kind of trigger: .* is a share between 0 and 1"):
        families((name,))


@pytest.mark.parametrize(
    ("names", "message"),
    [((), "--families names none"), (("sqare",), "unknown family of triggers 'sqare'. Did you mean 'square'?")],
)
def test_wrong_families_are_refused(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(BenchError) as told:
        families(names)
    assert message in str(told.value)


def test_a_file_without_a_trigger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="`bench audit FILE --out DIR` writes"):
        Recovered.load(tmp_path / "nothing.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors at all")
    for name in ("other", "text"):
        with pytest.raises(BenchError, match="holds no recovered trigger"):
            Recovered.load(tmp_path / f"{name}.safetensors")
