"""Linear Probe: a new linear classifier on the frozen image encoder."""

from dataclasses import replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import CleanData, Defense, Facing, Field, Images, Need, Scale, Victim, Work, defense
from bench.core.defense import too_few_images
from bench.core.randomness import seeded
from bench.training.fine_tuning import shuffled_batches


@defense("linear_probe")
class LinearProbe(Defense):
    """A linear layer on the frozen, projected, unnormalised image embedding (paper v1, B.2).

    SGD with a constant learning rate, no augmentation; features are computed once. After RVPT in a chain, it probes the
    prompted encoder. The paper does not say which images it trains on; its accuracy is that of a few-shot probe, so we
    use the same images as RVPT does. The other settings are for comparison.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"shots"})
    zero_shot: ClassVar[bool] = False

    shots: int | None = Field(16, ge=1, description="training images a class; null: the whole training set")
    feature: Literal["embedding", "penultimate"] = Field(
        "embedding",
        description="what is classified: the projected embedding, or the class token before projection",
    )
    normalise: bool = Field(False, description="whether features are brought to unit norm")
    learning_rate: float = Field(0.01, gt=0, description="constant learning rate of SGD")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    batch_size: int = Field(32, ge=1, description="images a step")
    epochs: int = Field(40, ge=1, description="passes over the images")
    drop_last: bool = Field(False, description="leave out the last, incomplete batch of an epoch")

    def fit(self, victim: Victim, data: CleanData) -> Victim:
        shots = data.all_images() if self.shots is None else data.shots(self.shots)
        victim = replace(victim, reads=self.feature, unit_norm=self.normalise)
        features = embed(victim, shots)
        labels = shots.labels.to(features.device)
        with seeded(data.rng("head").initial_seed()):
            head = torch.nn.Linear(features.shape[1], len(shots.classes))
        head = head.to(features.device)
        optimiser = torch.optim.SGD(head.parameters(), lr=self.learning_rate, momentum=self.momentum)
        drop = self.drop_last and len(shots) >= self.batch_size
        losses: list[Tensor] = []
        for index in shuffled_batches(len(shots), self.batch_size, self.epochs, data.rng("batches"), drop_last=drop):
            loss = F.cross_entropy(head(features[index]), labels[index])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.detach())
        # Asked for at once: a step is so short that waiting for its loss would take longer.
        data.log.setdefault("ce", []).extend(torch.stack(losses).tolist())
        return replace(victim, head=head.requires_grad_(False))

    def unsuited(self, facing: Facing) -> str:
        return super().unsuited(facing) or too_few_images(self.shots or 0, facing)

    def work(self, scale: Scale) -> Work:
        return Work(forward=(self.shots or 0) * scale.classes, size=4 * scale.classes * scale.sizes.embed_dim)


@torch.no_grad()
def embed(victim: Victim, images: Images, batch_size: int = 256) -> Tensor:
    """The features that the victim's head classifies, (n, embed_dim) or (n, width)."""
    parts = torch.arange(len(images)).split(batch_size)
    return torch.cat([victim.features(victim.encode(images.load(part))) for part in parts])
