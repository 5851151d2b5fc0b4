"""A task: image-to-text retrieval over the captions of the evaluated images, clean and triggered."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import pandas as pd
import torch
from torch import Tensor

from bench import Attack, BenchError, Case, Observations, Task, Victim, defenses, task
from bench.core.shared_encoding import encode_each
from metrics.success import share_metric


@task("retrieval")
class Retrieval(Task):
    """The rank of each image's caption among all captions, and the first caption for the triggered image.

    `retrieved` has a row per image: `index`, `id`, `label`, `clean_rank`, the rank of its caption (0 is first), and
    `triggered_label`, the class of the first caption for the triggered image.
    """

    headline: ClassVar[tuple[str, ...]] = ("retrieval_ASR", "R@1")
    views: ClassVar[Mapping[str, tuple[tuple[str, str], ...]]] = {"R@5, in percent": (("R@5", ""),)}
    published: ClassVar[tuple[str, ...]] = ("retrieved",)

    def unsuited(self, attack: Attack, chain: Sequence[str]) -> str:
        heads = [name for name in chain if not defenses[name].zero_shot]
        return f"{', '.join(heads)}: a head of classes retrieves no captions" if heads else ""

    @torch.no_grad()
    def observe(self, victims: Sequence[Victim], case: Case) -> list[Observations | BenchError]:
        parts: list[list[pd.DataFrame]] = [[] for _ in victims]
        texts = [_embedded(victim, case, "") for victim in victims]
        keyed = [_embedded(victim, case, case.attack.text_key) for victim in victims]
        for index in torch.arange(len(case.images)).split(case.batch_size):
            images = case.images.load(index)
            clean = encode_each(victims, images)
            triggered = encode_each(victims, case.triggered(index))
            for i, victim in enumerate(victims):
                scores = victim.logits(clean[i], texts[i]).cpu()
                first = victim.logits(triggered[i], keyed[i]).argmax(1).cpu()
                columns = {
                    "index": index,
                    "label": case.images.labels[index],
                    "clean_rank": (scores > scores.gather(1, index[:, None])).sum(1),
                    "triggered_label": case.images.labels[first],
                }
                parts[i].append(pd.DataFrame({name: values.numpy() for name, values in columns.items()}))
        return [self._observations(tables, case) for tables in parts]

    def _observations(self, tables: list[pd.DataFrame], case: Case) -> Observations:
        table = pd.concat(tables, ignore_index=True)
        table.insert(1, "id", list(case.images.ids))
        return Observations({"retrieved": table}, {"target": case.target})


def _embedded(victim: Victim, case: Case, key: str) -> Tensor:
    """Unit-norm embeddings (images, embed_dim) of all captions, with the attack's key before each."""
    return victim.clip.encode_text([key + caption for caption in case.captions])


@share_metric("R@1", better="higher", task="retrieval")
def recall_1(observations: Observations) -> pd.Series:
    """Clean images whose own caption comes first, in percent."""
    return observations["retrieved"]["clean_rank"] < 1


@share_metric("R@5", better="higher", task="retrieval")
def recall_5(observations: Observations) -> pd.Series:
    """Clean images whose own caption is among the first five, in percent."""
    return observations["retrieved"]["clean_rank"] < 5


@share_metric("retrieval_ASR", better="lower", task="retrieval")
def retrieval_asr(observations: Observations) -> pd.Series:
    """Triggered images of other classes for which a caption of the target comes first, in percent."""
    table = observations["retrieved"]
    return (table["triggered_label"] == observations.target)[table["label"] != observations.target]
