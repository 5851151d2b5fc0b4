"""Numbers of the paper (arXiv 2412.20392, versions 1 and 3), as printed, under the suite's names."""

from importlib.resources import files

import pandas as pd

from bench.core.errors import unknown

SOURCES = ("v1", "v3")
METRICS = {
    **{name: name.upper() for name in ("asr", "ca", "pa")},
    # Version 1 alone prints PR, and defines it as a ratio.
    "pr": "PR_ratio",
    "training_time": "seconds",
    "gpu_memory": "peak_memory_mb",
    "tunable_parameters": "tunable",
    "training_samples": "samples",
}
UNITS = {"thousand": 1e3, "million": 1e6}
PERTURBATIONS = {
    "gaussian_noise_std0.01": "gaussian-0.01",
    "gaussian_noise_std0.03": "gaussian-0.03",
    "gaussian_blur_k3": "blur-3",
    "gaussian_blur_k5": "blur-5",
    "color_jitter": "jitter",
    "horizontal_flip": "flip",
}
# The models of table S1 as defenses. The supervised ViT is none.
DEFENSES = {"clip_vit": "clean_model", "vpt_16shot": "vpt", "rvpt_1shot": "rvpt", "rvpt_16shot": "rvpt"}
TARGETS = {"imagenet": "banana", "caltech101": "accordion", "oxfordpets": "samoyed"}


def published(source: str) -> pd.DataFrame:
    """The numbers that version `v1` or `v3` prints, one a row.

    Columns are `table`, `dataset`, `model`, `defense`, `attack`, `target`, `variant`, `perturbation`, `metric` and
    `value`: percent (ASR, CA, PA), a ratio (PR_ratio), seconds, MB, or a count (tunable, samples). What a table leaves
    open is "". CleanCLIP's cost stands under ImageNet, whose defense it is, not under CC3M, on which it is tuned.

    Raises:
        BenchError: there is no such source.
    """
    if source not in SOURCES:
        raise unknown("version of the paper", source, SOURCES, "For example: bench report results --published v1")
    with files("reports").joinpath("published.csv").open() as file:
        rows = pd.read_csv(file, keep_default_na=False).rename(columns={"method": "defense"})
    rows = rows[rows["source"] == source].reset_index(drop=True)
    dataset = rows["dataset"].replace("cc3m", "imagenet")
    return rows.assign(
        dataset=dataset,
        target=rows["target"].where(rows["target"] != "", dataset.map(TARGETS).fillna("")),
        defense=rows["defense"].where(rows["defense"] != "", rows["variant"].map(DEFENSES).fillna("")),
        perturbation=rows["perturbation"].replace(PERTURBATIONS),
        metric=rows["metric"].replace(METRICS),
        value=rows["value"] * rows["unit"].map(UNITS).fillna(1.0),
    ).drop(columns=["source", "unit"])
