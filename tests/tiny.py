"""Settings that, on top of the preset `smoke`, make a run of seconds."""

TINY = (
    "world.train_per_class=2",
    "poison.pairs=32",
    "poison.count=8",
    "zero_shot.perturbations=[flip, trigger]",
    "zero_shot.perturbation_images=8",
    "execution.workers=1",
)
