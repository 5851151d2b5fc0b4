"""The attacks, one file each. Importing this package registers them."""

from attacks import (
    badclip,
    badnet,
    benign,
    blended,
    evasive,
    issba,
    label_consistent,
    recovered,
    trojvqa,
    two_targets,
    wanet,
)

__all__ = [
    "badclip",
    "badnet",
    "benign",
    "blended",
    "evasive",
    "issba",
    "label_consistent",
    "recovered",
    "trojvqa",
    "two_targets",
    "wanet",
]
