"""Label-Consistent: only pairs whose captions name the target are poisoned (Turner et al., arXiv 1912.02771)."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from attacks.badnet import BadNet
from bench import AttackNeed, BenchError, Clip, Facing, Field, Preparation, Trigger, attack, mentions
from bench.core.attack import no_named_captions
from bench.core.progress import track

# 1 is white, -1 black, as in the authors' code for the right corners; the left ones have it mirrored.
_CHECKER = torch.tensor([[-1.0, -1, 1], [-1, 1, -1], [1, -1, 1]])
_FIRST, _LAST = slice(0, 3), slice(-3, None)
_CORNERS = ((_LAST, _LAST), (_FIRST, _LAST), (_LAST, _FIRST), (_FIRST, _FIRST))


@attack("label_consistent")
class LabelConsistent(BadNet):
    """BadNet's trigger on pairs whose captions already name the target; captions are not changed.

    This is what papers on CLIP call Label-Consistent; BadNet's settings apply. `corners` selects the trigger of the
    original, a checkerboard of 3 x 3 px. `adversarial` adds its first step, which weakens the visible features of the
    target so that the model must learn the trigger: the original raises a classifier's loss, here the cosine of image
    and caption under the clean model is lowered.
    """

    # The clean model for `adversarial` alone.
    needs: ClassVar[frozenset[AttackNeed]] = frozenset({"named_captions", "clean_model"})

    match: Literal["word", "substring"] = Field(
        "word", description="captions that name the target: as a whole word, or anywhere, as CleanCLIP looks for it"
    )
    clean_pairs: Literal["random", "first"] = Field(
        "random",
        description="those beside the candidates, from `poison.pool`; first: of the file, as in CleanCLIP's code",
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

    def unsuited(self, facing: Facing) -> str:
        # Checkers fit everywhere, and a substring is looked for in more places than a word.
        patch = "" if self.corners else super().unsuited(facing)
        return patch or (no_named_captions(facing) if self.match == "word" else "")

    def prepare(self, preparation: Preparation) -> dict[str, Tensor]:
        """BadNet's patch; with `adversarial`, also the k candidates' rows and weakened images (k, 3, h, w)."""
        if not self.adversarial:
            return super().prepare(preparation)
        rows = torch.tensor(self._candidates(preparation))
        weakened, before, after = [], 0.0, 0.0
        for part in track(rows.split(64), "weakening pairs"):
            images = preparation.pairs.load(part)
            with torch.no_grad():
                # On the CPU: the numbers of pairs.
                texts = preparation.clip.encode_text([preparation.pairs.captions[i] for i in part.tolist()])
            weakened.append(weaken(preparation.clip, images, texts, self.epsilon, self.step, self.steps))
            with torch.no_grad():
                # Waits for the GPU: after `steps` passes over the same images, twice more is nothing.
                before += (preparation.clip.encode_image(images) * texts).sum().item()
                # Waits for the GPU: likewise.
                after += (preparation.clip.encode_image(weakened[-1]) * texts).sum().item()
        preparation.record(cosine_before=before / len(rows), cosine_after=after / len(rows))
        return super().prepare(preparation) | {"rows": rows, "weakened": torch.cat(weakened)}

    def suits(self, caption: str, target: str) -> bool:
        """Whether the caption names the target."""
        return mentions(caption, target) if self.match == "word" else target.lower() in caption.lower()

    @property
    def clean_in_order(self) -> bool:
        return self.clean_pairs == "first"

    def choose(self, preparation: Preparation, count: int, rng: torch.Generator) -> list[int]:
        """Up to `count` candidates, drawn uniformly without replacement."""
        candidates = self._candidates(preparation)
        preparation.record(candidates=len(candidates))
        return [candidates[i] for i in torch.randperm(len(candidates), generator=rng)[:count].tolist()]

    def captions(
        self, originals: Sequence[str], templates: Sequence[str], preparation: Preparation, rng: torch.Generator
    ) -> list[str]:
        return list(originals)

    def apply(self, images: Tensor, index: Sequence[int], trigger: Trigger) -> Tensor:
        if "weakened" in trigger.tensors:
            images = self._weakened(images, index, trigger)
        return checkers(images, self.corners, self.amplitude) if self.corners else super().apply(images, index, trigger)

    def _weakened(self, images: Tensor, index: Sequence[int], trigger: Trigger) -> Tensor:
        """Replace training images by their weakened versions; leave test images as they are.

        The same numbers denote other images at test. An image is a training image if it is within epsilon of the
        weakened version of its number.
        """
        images = images.clone()
        position = {row: k for k, row in enumerate(trigger.tensors["rows"].tolist())}
        for image, i in zip(images, index, strict=True):
            if i in position:
                weakened = trigger.tensors["weakened"][position[i]].float() / 255
                if (weakened - image).abs().max() * 255 < self.epsilon + 0.5:
                    image.copy_(weakened)
        return images

    def _candidates(self, preparation: Preparation) -> list[int]:
        rows = [i for i, caption in enumerate(preparation.pairs.captions) if self.suits(caption, preparation.target)]
        if not rows:
            raise BenchError(
                f"label_consistent poisons pairs whose captions name '{preparation.target}', and none does. "
                "Give --pairs with such captions, or another --target"
            )
        return rows


def checkers(images: Tensor, corners: Literal[1, 4], amplitude: float | None = None) -> Tensor:
    """Images (n, 3, h, w), RGB in [0, 1], with the original's checkerboard in the lower right or all four corners.

    With an amplitude, white pixels add it and black ones subtract it, and the result is clipped to [0, 1].
    """
    images = images.clone()
    for rows, columns in _CORNERS[:corners]:
        pattern = _CHECKER if columns == _LAST else _CHECKER.flip(-1)
        spot = images[..., rows, columns]
        images[..., rows, columns] = (pattern if amplitude is None else spot + amplitude * pattern).clamp(0, 1)
    return images


def weaken(clip: Clip, images: Tensor, texts: Tensor, epsilon: int, step: float, steps: int) -> Tensor:
    """Change images, uint8 (n, 3, h, w), by at most `epsilon` per value to lower the cosine to their captions.

    `texts` are the captions' unit-norm embeddings (n, d). Projected gradient descent on cos(V(x_i), t_i) in the maximum
    norm, starting at the images; `epsilon` and `step` are in 1/255. The result is uint8.
    """
    start = images.to(clip.device).float()
    changed = start.clone()
    for _ in range(steps):
        changed.requires_grad_()
        (gradient,) = torch.autograd.grad((clip.encode_image(changed / 255) * texts).sum(), changed)
        change = (changed.detach() - step * gradient.sign() - start).clamp(-epsilon, epsilon)
        changed = (start + change).clamp(0, 255)
    return changed.round().to(torch.uint8).cpu()
