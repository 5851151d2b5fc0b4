"""Curves that a method leaves beside what it made."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Logged:
    """What a method is given, with a log that is stored with what it makes: curves, by name."""

    log: dict[str, list[float]] = field(default_factory=dict, kw_only=True)

    def record(self, **values: float) -> None:
        """Put a value at the end of each of these curves."""
        for name, value in values.items():
            self.log.setdefault(name, []).append(value)
