"""Base of all settings: frozen, typed, and checked when they are created."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic import Field as PydanticField

from bench.core.errors import BenchError, guess


def Field(default: Any = ..., *, description: str, unit: str = "", **constraints: Any) -> Any:  # noqa: N802
    """A setting with its default, description, unit and range (`ge`, `gt`, `le`, `lt`), as pydantic's `Field`."""
    return PydanticField(default, description=description, json_schema_extra={"unit": unit}, **constraints)


class Settings(BaseModel):
    """A group of settings. Unknown keys and values out of range are errors that say how to correct them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def parse(cls, values: dict[str, Any], where: str) -> Self:
        """Settings from `values`; `where` is the name of the group, for messages.

        Raises:
            BenchError: an unknown key or a bad value; the message names the key as the user wrote it.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise BenchError("\n".join(_explain(cls, item, where) for item in error.errors())) from None

    def installed(self) -> dict[str, Any]:
        """What of this machine decides what the settings do, such as an optional package; it counts in ids."""
        return {}

    def check_installed(self) -> None:
        """Look for what the settings need of this machine, before a run starts.

        Raises:
            BenchError: something that they ask for is not installed.
        """


def _explain(cls: type[Settings], item: Any, where: str) -> str:
    key = ".".join([where, *map(str, item["loc"])]) if where else ".".join(map(str, item["loc"]))
    if item["type"] != "extra_forbidden":
        return f"setting {key} = {item['input']!r}: {item['msg']}. `bench show {where or 'run'}` lists the settings."
    *groups, last = item["loc"]
    for group in groups:
        inner = cls.model_fields[group].annotation if group in cls.model_fields else None
        cls = inner if isinstance(inner, type) and issubclass(inner, Settings) else cls
    meant = guess(str(last), cls.model_fields)
    return f"unknown setting {key}.{meant} `bench show {where or 'run'}` lists the settings."


def merge(general: Mapping[str, Any], particular: Mapping[str, Any]) -> dict[str, Any]:
    """Both groups of settings, merged recursively; `particular` wins where both have a key.

    >>> merge({"rvpt": {"depth": 3, "shots": 4}}, {"rvpt": {"shots": 16}})
    {'rvpt': {'depth': 3, 'shots': 16}}
    """
    merged = dict(general)
    for key, value in particular.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def nest(key: str, value: Any) -> dict[str, Any]:
    """A value under a dotted key, as nested groups of settings.

    >>> nest("rvpt.alpha", 3)
    {'rvpt': {'alpha': 3}}
    """
    for part in reversed(key.split(".")):
        value = {part: value}
    return value
