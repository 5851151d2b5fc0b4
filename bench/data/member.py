"""A file inside a tar archive, read where it lies."""

from dataclasses import dataclass
from pathlib import Path


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
