"""Images that are decoded whenever they are asked for, where a disk has no room for their pixels."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from bench.core.dataset import Geometry
from bench.core.errors import BenchError
from bench.data.decoding import decode_one
from bench.data.member import File


class Decoder:
    """What indexing gives is uint8 RGB (k, 3, size, size), the very pixels that `decode` would have stored."""

    def __init__(self, files: Sequence[File], geometry: Geometry) -> None:
        self.files = files
        self.geometry = geometry
        self.shape: tuple[int, ...] = (len(files), 3, geometry.size, geometry.size)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        files = [self.files[i] for i in index.tolist()]
        if not files:
            return np.empty((0, *self.shape[1:]), np.uint8)
        # Decoding and resizing release Python's lock, so threads do what processes would.
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1, len(files))) as pool:
            images = [image for _, image in pool.map(partial(decode_one, geometry=self.geometry), files)]
        for file, image in zip(files, images, strict=True):
            if isinstance(image, str):
                raise BenchError(f"{file} could be decoded before and cannot now: {image}. Mend it and run again.")
        return np.stack(images)

    def subset(self, index: np.ndarray) -> "Decoder":
        return Decoder([self.files[i] for i in index.tolist()], self.geometry)
