"""Oxford-IIIT Pets: the official lists of images."""

from functools import cached_property
from pathlib import Path
from typing import ClassVar

from bench.core.dataset import Split, dataset
from bench.core.errors import BenchError
from bench.data.download import Archive
from bench.data.files import HELD_OUT, Branch, FileDataset, hold_out

ADDRESS = "https://www.robots.ox.ac.uk/~vgg/data/pets/data"


@dataset("oxfordpets")
class OxfordPets(FileDataset):
    """Oxford-IIIT Pets, 37 breeds: the official test list; 20 % of each breed of trainval are held out as val.

    The share is CoOp's; which images, this suite draws, always the same ones.
    """

    layout = "OxfordPets is DIR/images/*.jpg, DIR/annotations/trainval.txt and DIR/annotations/test.txt."
    source = (
        "In DIR:\n"
        f"  wget {ADDRESS}/images.tar.gz\n"
        f"  wget {ADDRESS}/annotations.tar.gz\n"
        "  tar -xzf images.tar.gz && tar -xzf annotations.tar.gz"
    )
    # Checksums: torchvision's.
    archives = (
        Archive("images.tar.gz", "images", f"{ADDRESS}/images.tar.gz", "md5:5c4f3ee8e5d25df40f4fd59a7f44e54c"),
        Archive(
            "annotations.tar.gz", "annotations", f"{ADDRESS}/annotations.tar.gz", "md5:95a8c909bbe2e81eed6a22bccdf3f68f"
        ),
    )
    size = 37
    published: ClassVar[dict[Split, int]] = {"train": 2_944, "val": 736, "test": 3_669}
    places = ("oxford_pets", "oxford-iiit-pet", ".")

    @property
    def single(self) -> str:
        return "a photo of a {}, a type of pet."

    def classes(self) -> tuple[str, ...]:
        return tuple(breed.replace("_", " ") for breed in self._tree["test"].images)

    def branch(self, split: Split) -> Branch:
        return self._tree[split]

    @cached_property
    def _tree(self) -> dict[Split, Branch]:
        lists = [self.folder() / "annotations" / name for name in ("trainval.txt", "test.txt")]
        for file in lists:
            if not file.is_file():
                raise self.lacking(f"annotations/{file.name}")
        trainval, test = map(_read, lists)
        if list(trainval.images) != list(test.images):
            raise BenchError(f"{lists[0]} and {lists[1]} differ in breeds. Unpack annotations.tar.gz anew.")
        train, val = hold_out(trainval, HELD_OUT, "oxfordpets", "val")
        return {"train": train, "val": val, "test": test}


def _read(file: Path) -> Branch:
    """A list: `Abyssinian_100 1 1 1` is an image, and the number of its breed, from 1; species and breed follow.

    Raises:
        BenchError: a line of another form, or breeds and numbers that do not go together.
    """
    rows: list[tuple[int, str, str]] = []
    for number, line in enumerate(file.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        image, *columns = line.split()
        breed = image.rpartition("_")[0].lower()
        if not breed or not columns or not columns[0].isdecimal():
            raise BenchError(f"{file}, line {number}: '{line}' is not an image and its class. Get the file anew.")
        rows.append((int(columns[0]), breed, f"images/{image}.jpg"))
    breeds = sorted({(label, breed) for label, breed, _ in rows})
    if [label for label, _ in breeds] != list(range(1, len(breeds) + 1)):
        raise BenchError(f"{file} does not number its breeds from 1, each with one number. Get the file anew.")
    return Branch({breed: [id for label, _, id in rows if label == number] for number, breed in breeds})
