"""A step of RVPT at ViT-B/32: what is frozen cached, against all of it recomputed.

Random weights, the paper's prompts (D = 3, b = 50), a small batch, one image a class. `rvpt_step` recomputes
everything in each step: the frozen tower, its first blocks for the prompted one, and the class texts; for
`rvpt_step_tower` the class texts are cached in both, so that it does not depend on the number of classes. CPU seconds
of one thread, so that other programs matter little. All must take the same losses.
"""

import time
from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.nn.functional as F

from bench import CleanData, Clip, Labelled, Victim, class_embeddings, generator
from bench.core.encoder import encode, layers
from bench.models import ModelSettings, load_model
from defenses.rvpt import RVPT, feature_repelling

IMAGES, STEPS = 4, 3


@dataclass(frozen=True)
class Clock(CleanData):
    """Takes the time whenever a step is recorded."""

    times: list[float] = field(default_factory=list)

    def record(self, **values: float) -> None:
        super().record(**values)
        self.times.append(time.process_time())


def naive(method: RVPT, clip: Clip, data: Clock, read_each_step: bool) -> None:
    """Each step runs the whole frozen tower, the whole prompted one, and perhaps the text tower."""
    victim, images = Victim(clip), data.shots(method.shots)
    prompts = method._initial(victim, layers(clip) - method.depth, data.rng("prompts")).requires_grad_()
    texts = class_embeddings(clip, images.classes, data.templates)
    optimiser = torch.optim.SGD([prompts], momentum=method.momentum, weight_decay=method.weight_decay)
    clip.model.requires_grad_(False)
    for epoch in range(method.epochs):
        optimiser.param_groups[0]["lr"] = method._rate(epoch)
        if read_each_step:
            texts = class_embeddings(clip, images.classes, data.templates)
        batch = images.load(range(IMAGES))
        with torch.no_grad():
            frozen = encode(clip, batch).class_tokens[method.depth :]
        seen = encode(clip, batch, prompts)
        repelling = feature_repelling(seen.class_tokens, frozen)
        cross_entropy = F.cross_entropy(victim.logits(seen, texts), images.labels)
        optimiser.zero_grad()
        (cross_entropy + method.alpha * repelling).backward()
        optimiser.step()
        data.record(ce=cross_entropy.item(), fr=repelling.item())


def main() -> None:
    torch.set_num_threads(1)
    clip = load_model(ModelSettings(name="ViT-B-32", pretrained="random"), "cpu")
    pixels = torch.randint(
        256, (IMAGES, 3, clip.image_size, clip.image_size), generator=generator(0, "images"), dtype=torch.uint8
    )
    ids, classes = [str(i) for i in range(IMAGES)], tuple("abcd")
    train = Labelled(ids, pixels, "images", labels=torch.arange(IMAGES), classes=classes)
    # Without crop and flip, which is where views may be cached. The first step, at a rate of 1e-5, warms up.
    method = RVPT(shots=1, batch_size=IMAGES, epochs=STEPS + 1, min_crop=1, flip=False, learning_rate=0.1)
    clocks = [Clock(train, ("a photo of a {}.",), 0, 0) for _ in range(3)]
    method.fit(Victim(clip), clocks[0])
    naive(method, clip, clocks[1], read_each_step=False)
    naive(method, clip, clocks[2], read_each_step=True)
    for curve in ("ce", "fr"):
        for clock in clocks[1:]:
            expected = torch.tensor(clock.log[curve])
            torch.testing.assert_close(torch.tensor(clocks[0].log[curve]), expected, rtol=1e-4, atol=1e-4)
    cached, tower, everything = (min(b - a for a, b in pairwise(clock.times)) for clock in clocks)
    print(f"a step of {IMAGES} images: cached {cached:.2f} s, tower recomputed {tower:.2f} s, all {everything:.2f} s")
    print(f"rvpt_step_tower ratio {tower / cached:.2f}")
    print(f"rvpt_step ratio {everything / cached:.2f}")


if __name__ == "__main__":
    main()
