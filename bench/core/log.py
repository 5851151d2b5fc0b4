"""Training curves that a method records, stored with its artefact."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Logged:
    """Base of what a method is given: `log` holds curves by name and is stored on the artefact's card."""

    log: dict[str, list[float]] = field(default_factory=dict, kw_only=True)

    def record(self, **values: float) -> None:
        """Append a value to each of these curves."""
        for name, value in values.items():
            self.log.setdefault(name, []).append(value)
