"""The attacks, one file each. Importing this package registers them."""

from attacks import (
    badclip,
    badencoder,
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
    "badencoder",
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
