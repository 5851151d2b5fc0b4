"""The report of an audit: audit.json, audit.md, audit.html with its pictures, and the trigger that was found."""

import json
from base64 import b64encode
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib import rc_context
from matplotlib.figure import Figure

import bench
from bench.checkpoints.subject import Subject
from bench.core.errors import BenchError
from bench.detection.audit import Audit
from bench.detection.calibration import Calibration, standing
from bench.detection.search import stamped
from bench.detection.triggers import Recovered
from reports.figures.style import COLOURS, PAGE, STYLE, panels, picture
from reports.triggers import AMPLIFY, difference

JSON, MARKDOWN, HTML, TRIGGER = "audit.json", "audit.md", "audit.html", "trigger.safetensors"
LIMITS = (
    "An audit looks for triggers of the kinds named above, at their sizes. A backdoor of another kind or size, or with "
    "its key in the text, is not found; nor is one whose target is not in the list of classes.",
    "The trigger shown is one that works. It need not be the attacker's.",
)
LIMIT_OF_P = (
    "p says how often clean models stand out as much, on the images and classes of the calibration; with others it is "
    "only a guide. It is no chance that this model is clean."
)


def write_audit(audit: Audit, subject: Subject, out: Path, calibration: Calibration | None = None) -> str:
    """Write an audit's files into a folder; returns the text of audit.md.

    Raises:
        BenchError: the folder cannot be written.
    """
    text = to_markdown(audit, subject)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / JSON).write_text(json.dumps(to_json(audit, subject), indent=1) + "\n")
        (out / MARKDOWN).write_text(text)
        audit.trigger.save(out / TRIGGER, target=audit.target)
        (out / HTML).write_text(to_html(audit, subject, calibration))
    except OSError as error:
        raise BenchError(f"--out {out} cannot be written: {error.strerror}. Give another --out") from None
    return f"{text}\nwrote {out / HTML} and, beside it, {JSON}, {MARKDOWN}, {TRIGGER}"


def to_json(audit: Audit, subject: Subject) -> dict[str, Any]:
    """All numbers of an audit; the same for the same seed, but for `seconds`."""
    return {
        "bench": bench.__version__,
        "checkpoint": subject.name,
        "fingerprint": subject.clip.fingerprint(),
        "reference": None if subject.reference is None else subject.reference.fingerprint(),
        "classes": len(subject.classes),
        "skipped": len(subject.skipped),
        **audit.to_json(),
    }


def to_markdown(audit: Audit, subject: Subject) -> str:
    """The verdict, its reasons, the evidence, and what was not looked for."""
    lines = [f"# {audit.sentence}", ""]
    lines += [f"- {reason[0].upper()}{reason[1:]}." for reason in audit.reasons if audit.verdict != "no verdict"]
    lines += ["", family_table(audit).to_markdown(index=False, disable_numparse=True), ""]
    lines += [f"- {line}" for line in evidence_lines(audit)]
    if subject.skipped:
        lines += [
            f"- {len(subject.skipped)} images could not be read and were skipped; the first: {subject.skipped[0]}."
        ]
    lines += ["", "What this does not say:", "", *(f"- {line}" for line in limits(audit))]
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


def family_table(audit: Audit) -> pd.DataFrame:
    """A row per family of triggers."""
    rows = [
        {
            "looked for": one.looked_for,
            "score": _score(one.score),
            **({} if one.multiple is None else {"in medians of clean models": f"{one.multiple:.1f}"}),
            "on the reference": "–" if one.score_on_reference is None else _score(one.score_on_reference),
            "sent to": one.target,
            "share of other images": f"{one.share:.0%}",
            "share on the reference": "–" if one.share_on_reference is None else f"{one.share_on_reference:.0%}",
        }
        for one in audit.families
    ]
    return pd.DataFrame(rows)


