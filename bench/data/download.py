"""Download and unpack the archives of a data set: with resume, checksums, and mirrors."""

import hashlib
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from bench.core.errors import BenchError
from bench.core.progress import step

CHUNK = 2**20
# How often a broken connection is opened again, in a row without a new byte.
TRIES = 5
# Seconds without a byte.
TIMEOUT = 60
ELSEWHERE = "Give another address that has the file with --mirror ADDRESS."


@dataclass(frozen=True)
class Archive:
    """A file that the publisher of a data set offers.

    It is unpacked into its folder and then removed; if `gives` is `file` itself, it is kept as it is.

    Attributes:
        file: its path below the data root; mirrors have it under the same name.
        gives: a path below the data root that exists after unpacking.
        address: the publisher's address.
        checksum: ALGORITHM:HEX, from the publisher or a well-kept library; "" if there is none.
        inside: archives that come out of it, and are unpacked too.
    """

    file: str
    gives: str
    address: str = ""
    checksum: str = ""
    inside: tuple["Archive", ...] = ()


def get(archive: Archive, root: Path, mirror: str | None = None) -> bool:
    """Download and unpack an archive below `root`; returns False if its contents are there already.

    Args:
        mirror: an address below which the file is found by its name, instead of the publisher's.

    Raises:
        BenchError: the server cannot be reached or has no such file, the file is not the published one, or the disk is
            full. The bytes received so far are kept, and the next call continues from there.
    """
    if (root / archive.gives).exists():
        return False
    file = root / archive.file
    try:
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            _download(f"{mirror.rstrip('/')}/{file.name}" if mirror else archive.address, file, archive.checksum)
        if archive.gives != archive.file:
            unpack(file)
            for inner in archive.inside:
                get(inner, root)
            file.unlink()
    except OSError as error:
        reason = error.strerror or error
        raise BenchError(f"cannot write below {root}: {reason}. Make room, or choose another --data-root") from None
    if not (root / archive.gives).exists():
        raise BenchError(f"{archive.file} has no {archive.gives}: the publisher has changed it. Lay it out by hand")
    return True


def _download(address: str, file: Path, checksum: str) -> None:
    part = file.with_name(f"{file.name}.part")
    failures = 0
    if not address.startswith(("https://", "http://", "file://")):
        raise BenchError(f"{address} is no address. Give one such as --mirror https://HOST/FOLDER")
    while True:
        before = _size(part)
        try:
            _fetch(address, part)
            break
        except HTTPError as error:
            raise BenchError(f"{address}: the server says {error.code} {error.reason}. {ELSEWHERE}") from None
        except (URLError, HTTPException, ConnectionError, TimeoutError) as error:
            failures = 0 if _size(part) > before else failures + 1
            if failures >= TRIES:
                reason = getattr(error, "reason", error)
                raise BenchError(
                    f"{address} cannot be reached: {reason}. {ELSEWHERE} The same command continues"
                ) from None
    if checksum and (found := digest(part, checksum)) != checksum:
        part.unlink()
        raise BenchError(f"{address} gave another file: {found}, published is {checksum}. {ELSEWHERE}")
    part.replace(file)


def _fetch(address: str, part: Path) -> None:
    """Append the missing bytes to a part of a file.

    Raises:
        ConnectionError: fewer bytes arrived than the server announced.
        BenchError: the server sends a web page instead of the file.
    """
    start = _size(part)
    request = Request(address, headers={"User-Agent": "bench", **({"Range": f"bytes={start}-"} if start else {})})
    try:
        response = urlopen(request, timeout=TIMEOUT)
    except HTTPError as error:
        # Nothing is missing: the last call was stopped after the last byte.
        if error.code == 416 and start and error.headers.get("Content-Range", "").endswith(f"/{start}"):
            return
        raise
    with response:
        if response.headers.get_content_type() == "text/html":
            raise BenchError(f"{address} gives a web page and not the file. {ELSEWHERE}")
        # A server that knows no ranges sends all of it.
        start = start if response.status == 206 else 0
        total = start + int(response.headers.get("Content-Length") or 0)
        if total - start > shutil.disk_usage(part.parent).free:
            raise OSError(28, f"{(total - start) / 1e9:.3g} GB do not fit on the disk")
        with part.open("ab" if start else "wb") as stream:
            for block in _blocks(response):
                stream.write(block)
                step(part.stem, stream.tell(), total)
    if _size(part) < total:
        raise ConnectionError(f"{_size(part):,} of {total:,} bytes came")


def _blocks(response: HTTPResponse) -> Iterator[bytes]:
    while block := response.read(CHUNK):
        yield block


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def digest(file: Path, checksum: str) -> str:
    """ALGORITHM:HEX of a file, by the algorithm of a checksum."""
    algorithm = checksum.partition(":")[0]
    with file.open("rb") as stream:
        return f"{algorithm}:{hashlib.file_digest(stream, algorithm).hexdigest()}"


def unpack(file: Path) -> None:
    """Unpack a tar or zip archive into its folder; interrupted, it leaves nothing there.

    Raises:
        BenchError: it is neither, it is damaged, or it would write outside the folder.
    """
    aside = file.with_name(f".{file.name}.unpacked")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as zipped:
                zipped.extractall(aside)
        else:
            with tarfile.open(file) as tarred:
                tarred.extractall(aside, filter="data")
        for entry in sorted(aside.iterdir()):
            merge_into(entry, file.parent / entry.name)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        reason = str(error).splitlines()[0].rstrip(":") if str(error) else "it breaks off"
        raise BenchError(f"{file} cannot be unpacked: {reason}. Remove it, and run the same again") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def merge_into(entry: Path, place: Path) -> None:
    """Move a file or folder; into a folder that is there, entry by entry."""
    if entry.is_dir() and place.is_dir():
        for inner in sorted(entry.iterdir()):
            merge_into(inner, place / inner.name)
    else:
        entry.replace(place)
