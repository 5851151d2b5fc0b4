"""Settings: frozen, typed, with ranges and units; wrong ones are errors that name the key as the user wrote it."""

from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import ValidationError

from bench.core.errors import BenchError
from bench.core.settings import Field, Settings


class Inner(Settings):
    count: int = Field(3, ge=1, description="how many")
    rate: float = Field(0.5, gt=0, lt=1, description="how often", unit="Hz")


class Example(Settings):
    alpha: float = Field(0.2, ge=0, le=1, description="a share")
    size: int = Field(16, ge=1, description="a side", unit="px")
    flip: bool = Field(True, description="whether to")
    mode: Literal["clip", "wrap"] = Field("clip", description="how")
    file: Path | None = Field(None, description="where")
    names: tuple[str, ...] = Field(("a",), description="which")
    inner: Inner = Field(Inner(), description="nested")


class Needy(Settings):
    must: int = Field(description="no default")


@pytest.mark.parametrize(
    ("values", "key", "expected"),
    [
        ({}, "alpha", 0.2),
        ({"alpha": 1}, "alpha", 1.0),
        ({"alpha": 0}, "alpha", 0.0),
        ({"alpha": "0.3"}, "alpha", 0.3),
        ({"size": 1}, "size", 1),
        # `type=bool` of argparse would make this true.
        ({"flip": "False"}, "flip", False),
        ({"flip": "no"}, "flip", False),
        ({"mode": "wrap"}, "mode", "wrap"),
        ({"file": "a/b.png"}, "file", Path("a/b.png")),
        ({"names": ["x", "y"]}, "names", ("x", "y")),
        ({"inner": {"count": 5}}, "inner", Inner(count=5)),
        ({"file": None}, "file", None),
    ],
)
def test_good_values(values: dict[str, Any], key: str, expected: Any) -> None:
    assert getattr(Example.parse(values, "example"), key) == expected


@pytest.mark.parametrize(
    ("values", "where", "message"),
    [
        # unknown keys
        (
            {"aplha": 1},
            "example",
            "unknown setting example.aplha. Did you mean 'alpha'? `bench show example` lists the settings.",
        ),
        ({"aplha": 1}, "", "unknown setting aplha. Did you mean 'alpha'? `bench show run` lists the settings."),
        ({"xyz": 1}, "example", "unknown setting example.xyz. `bench show example` lists the settings."),
        (
            {"inner": {"cuont": 1}},
            "example",
            "unknown setting example.inner.cuont. Did you mean 'count'? `bench show example` lists the settings.",
        ),
        # `alpha` is a setting, but not there.
        ({"inner": {"alpha": 1}}, "", "unknown setting inner.alpha. `bench show run` lists the settings."),
        # values out of range or of the wrong type
        (
            {"alpha": 1.5},
            "example",
            "setting example.alpha = 1.5: Input should be less than or equal to 1. "
            "`bench show example` lists the settings.",
        ),
        ({"alpha": -1}, "", "setting alpha = -1: Input should be greater than or equal to 0. `bench show run`"),
        ({"alpha": float("nan")}, "", "setting alpha = nan: Input should be"),
        ({"size": 2.5}, "", "setting size = 2.5: Input should be a valid integer"),
        ({"size": "big"}, "", "setting size = 'big': Input should be a valid integer"),
        ({"flip": "perhaps"}, "", "setting flip = 'perhaps': Input should be a valid boolean"),
        ({"mode": "warp"}, "", "setting mode = 'warp': Input should be 'clip' or 'wrap'"),
        ({"inner": {"count": 0}}, "", "setting inner.count = 0: Input should be greater than or equal to 1"),
        ({"inner": {"rate": 1}}, "example", "setting example.inner.rate = 1: Input should be less than 1"),
        ({"inner": 3}, "", "setting inner = 3: Input should be"),
        ({"names": ["a", 3]}, "", "setting names.1 = 3: Input should be a valid string"),
    ],
)
def test_bad_values(values: dict[str, Any], where: str, message: str) -> None:
    with pytest.raises(BenchError) as error:
        Example.parse(values, where)
    assert message in str(error.value)


def test_a_missing_value_is_an_error() -> None:
    with pytest.raises(BenchError, match=r"setting needy\.must = {}: Field required\. `bench show needy` lists"):
        Needy.parse({}, "needy")


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(BenchError) as error:
        Example.parse({"alpha": 2, "sise": 4, "mode": "warp"}, "example")
    lines = str(error.value).splitlines()
    assert [line.split(" ")[:3] for line in lines] == [
        ["setting", "example.alpha", "="],
        ["setting", "example.mode", "="],
        ["unknown", "setting", "example.sise."],
    ]


def test_settings_are_frozen_and_compare_by_value() -> None:
    settings = Example(alpha=0.4)
    with pytest.raises(ValidationError, match="Instance is frozen"):
        settings.alpha = 0.5  # type: ignore[misc]
    assert settings.alpha == 0.4
    assert settings == Example.parse({"alpha": 0.4}, "")
    assert settings != Example()
    assert Example.parse(settings.model_dump(mode="json"), "") == settings


def test_a_field_tells_what_it_is_its_range_and_its_unit() -> None:
    schema = Example.model_json_schema()["properties"]
    assert (schema["size"]["description"], schema["size"]["unit"]) == ("a side", "px")
    assert (schema["size"]["minimum"], schema["size"]["default"]) == (1, 16)
    assert (schema["alpha"]["minimum"], schema["alpha"]["maximum"]) == (0, 1)
    assert not schema["alpha"]["unit"]
    rate = Inner.model_json_schema()["properties"]["rate"]
    assert (rate["exclusiveMinimum"], rate["exclusiveMaximum"], rate["unit"]) == (0, 1, "Hz")


def test_a_field_must_be_described() -> None:
    with pytest.raises(TypeError, match="description"):
        Field(3)  # type: ignore[call-arg]