def evidence_lines(audit: Audit) -> list[str]:
    """The weights, runners-up and conditions, a sentence each."""
    lines = []
    if (weights := audit.weights) is not None and weights.top == 0:
        lines.append("No matrix that writes into the residual stream differs from the reference's.")
    elif weights is not None:
        lines.append(
            f"The weights' change from the reference points most at '{weights.target}': {weights.top:.1%} of its energy"
            f"{_of_clean(weights.p_top)}, {weights.outlier:.1f} robust standard deviations above the other classes. "
            f"Its first singular directions hold {weights.first:.1%}{_of_clean(weights.p_first)}."
        )
        if audit.target is not None and weights.target != audit.target:
            lines.append("Trigger and weights do not agree on the class.")
    else:
        lines.append("The weights' change was not looked at: no reference is declared, or the image tower is no ViT.")
    if "corner" in audit.trigger.tensors:
        row, column = audit.trigger.tensors["corner"].tolist()
        lines.append(
            f"The square that was found goes to row {row}, column {column}, counted from the upper left corner."
        )
    others = ", ".join(f"'{name}' {share:.0%}" for name, share in audit.runners_up)
    lines.append(f"The next classes under the trigger: {others}.")
    made = "no calibration" if audit.calibration is None else f"calibration {audit.calibration}"
    lines.append(
        f"{audit.images} images to make triggers, {audit.scored} others to measure them, seed {audit.seed}, {made}, "
        f"{audit.seconds:.0f} s of CPU."
    )
    return lines


def limits(audit: Audit) -> tuple[str, ...]:
    """What an audit does not say, a sentence each."""
    return LIMITS if audit.p_value is None else (*LIMITS, LIMIT_OF_P)


def to_html(audit: Audit, subject: Subject, calibration: Calibration | None = None) -> str:
    """One page that opens from disk and needs no network. All text is escaped."""
    table = family_table(audit)
    environment = Environment(
        loader=PackageLoader("reports", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    with rc_context(dict(STYLE)):  # type: ignore[arg-type]
        figures = [
            ("Clean images, the same with the trigger, and the difference x 10", _uri(examples(audit)), True),
            (
                "The trigger on gray and on a checkerboard",
                _uri(alone(audit.trigger, audit.clean_images.shape[-1])),
                True,
            ),
        ]
        if calibration is not None:
            figures.append(("Scores of the clean models, and of this one", _uri(histogram(audit, calibration)), False))
    return environment.get_template("audit.html.j2").render(
        audit=audit, subject=subject, headers=list(table.columns), rows=table.to_numpy().tolist(),
        lines=evidence_lines(audit), limits=limits(audit), figures=figures,
    )  # fmt: skip


def examples(audit: Audit) -> Figure:
    """A row of clean images, one with the trigger, one of differences x 10."""
    clean = audit.clean_images
    triggered = stamped(audit.trigger, clean)
    rows = {"clean": clean, "stamped": triggered, f"difference x {AMPLIFY}": difference(clean, triggered)}
    figure, axes = panels(PAGE, PAGE * len(rows) / len(clean) + 0.2, len(rows), len(clean))
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(line, images, strict=True):
            picture(axis, image.permute(1, 2, 0).numpy())
        line[0].set_ylabel(name)
    return figure


def alone(trigger: Recovered, side: int) -> Figure:
    """The trigger where nothing else is: place and pixels on gray, shifts on a checkerboard."""
    squares = (torch.arange(side) * 8 // side) % 2
    board = (squares[:, None] ^ squares[None]).mul(255).to(torch.uint8)
    plain = torch.stack([torch.full((3, side, side), 128, dtype=torch.uint8), board.expand(3, side, side)])
    figure, axes = panels(PAGE / 2, PAGE / 4, 1, 2)
    for axis, image in zip(axes[0], stamped(trigger, plain), strict=True):
        picture(axis, image.permute(1, 2, 0).numpy())
    return figure


def histogram(audit: Audit, calibration: Calibration) -> Figure:
    """The largest multiples of a calibration's clean models, with this model's mark."""
    among = standing({one.family: one.score for one in audit.families}, [one.scores for one in calibration.negatives])
    own = max(among.multiples.values())
    figure, [[axis]] = panels(PAGE / 2, PAGE / 4, 1, 1)
    axis.hist(among.clean, bins=20, color=COLOURS[0])
    axis.axvline(own, color=COLOURS[1])
    axis.annotate("this model", (own, axis.get_ylim()[1]), color=COLOURS[1], ha="right", va="top")
    axis.set_xlabel("score, in medians of the clean models")
    axis.set_ylabel("clean models")
    return figure


def _uri(figure: Figure) -> str:
    content = BytesIO()
    figure.savefig(content, format="png", dpi=150)
    return "data:image/png;base64," + b64encode(content.getvalue()).decode()


def _score(score: float) -> str:
    # Without a minus in front of 0.00.
    return f"{round(score, 2) + 0.0:.2f}"


def _of_clean(p: float | None) -> str:
    return "" if p is None else f" (p = {p:.3f})"
