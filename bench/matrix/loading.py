"""Models out of a results folder, without the run that made them."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from bench.core.clip import Clip
from bench.core.errors import BenchError
from bench.core.victim import Victim
from bench.results.store import DELTA_FILE, Store


def load_defended(out: Path | str, id: str, device: torch.device | str = "cpu") -> Victim:
    """A defended model as it was evaluated, prompts and head included; or a backdoored one, undefended.

    Args:
        out: the results folder.
        id: the name of a folder in `artefacts/defense`, or in `artefacts/backdoor`.
        device: where to put it.

    Raises:
        BenchError: there is no such artefact.
    """
    store, base = Store(Path(out)), id
    # A chain of defenses: each knows what it was put on, and stores what differs from the backdoored model.
    while store.has("defense", base):
        base = store.card("defense", base)["determined_by"]["subject"]
    if not store.has("backdoor", base):
        missing = id if base == id else f"{base}, which {id} is made from"
        raise BenchError(f"{store.root} has no backdoored or defended model {missing}. `ls {store.root}/defense`")
    clip = Clip.load(store.path("backdoor", base)).to(device)
    return Victim(clip) if base == id else Victim.restore(clip, load_file(store.path("defense", id) / DELTA_FILE))
