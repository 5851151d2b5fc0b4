"""Label-Consistent: only pairs whose captions name the target are poisoned (Turner et al., arXiv 1912.02771)."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from attacks.badnet import BadNet
from bench import BenchError, Clip, Field, Preparation, Trigger, attack, mentions

# White outside, black between, as the authors' code has it in the right corners; in the left ones it is mirrored.
_CHECKER = torch.tensor([[-1.0, -1, 1], [-1, 1, -1], [1, -1, 1]])
_FIRST, _LAST = slice(0, 3), slice(-3, None)
_CORNERS = ((_LAST, _LAST), (_FIRST, _LAST), (_LAST, _FIRST), (_FIRST, _FIRST))


@attack("label_consistent")
class LabelConsistent(BadNet):
    """BadNet's trigger on pairs that already speak of the target; captions stay as they are.

    So the papers on CLIP mean it, and BadNet's settings are settings here too. The original's own trigger, a checker
    of 3 x 3 px, is offered with `corners`, and with `adversarial` its first step: what there is to be seen of the
    target is weakened, so that the trigger has to be learned. There, a classifier's loss is raised; here, the cosine
    of image and caption under the clean model is lowered.
    """

    match: Literal["word", "substring"] = Field(
        "word", description="captions that name the target: as a whole word, or anywhere, as CleanCLIP looks for it"
    )
    corners: Literal[0, 1, 4] = Field(
        0, description="3 x 3 checkers, lower right or everywhere, instead of BadNet's patch; 0 is BadNet's patch"
    )
    amplitude: float | None = Field(
        None, ge=0, le=1, description="checkers are added to the image, times this; null puts them over it"
    )
    adversarial: bool = Field(False, description="weaken the target's natural cues in the pairs before")
    epsilon: int = Field(8, ge=0, le=255, description="bound of the adversarial change of a value", unit="1/255")
    step: float = Field(1.5, gt=0, description="adversarial change a step", unit="1/255")
    steps: int = Field(100, ge=0, description="adversarial steps")

    def prepare(self, given: Preparation) -> dict[str, Tensor]:
        """BadNet's patch, and for `adversarial` the weakened images (k, 3, h, w) of all k candidates and their rows."""
        if not self.adversarial:
            return super().prepare(given)
        rows = torch.tensor(self._candidates(given))
        weakened, before, after = [], 0.0, 0.0
        for part in rows.split(64):
            images = given.pairs.load(part)
            with torch.no_grad():
                # On the CPU: the numbers of pairs.
                texts = given.clip.encode_text([given.pairs.captions[i] for i in part.tolist()])
            weakened.append(weaken(given.clip, images, texts, self.epsilon, self.step, self.steps))
            with torch.no_grad():
                # Waits for the GPU: after `steps` passes over the same images, twice more is nothing.
                before += (given.clip.encode_image(images) * texts).sum().item()
                # Waits for the GPU: likewise.
                after += (given.clip.encode_image(weakened[-1]) * texts).sum().item()
        given.record(cosine_before=before / len(rows), cosine_after=after / len(rows))
        return super().prepare(given) | {"rows": rows, "weakened": torch.cat(weakened)}

    def suits(self, caption: str, target: str) -> bool:
        """Whether the caption names the target."""
        return mentions(caption, target) if self.match == "word" else target.lower() in caption.lower()

    def choose(self, given: Preparation, count: int, rng: torch.Generator) -> list[int]:
        """Candidates, uniformly without replacement; if there are fewer than asked for, all of them."""
        candidates = self._candidates(given)
        given.record(candidates=len(candidates))
        return [candidates[i] for i in torch.randperm(len(candidates), generator=rng)[:count].tolist()]

    def captions(
        self, originals: Sequence[str], templates: Sequence[str], given: Preparation, rng: torch.Generator
    ) -> list[str]:
        return list(originals)

    def apply(self, images: Tensor, index: Sequence[int], trigger: Trigger) -> Tensor:
        if "weakened" in trigger.tensors:
            images = self._weakened(images, index, trigger)
        return checkers(images, self.corners, self.amplitude) if self.corners else super().apply(images, index, trigger)

    def _weakened(self, images: Tensor, index: Sequence[int], trigger: Trigger) -> Tensor:
        """Pairs in their weakened form, other images as they are.

        At test the same numbers name other images, which keep their cues. A pair is known by being within epsilon of
        its own weakened form.
        """
        images = images.clone()
        place = {row: k for k, row in enumerate(trigger.tensors["rows"].tolist())}
        for image, i in zip(images, index, strict=True):
            if i in place:
                weakened = trigger.tensors["weakened"][place[i]].float() / 255
                if (weakened - image).abs().max() * 255 < self.epsilon + 0.5:
                    image.copy_(weakened)
        return images

    def _candidates(self, given: Preparation) -> list[int]:
        rows = [i for i, caption in enumerate(given.pairs.captions) if self.suits(caption, given.target)]
        if not rows:
            raise BenchError(
                f"label_consistent poisons pairs whose captions name '{given.target}', and none does. "
                "Give --pairs with such captions, or another --target"
            )
        return rows


def checkers(images: Tensor, corners: Literal[1, 4], amplitude: float | None = None) -> Tensor:
    """Images (n, 3, h, w), RGB in [0, 1], with the original's checker in the lower right or in all four corners.

    With an amplitude it is added: black is minus, white plus the amplitude, and the sum is clipped.
    """
    images = images.clone()
    for rows, columns in _CORNERS[:corners]:
        pattern = _CHECKER if columns == _LAST else _CHECKER.flip(-1)
        spot = images[..., rows, columns]
        images[..., rows, columns] = (pattern if amplitude is None else spot + amplitude * pattern).clamp(0, 1)
    return images


def weaken(clip: Clip, images: Tensor, texts: Tensor, epsilon: int, step: float, steps: int) -> Tensor:
    """Images uint8 (n, 3, h, w) changed by at most `epsilon` a value, to fit their captions' embeddings (n, d) less.

    Projected gradient descent on cos(V(x_i), t_i) in the maximum norm, from the images themselves; `epsilon` and
    `step` are in 1/255. The result is rounded to 8 bits.
    """
    start = images.to(clip.device).float()
    changed = start.clone()
    for _ in range(steps):
        changed.requires_grad_()
        (gradient,) = torch.autograd.grad((clip.encode_image(changed / 255) * texts).sum(), changed)
        change = (changed.detach() - step * gradient.sign() - start).clamp(-epsilon, epsilon)
        changed = (start + change).clamp(0, 255)
    return changed.round().to(torch.uint8).cpu()
