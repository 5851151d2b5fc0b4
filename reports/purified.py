"""What `bench purify` writes: a model that open_clip opens, a card, and the audits before and after."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bench
from bench.checkpoints.purify import Purified
from bench.checkpoints.subject import Subject
from bench.core.errors import BenchError
from bench.core.metric import Estimate
from bench.core.victim import Victim
from bench.detection.calibration import Calibration
from reports.audit import to_json, write_audit

CARD, BEFORE, AFTER, TOWER, LOADER = "card.json", "audit_before", "audit_after", "image_tower.pt2", "load_defended.py"
LOADER_TEXT = '''"""Open the defended model: torch and open_clip are all that it needs.

    model, encode_image, preprocess, tokenizer = load()

`encode_image` takes float RGB in [0, 1], (n, 3, side, side), as `preprocess` gives, and returns unit-norm embeddings.
The image tower has visual prompts, for which open_clip has no place: take it from here, and the texts from `model`.
"""

from pathlib import Path

import open_clip
import torch
from torchvision.transforms import Normalize

HERE = Path(__file__).parent


def load(folder=HERE):
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    # The exported tower normalises by itself.
    preprocess.transforms = [step for step in preprocess.transforms if not isinstance(step, Normalize)]
    tower = torch.export.load(Path(folder) / "image_tower.pt2").module()
    return model.eval(), tower, preprocess, open_clip.get_tokenizer(f"local-dir:{folder}")
'''


class _Tower(nn.Module):
    """The image tower of a victim, its normalisation and prompts included."""

    def __init__(self, victim: Victim) -> None:
        super().__init__()
        self.visual = victim.clip.visual
        self._victim = [victim]

    def forward(self, images: Tensor) -> Tensor:
        return F.normalize(self._victim[0].encode(images).embedding, dim=-1)


def check_new(out: Path) -> None:
    """Check that a model can be written to a folder.

    Raises:
        BenchError: there is something in it already.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BenchError(f"--out {out} is not a new or empty folder: give another one for the purified model")


def write_purified(purified: Purified, subject: Subject, out: Path, calibration: Calibration | None = None) -> str:
    """Write the model, its card and both audits; returns what to tell. Nothing is written of a model that is refused.

    Raises:
        BenchError: the folder cannot be written.
    """
    if purified.refused:
        return (
            f"Refused: clean accuracy fell by {purified.lost:.1f} points ({_accuracies(purified)}), and nothing was "
            "written. Try another --method, or a lower --set METHOD.learning_rate"
        )
    after = Subject(**{**vars(subject), "victim": purified.victim})
    try:
        purified.victim.clip.save(out)
        (out / CARD).write_text(json.dumps(card(purified, subject, after), indent=1) + "\n")
        if purified.victim.prompts is not None:
            _export(purified.victim, out)
        for name, audit, of in ((BEFORE, purified.before, subject), (AFTER, purified.after, after)):
            write_audit(audit, of, out / name, calibration)
    except OSError as error:
        shutil.rmtree(out, ignore_errors=True)
        raise BenchError(f"--out {out} cannot be written: {error.strerror}. Give another --out") from None
    return _told(purified, out)


def card(purified: Purified, subject: Subject, after: Subject) -> dict[str, Any]:
    """What was done, with which settings, and what it changed."""
    return {
        "bench": bench.__version__,
        "methods": list(purified.chain),
        "settings": purified.settings,
        "clean_accuracy": {"before": _estimate(purified.accuracy_before), "after": _estimate(purified.accuracy_after)},
        "trigger_found_before": {
            "before": _estimate(purified.trigger_before),
            "after": _estimate(purified.trigger_after),
        },
        "before": to_json(purified.before, subject),
        "after": to_json(purified.after, after),
    }


def _export(victim: Victim, out: Path) -> None:
    side = victim.clip.image_size
    # The fast path of attention is an operation that export has no name for.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        example = torch.zeros(4, 3, side, side, device=victim.clip.device)
        batch = torch.export.Dim("batch", min=1, max=4096)
        exported = torch.export.export(_Tower(victim).eval(), (example,), dynamic_shapes=({0: batch},))
        torch.export.save(exported, out / TOWER)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    (out / LOADER).write_text(LOADER_TEXT)


def _told(purified: Purified, out: Path) -> str:
    how = "+".join(purified.chain)
    opens = f"open_clip.create_model_and_transforms('local-dir:{out}')"
    if purified.victim.prompts is not None:
        opens = f"{out / LOADER}, as open_clip has no place for prompts"
    return "\n".join(
        [
            f"before: {purified.before.sentence}",
            f"after {how}: {purified.after.sentence}",
            *_trigger(purified),
            f"clean accuracy: {_accuracies(purified)}",
            f"wrote {out}; it opens with {opens}",
        ]
    )


def _trigger(purified: Purified) -> list[str]:
    before, after = purified.trigger_before, purified.trigger_after
    if before is None or after is None:
        return []
    return [
        f"the trigger found before sends {before.value:.0f} % of other images to '{purified.before.evidence.target}' "
        f"before, {after.value:.0f} % after, of {after.n} images; that of the attacker may still work better"
    ]


def _accuracies(purified: Purified) -> str:
    before, after = purified.accuracy_before, purified.accuracy_after
    if before is None or after is None:
        return "not measured, as too few images have labels"
    return f"{before.value:.1f} % before, {after.value:.1f} % after, of {before.n} images"


def _estimate(estimate: Estimate | None) -> dict[str, float] | None:
    return None if estimate is None else {k: round(v, 2) for k, v in vars(estimate).items()}
