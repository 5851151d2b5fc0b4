"""Purify: a checkpoint without the backdoor, audited and measured before and after."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from bench.checkpoints.auditing import audit_subject
from bench.checkpoints.subject import NO_LABEL, Subject
from bench.core.defense import CleanData, Defense
from bench.core.encoder import has_transformer_tower
from bench.core.errors import BenchError, unknown
from bench.core.metric import Estimate
from bench.core.victim import Victim
from bench.detection.audit import STANDARD, Audit
from bench.detection.calibration import Calibration, Effort
from bench.detection.search import classify, stamped
from bench.detection.triggers import FAMILIES
from bench.experiment.settings import Experiment
from metrics.success import share

Method = Literal["auto", "cut", "unlearn", "distill", "rvpt"]
METHODS: tuple[Method, ...] = ("auto", "cut", "unlearn", "distill", "rvpt")
# The defenses that a method applies, one after the other.
CHAINS: dict[Method, tuple[str, ...]] = {
    "cut": ("cut",),
    "unlearn": ("unlearn",),
    "distill": ("rvpt", "distill"),
    "rvpt": ("rvpt",),
}
# A model that lost more clean accuracy, in points, is not written.
MOST_LOST = 3.0
# A trigger that sends so many points more to its target than it does on the reference still works.
STILL_WORKS = 10.0
# Clean accuracy of fewer labelled images would say little.
FEWEST_MEASURED = 64
MEASURED = 1000


@dataclass(frozen=True)
class Purified:
    """A purified checkpoint. `chain` are the defenses that were applied; accuracies are None without labels.

    `trigger_before` and `trigger_after`: of images that a model does not call the target of the audit before, the share
    that it calls so under the trigger which that audit found; None if that trigger did not stand out.
    """

    victim: Victim
    chain: tuple[str, ...]
    settings: dict[str, dict]
    before: Audit
    after: Audit
    accuracy_before: Estimate | None
    accuracy_after: Estimate | None
    trigger_before: Estimate | None
    trigger_after: Estimate | None

    @property
    def lost(self) -> float | None:
        """Clean accuracy that was lost, in points."""
        if self.accuracy_before is None or self.accuracy_after is None:
            return None
        return self.accuracy_before.value - self.accuracy_after.value

    @property
    def refused(self) -> bool:
        """Whether it lost too much to be written."""
        return self.lost is not None and self.lost > MOST_LOST


def purify_subject(
    subject: Subject,
    method: Method,
    settings: Experiment,
    effort: Effort = STANDARD,
    calibration: Calibration | None = None,
    families: Sequence[str] = tuple(FAMILIES),
    seed: int = 0,
) -> Purified:
    """Purify a checkpoint. `auto` cuts where a reference is declared and unlearns where none is; where the audit still
    finds something, or the trigger that was found before still works, it goes on with what it has not tried.

    Raises:
        BenchError: an unknown method, or one that needs what is not there.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    before = audit_subject(subject, families, effort, calibration, seed)
    now, after, applied = subject, before, dict[str, Defense]()
    left: Estimate | None = None
    for chain in chains_of(subject, method):
        for name in chain:
            defense = settings.defense(name)
            if name == "unlearn" and getattr(defense, "target", None) is None:
                defense = defense.model_copy(update={"target": _to_unlearn(before, after, left)})
            now = replace(now, victim=_fitted(defense, now, seed))
            applied[name] = defense
        after = audit_subject(now, families, effort, calibration, seed)
        left = triggered(now, before)
        if after.verdict not in ("backdoored", "suspicious") and not _still_works(before, left):
            break
    return Purified(
        now.victim,
        tuple(applied),
        {name: defense.model_dump(mode="json") for name, defense in applied.items()},
        before,
        after,
        _accuracy(subject),
        _accuracy(now),
        triggered(subject, before),
        left,
    )


def _to_unlearn(before: Audit, after: Audit, left: Estimate | None) -> str:
    """The class that triggers are unlearned of: that of the trigger which still works, else the one found last."""
    return before.evidence.target if _still_works(before, left) else after.target or after.evidence.target


def _still_works(found: Audit, share: Estimate | None) -> bool:
    """Whether a trigger that was found sends more images to its target than it does on the reference.

    An audit makes triggers anew, and may miss what an attacker's trigger, or this one, still does.
    """
    if share is None:
        return False
    return share.value > 100 * (found.evidence.share_on_reference or 0.0) + STILL_WORKS


def chains_of(subject: Subject, method: Method) -> list[tuple[str, ...]]:
    """What to apply; of `auto`, one after the other until the audit finds nothing."""
    if method != "auto":
        return [CHAINS[method]]
    transformer = has_transformer_tower(subject.clip)
    possible: dict[Method, bool] = {
        "cut": subject.reference is not None and transformer,
        "unlearn": True,
        "distill": _labelled(subject) and transformer,
    }
    return [CHAINS[name] for name, can in possible.items() if can]


def _labelled(subject: Subject) -> bool:
    return bool((subject.repairing.labels != NO_LABEL).all())


def _fitted(defense: Defense, subject: Subject, seed: int) -> Victim:
    if "shots" in defense.needs and not _labelled(subject):
        raise BenchError(
            "rvpt is tuned on labelled images. Give --images DIR with a folder a class, called as in --classes"
        )
    if "base" in defense.needs and subject.reference is None:
        raise BenchError("cut compares with the model that this one was fine-tuned from: declare it with --reference")
    reference = subject.reference
    data = CleanData(
        subject.repairing,
        subject.templates,
        seed,
        None,
        open_base=None if reference is None else lambda: reference,
        needs=defense.needs,
    )
    return defense.fit(subject.victim, data)


def _accuracy(subject: Subject) -> Estimate | None:
    """Clean accuracy in percent, on images that nothing was repaired with; None where too few have labels."""
    known = torch.where(subject.measured.labels != NO_LABEL)[0][:MEASURED]
    if len(known) < FEWEST_MEASURED:
        return None
    predicted = _predicted(subject, subject.measured.load(known))
    return share((predicted == subject.measured.labels[known]).numpy())


def triggered(subject: Subject, found: Audit) -> Estimate | None:
    """How often the trigger that an audit found works, on images that nothing was repaired with."""
    if not found.works:
        return None
    target = subject.classes.index(found.evidence.target)
    images = subject.measured.load(torch.arange(min(MEASURED, len(subject.measured))))
    others = images[_predicted(subject, images) != target]
    return share((_predicted(subject, stamped(found.trigger, others)) == target).numpy())


def _predicted(subject: Subject, images: Tensor) -> Tensor:
    texts = subject.victim.class_embeddings(subject.classes, subject.templates)
    return classify(subject.victim, images, texts)
