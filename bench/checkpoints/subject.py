"""What an audit or a purification starts from: the model, its reference, images and class names."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import torch

from bench.core.clip import CONFIG_FILE, Clip
from bench.core.dataset import Geometry, Split, datasets
from bench.core.errors import BenchError
from bench.core.images import Labelled, hash_of
from bench.core.randomness import generator
from bench.core.victim import Victim
from bench.data.decoding import decode, native
from bench.data.on_disk import files_below, is_image
from bench.data.world import World
from bench.models import ModelSettings, load_model
from bench.models.load import FOLDER, MINI, configuration

# Of a large folder, so many random images are read: more than the most thorough audit takes, in case some are damaged.
MOST_AUDITED = 512
# To repair with, and to measure on, beside these.
MOST_IMAGES = 4096
NO_LABEL = -1
# Of the embedded world: to look for triggers on, to repair with, to measure clean accuracy on.
SPLITS: tuple[Split, Split, Split] = ("val", "train", "test")


@dataclass(frozen=True)
class Subject:
    """A model to look into. `reference` is the model that it was fine-tuned from, as far as it is declared.

    `audited` are images to look for triggers on, `repairing` those to repair with, `measured` those that clean accuracy
    and triggers are measured on; of a user's images, these are the audited ones in reverse order. Labels are `NO_LABEL`
    where they are not known.
    """

    name: str
    victim: Victim
    reference: Clip | None
    audited: Labelled
    repairing: Labelled
    measured: Labelled
    templates: tuple[str, ...]

    @property
    def clip(self) -> Clip:
        return self.victim.clip

    @property
    def classes(self) -> tuple[str, ...]:
        return self.audited.classes

    @property
    def skipped(self) -> tuple[str, ...]:
        """Image files that could not be read."""
        return tuple(dict.fromkeys([*self.audited.skipped, *self.repairing.skipped, *self.measured.skipped]))


def open_subject(
    checkpoint: Path | Clip | Victim,
    model: str = MINI,
    reference: str | Clip | None = None,
    images: Path | Labelled | None = None,
    classes: str | Sequence[str] | None = None,
    cache: Path = Path("results/data"),
    device: str = "cpu",
    repairs: bool = False,
) -> Subject:
    """Open a checkpoint with what goes with it.

    Args:
        checkpoint: a file of weights of the architecture `model`, or a folder as open_clip's `local-dir:` reads it,
            which says its own; or a model that is open.
        reference: `mini`, a tag of open_clip's for `model`, a file or folder of weights, or a CLIP.
        images: a folder; None is the embedded world, for a model of the embedded one's architecture. Images that lie in
            folders called as the classes are taken as labelled.
        classes: names; a text file with a name a line, or the name of a data set; None is the world's or ImageNet's.
        cache: where decoded images are kept.
        repairs: whether the model is to be repaired: then the second half of `images` is for that, and the first half
            alone is audited. Otherwise all of them are audited.

    Raises:
        BenchError: something of it cannot be found, read or used.
    """
    base = reference if isinstance(reference, Clip | None) else load_model(_reference(reference, model), device)
    victim = _open(checkpoint, model, reference, device)
    name = str(checkpoint) if isinstance(checkpoint, Path) else "a model"
    embedded = preset_for(victim.clip) == MINI
    if isinstance(images, Labelled) and classes is None:
        classes = images.classes
    names = _class_names(classes, embedded and images is None)
    geometry = Geometry.of(victim.clip, cache)
    if images is None:
        if not embedded:
            raise BenchError("an audit looks at images: give a folder of unlabelled ones with --images DIR")
        world = World()
        audited, repairing, measured = (_relabelled(world.labelled(split, geometry), names) for split in SPLITS)
        return Subject(name, victim, base, audited, repairing, measured, world.templates)
    if isinstance(images, Path):
        given = _folder(images, names, geometry, MOST_IMAGES if repairs else MOST_AUDITED)
    else:
        given = _shuffled(_relabelled(images, names))
    audited, repairing = _halves(given) if repairs else (given, given.subset(torch.arange(0)))
    # From the end, as audits make their triggers on the first ones.
    measured = audited.subset(torch.arange(len(audited)).flip(0))
    return Subject(name, victim, base, audited, repairing, measured, ("a photo of a {}.",))


def preset_for(clip: Clip) -> str:
    """The preset whose settings of methods fit a model's size."""
    return MINI if clip.config == configuration(ModelSettings()) else "vit-b-32"


