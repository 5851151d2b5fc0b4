"""Image files on disk or inside a tar archive, and listing the files of a folder."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# torchvision's (`torchvision.datasets.folder.IMG_EXTENSIONS`), which takes longer to import than torch.
IMG_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True, slots=True)
class Member:
    """`size` bytes from byte `offset` of an uncompressed archive, which was last written at `time` (ns)."""

    archive: Path
    offset: int
    size: int
    time: int

    def read_bytes(self) -> bytes:
        with self.archive.open("rb") as stream:
            stream.seek(self.offset)
            return stream.read(self.size)

    def state(self) -> tuple[str, int, int, int]:
        """What tells that it has changed."""
        return str(self.archive.absolute()), self.offset, self.size, self.time

    def __str__(self) -> str:
        return f"{self.archive} at byte {self.offset}"


File = Path | Member


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
