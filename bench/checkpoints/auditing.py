"""The audit of an opened checkpoint: which images, which calibration."""

from collections.abc import Sequence
from pathlib import Path

import torch

from bench.checkpoints.subject import Subject
from bench.core.errors import BenchError
from bench.detection.audit import STANDARD, Audit, audit_victim
from bench.detection.calibration import Calibration, Effort, architecture, find_calibration, read_calibration
from bench.detection.triggers import FAMILIES


def audit_subject(
    subject: Subject,
    families: Sequence[str] = tuple(FAMILIES),
    effort: Effort = STANDARD,
    calibration: Calibration | None = None,
    seed: int = 0,
) -> Audit:
    """Audit a checkpoint; errors are those of `audit_victim`."""
    images = subject.audited.load(torch.arange(min(len(subject.audited), effort.images + effort.scored)))
    return audit_victim(
        subject.victim,
        images,
        subject.classes,
        subject.templates,
        subject.reference,
        calibration,
        families,
        effort,
        seed,
    )


def calibration_for(
    subject: Subject, effort: Effort, file: Path | None = None, families: Sequence[str] = tuple(FAMILIES)
) -> Calibration | None:
    """The calibration of a file; without a file the shipped one that fits the model and its reference, if there is one.

    Raises:
        BenchError: the file cannot be read, is of another model, effort or reference, or lacks one of the families.
    """
    if file is None:
        return find_calibration(subject.clip, subject.reference, effort, families)
    found = read_calibration(file)
    if found.architecture != architecture(subject.clip):
        raise BenchError(f"--calibration {file} is of the model {found.model}, which has another architecture")
    if found.effort != effort:
        raise BenchError(f"--calibration {file} was made with another --budget: its scores say nothing of this one")
    if subject.reference is not None and subject.reference.fingerprint() != found.reference:
        raise BenchError(f"--calibration {file} was made with another --reference: its scores say nothing of this one")
    if missing := found.lacking(families):
        raise BenchError(f"--calibration {file} has no scores of {', '.join(missing)}: leave them out of --families")
    return found
