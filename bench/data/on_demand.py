"""Images that are decoded whenever they are asked for, where a disk has no room for their pixels."""

from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np

from bench.core.dataset import Geometry
from bench.core.errors import BenchError
from bench.core.images import decoding_threads
from bench.data.decoding import decode_one
from bench.data.member import File


class Decoder:
    """What indexing gives is uint8 RGB (k, 3, size, size), the very pixels that `decode` would have stored."""

    def __init__(self, files: Sequence[File], geometry: Geometry) -> None:
        self.files = files
        self.geometry = geometry
        self.shape: tuple[int, ...] = (len(files), 3, geometry.size, geometry.size)
        self._threads = decoding_threads()
        self._ahead: dict[int, Future[np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        images = [self._ahead.pop(i) if i in self._ahead else self._start(i) for i in index.tolist()]
        return np.stack([image.result() for image in images]) if images else np.empty((0, *self.shape[1:]), np.uint8)

    def ahead(self, index: np.ndarray) -> None:
        """Start to decode what will be asked for next; until then it is kept."""
        self._ahead |= {i: self._start(i) for i in index.tolist() if i not in self._ahead}

    def subset(self, index: np.ndarray) -> "Decoder":
        return Decoder([self.files[i] for i in index.tolist()], self.geometry)

    def _start(self, i: int) -> Future[np.ndarray]:
        return self._threads.submit(self._decode, self.files[i])

    def _decode(self, file: File) -> np.ndarray:
        _, image = decode_one(file, self.geometry)
        if isinstance(image, str):
            raise BenchError(f"{file} could be decoded before and cannot now: {image}. Mend it and run again.")
        return image