def _open(checkpoint: Path | Clip | Victim, model: str, reference: object, device: str) -> Victim:
    if isinstance(checkpoint, Victim):
        return checkpoint
    if isinstance(checkpoint, Clip):
        return Victim(checkpoint)
    if not checkpoint.exists():
        raise BenchError(f"no file {checkpoint}. Give a file of weights, or a folder with {CONFIG_FILE}")
    return Victim(load_model(settings_of(checkpoint, model, reference if _is_tag(reference) else None), device))


def _is_tag(reference: object) -> TypeGuard[str]:
    return isinstance(reference, str) and reference != MINI and not Path(reference).exists()


def settings_of(file: Path, model: str = MINI, tag: str | None = None) -> ModelSettings:
    """How a file of weights of an architecture, or a folder that says its own, is opened."""
    if file.is_dir():
        return ModelSettings(name=f"{FOLDER}{file}")
    return ModelSettings(name=model, pretrained=tag, checkpoint=file)


def _reference(reference: str, model: str) -> ModelSettings:
    if reference == MINI:
        return ModelSettings()
    if not _is_tag(reference):
        return settings_of(Path(reference), model)
    if model == MINI:
        raise BenchError(
            f"--reference {reference}: no such file, and {MINI} has no tags. Give a file or folder, or {MINI}"
        )
    return ModelSettings(name=model, pretrained=reference)


def _class_names(classes: str | Sequence[str] | None, world: bool) -> tuple[str, ...]:
    if classes is None:
        return datasets["world" if world else "imagenet"]().classes()
    if not isinstance(classes, str):
        return tuple(classes)
    if classes in datasets:
        return datasets[classes]().classes()
    if not Path(classes).is_file():
        raise BenchError(
            f"--classes {classes}: neither a file with a name a line nor a data set. `bench list datasets` lists these."
        )
    try:
        lines = Path(classes).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"--classes {classes} cannot be read as text: {error}") from None
    names = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if len(names) < 2:
        raise BenchError(f"--classes {classes} has {len(names)} names: give two or more, one a line")
    return names


def _relabelled(images: Labelled, names: tuple[str, ...]) -> Labelled:
    """Images under other class names; labels stay where the names are among them."""
    places = torch.tensor([names.index(name) if name in names else NO_LABEL for name in images.classes])
    return Labelled(**{**vars(images), "labels": places[images.labels], "classes": names})


def _shuffled(images: Labelled) -> Labelled:
    """In random order: a user's images may be sorted by class, and some audits take the first ones."""
    return images.subset(torch.randperm(len(images), generator=generator(0, "given images")))


def _folder(folder: Path, names: tuple[str, ...], geometry: Geometry, most: int) -> Labelled:
    """At most so many images of a folder and those in it, in random order; what cannot be read is skipped and told."""
    if not folder.is_dir():
        raise BenchError(f"--images {folder}: no such folder")
    found = [name for name in files_below(folder) if is_image(name)]
    if not found:
        raise BenchError(f"--images {folder}: no image in it")
    order = torch.randperm(len(found), generator=generator(0, "images of a folder"))[:most].tolist()
    ids = [found[i] for i in order]
    paths = [folder / id for id in ids]
    decoded = decode(paths, ids, geometry)
    assert decoded.pixels is not None
    kept = [ids[i] for i in decoded.kept]
    known = {_plain(name): label for label, name in enumerate(names)}
    labels = [known.get(_plain(Path(id).parent.name), NO_LABEL) for id in kept]
    return Labelled(
        kept,
        decoded.pixels,
        hash_of([decoded.fingerprint, labels]),
        native=lambda i: native(folder / kept[i]),
        skipped=decoded.skipped,
        labels=torch.tensor(labels),
        classes=names,
    )


def _plain(name: str) -> str:
    return name.replace("_", " ").lower()


def _halves(images: Labelled) -> Sequence[Labelled]:
    middle = (len(images) + 1) // 2
    return [images.subset(index) for index in (torch.arange(middle), torch.arange(middle, len(images)))]
