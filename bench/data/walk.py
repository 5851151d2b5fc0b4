"""The files below a folder, as data sets and pairs see them."""

import os
from collections.abc import Iterator
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS


def files_below(folder: Path) -> Iterator[str]:
    """All files below a folder, as paths relative to it; links are followed, hidden files and folders ignored.

    A folder's own files come before those of the folders in it, both by name.
    """
    for where, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        prefix = "" if where == str(folder) else f"{Path(where).relative_to(folder).as_posix()}/"
        yield from (prefix + name for name in sorted(names) if not name.startswith("."))


def is_image(name: str) -> bool:
    """Whether a file is called like an image."""
    return os.path.splitext(name)[1].lower() in IMG_EXTENSIONS  # noqa: PTH122
