"""A step of RVPT at ViT-B/32: frozen activations and class tokens cached, against all of it recomputed.

Random weights, the paper's prompts (D = 3, b = 50), a small batch. CPU seconds of one thread, so that other
on their number. CPU seconds of one thread, so that other programs matter little. Both must take the same losses.
"""

import time
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from bench import CleanData, Clip, Labelled, Victim, class_embeddings, generator
from bench.core.encoder import encode, layers
from bench.models import ModelSettings, load_model
from defenses.rvpt import RVPT, feature_repelling

IMAGES, STEPS = 8, 3


@dataclass(frozen=True)
class Clock(CleanData):
    """Takes the time whenever a step is recorded."""

    times: list[float] = field(default_factory=list)

    def record(self, **values: float) -> None:
        super().record(**values)
        self.times.append(time.process_time())


def naive(method: RVPT, clip: Clip, data: Clock) -> None:
    """Each step runs the whole frozen tower, and then the whole prompted one."""
    victim, images = Victim(clip), data.shots(method.shots)
    prompts = method._initial(victim, layers(clip) - method.depth, data.rng("prompts")).requires_grad_()
    texts = class_embeddings(clip, images.classes, data.templates)
    optimiser = torch.optim.SGD([prompts], momentum=method.momentum, weight_decay=method.weight_decay)
    clip.model.requires_grad_(False)
    for epoch in range(method.epochs):
        optimiser.param_groups[0]["lr"] = method._rate(epoch)
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
    ids, classes = [str(i) for i in range(IMAGES)], tuple("abcdefgh")
    train = Labelled(ids, pixels, "images", labels=torch.arange(IMAGES), classes=classes)
    # Without crop and flip, which is where views may be cached. The first step, at a rate of 1e-5, warms up.
    method = RVPT(shots=1, batch_size=IMAGES, epochs=STEPS + 1, min_crop=1, flip=False, learning_rate=0.1)
    clocks = [Clock(train, ("a photo of a {}.",), 0, 0) for _ in range(2)]
    method.fit(Victim(clip), clocks[0])
    naive(method, clip, clocks[1])
    for curve in ("ce", "fr"):
        cached, recomputed = (torch.tensor(clock.log[curve]) for clock in clocks)
        torch.testing.assert_close(cached, recomputed, rtol=1e-4, atol=1e-4)
    fast, slow = (min(b - a for a, b in zip(c.times, c.times[1:], strict=False)) for c in clocks)
    print(
        f"cached {fast:.2f} s, naive {slow:.2f} s a step of {IMAGES} images; L_FR {clocks[0].log['fr'][-1]:.4f} in both"
    )
    print(f"rvpt_step ratio {slow / fast:.2f}")


if __name__ == "__main__":
    main()
