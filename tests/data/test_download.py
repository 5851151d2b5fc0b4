"""`bench data get` against a small server on the loopback address: resume, checksums, mirrors, and what it refuses."""

import hashlib
import re
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import pytest
from layouts import caltech, pets, photo
from typer.testing import CliRunner

from bench import BenchError, datasets
from bench.cli import app
from bench.core.registry import load_plugins
from bench.data import download
from bench.data.caltech101 import Caltech101
from bench.data.download import Archive, get
from bench.data.files import FileDataset
from bench.data.oxfordpets import OxfordPets


@dataclass
class Server:
    """Files by name; `seen` has the path and the Range of each request.

    `breaks` says how many bytes of the next answers are sent before the connection breaks; `ranges` whether parts can
    be asked for.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    kind: str = "application/octet-stream"
    ranges: bool = True
    breaks: list[int] = field(default_factory=list)
    seen: list[tuple[str, str]] = field(default_factory=list)
    address: str = ""

    def handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name, asked = self.path.removeprefix("/"), self.headers.get("Range", "")
                server.seen.append((name, asked))
                if name not in server.files:
                    self.send_error(404)
                    return
                content, start = server.files[name], 0
                if asked and server.ranges:
                    start = int(asked.removeprefix("bytes=").removesuffix("-"))
                    if start >= len(content):
                        self.send_response(416)
                        self.send_header("Content-Range", f"bytes */{len(content)}")
                        self.end_headers()
                        return
                self.send_response(206 if start else 200)
                self.send_header("Content-Type", server.kind)
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                stop = start + server.breaks.pop(0) if server.breaks else len(content)
                self.wfile.write(content[start:stop])

            def log_message(self, *_: object) -> None:
                pass

        return Handler


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    http = ThreadingHTTPServer(("127.0.0.1", 0), made.handler())
    made.address = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, args=(0.05,))
    thread.start()
    yield made
    http.shutdown()
    thread.join()
    http.server_close()


def packed(folder: Path, *names: str, kind: str = "w:gz") -> bytes:
    """A tar archive of some entries of a folder."""
    stream = BytesIO()
    with tarfile.open(fileobj=stream, mode=kind) as archive:  # type: ignore[call-overload]
        for name in names:
            archive.add(folder / name, name)
    return stream.getvalue()


def md5(content: bytes) -> str:
    return f"md5:{hashlib.md5(content).hexdigest()}"


@pytest.fixture
def tar(server: Server, tmp_path: Path) -> Archive:
    """An archive with a folder of two files, which the server has."""
    folder = tmp_path / "made/things"
    folder.mkdir(parents=True)
    (folder / "a.txt").write_bytes(bytes(range(256)) * 400)
    (folder / "b.txt").write_text("b")
    content = packed(tmp_path / "made", "things", kind="w")
    server.files["things.tar"] = content
    return Archive("things.tar", "things", f"{server.address}/things.tar", md5(content))


def files(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def test_an_archive_is_fetched_checked_unpacked_and_removed(server: Server, tar: Archive, tmp_path: Path) -> None:
    root = tmp_path / "root"
    assert get(tar, root)
    assert files(root) == ["things/a.txt", "things/b.txt"]
    assert (root / "things/a.txt").read_bytes() == (tmp_path / "made/things/a.txt").read_bytes()
    assert not get(tar, root)
    assert server.seen == [("things.tar", "")], "what is there is not fetched again"


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_connection_is_taken_up_where_it_broke(
    server: Server, tar: Archive, tmp_path: Path, ranges: bool
) -> None:
    server.breaks, server.ranges = [1000, 3000], ranges
    assert get(tar, tmp_path / "root")
    assert files(tmp_path / "root") == ["things/a.txt", "things/b.txt"]
    starts = [asked for _, asked in server.seen]
    assert starts == ["", "bytes=1000-", f"bytes={4000 if ranges else 3000}-"]


def test_an_interrupted_download_goes_on_with_the_next_call(server: Server, tar: Archive, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "things.tar.part").write_bytes(server.files["things.tar"][:5000])
    assert get(tar, root)
    assert server.seen == [("things.tar", "bytes=5000-")]
    shutil.rmtree(root)
    root.mkdir()
    (root / "things.tar.part").write_bytes(server.files["things.tar"])
    assert get(tar, root), "stopped after the last byte"
    assert files(root) == ["things/a.txt", "things/b.txt"]


def test_an_interrupted_unpacking_leaves_nothing_half(
    tar: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(download, "merge_into", stopped)
        with pytest.raises(KeyboardInterrupt):
            get(tar, tmp_path / "root")
    assert files(tmp_path / "root") == ["things.tar"]
    assert get(replace(tar, address="http://nowhere.invalid"), tmp_path / "root"), "nothing is fetched again"


def test_a_mirror_has_the_file_by_its_name(server: Server, tar: Archive, tmp_path: Path) -> None:
    server.files["mirror/things.tar"] = server.files.pop("things.tar")
    assert get(replace(tar, address="http://nowhere.invalid/x?id=3"), tmp_path, f"{server.address}/mirror/")


def other_file(server: Server) -> None:
    server.files["things.tar"] = b"something else"


def page(server: Server) -> None:
    server.kind = "text/html; charset=utf-8"


def gone(server: Server) -> None:
    server.files.clear()


def breaking(server: Server) -> None:
    server.breaks = [0] * 50


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            other_file,
            r"gave another file: md5:\w+, published is md5:\w+. Give another address .* with --mirror ADDRESS",
        ),
        (page, "gives a web page and not the file. Give another address"),
        (gone, "the server says 404 Not Found. Give another address"),
        (breaking, "cannot be reached: 0 of .* bytes came. .* The same command continues"),
    ],
    ids=["other file", "page", "gone", "breaking"],
)
def test_what_is_not_the_published_file_is_refused(
    server: Server, tar: Archive, tmp_path: Path, change: Callable[[Server], None], message: str
) -> None:
    change(server)
    with pytest.raises(BenchError, match=message):
        get(tar, tmp_path / "root")
    assert not [name for name in files(tmp_path / "root") if not name.endswith(".part")]
    assert len(server.seen) <= download.TRIES


def test_no_server_at_all(tar: Archive, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"http://127\.0\.0\.1:9/things\.tar cannot be reached: .*refused"):
        get(replace(tar, address="http://127.0.0.1:9/things.tar"), tmp_path)


def test_a_full_disk_is_said_before_the_download(tar: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(
        BenchError, match=r"cannot write below .*GB do not fit on the disk. Make room, or choose another"
    ):
        get(tar, tmp_path / "root")
    assert files(tmp_path / "root") == []


def test_an_archive_cannot_write_outside_its_folder(server: Server, tar: Archive, tmp_path: Path) -> None:
    stream = BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("../outside.txt"), BytesIO())
    server.files["things.tar"] = stream.getvalue()
    with pytest.raises(BenchError, match=r"things.tar cannot be unpacked: .*outside"):
        get(replace(tar, checksum=""), tmp_path / "root")
    assert not (tmp_path / "outside.txt").exists()


def test_damaged_archives_and_changed_ones(server: Server, tar: Archive, tmp_path: Path) -> None:
    server.files["things.tar"] = b"no archive at all" * 100
    with pytest.raises(BenchError, match=r"things.tar cannot be unpacked: .* Remove it, and run the same again"):
        get(replace(tar, checksum=""), tmp_path / "one")
    server.files["things.tar"] = packed(tmp_path / "made", "things", kind="w")
    with pytest.raises(BenchError, match=r"things.tar has no other: the publisher has changed it"):
        get(replace(tar, gives="other"), tmp_path / "two")


# --- the command


def command(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["data", *words], catch_exceptions=True)
    message = str(result.exception) if isinstance(result.exception, BenchError) else ""
    return result.exit_code, " ".join((result.output + message).split())


def served(
    server: Server, monkeypatch: pytest.MonkeyPatch, kind: type[FileDataset], contents: dict[str, bytes]
) -> None:
    """Let a data set's archives be made ones, under the publisher's names and with checksums of their own."""
    server.files |= {Path(name).name: content for name, content in contents.items()}
    archives = tuple(replace(a, checksum=md5(contents[a.file])) for a in kind.archives)
    monkeypatch.setattr(kind, "archives", archives)


def test_pets_from_nothing_to_ready(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, root = pets(tmp_path / "made"), tmp_path / "data"
    contents = {f"{name}.tar.gz": packed(made, name) for name in ("images", "annotations")}
    served(server, monkeypatch, OxfordPets, contents)
    monkeypatch.setattr(OxfordPets, "published", {})
    code, said = command("get", "oxfordpets", "--data-root", str(root), "--mirror", server.address)
    assert (code, "ready: usable, and complete" in said) == (0, True), said
    assert "images: downloaded annotations: downloaded" in said
    assert command("check", "oxfordpets", "--data-root", str(root))[1].endswith("ready: usable, and complete")
    code, said = command("get", "oxfordpets", "--data-root", str(root), "--mirror", "http://nowhere.invalid")
    assert (code, "images: is there annotations: is there" in said) == (0, True)


def test_caltechs_archive_inside_an_archive(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = caltech(tmp_path / "made/caltech-101", [("accordion", "accordion"), ("Faces", "face")])
    inner = packed(made, "101_ObjectCategories")
    shutil.rmtree(made / "101_ObjectCategories")
    (made / "101_ObjectCategories.tar.gz").write_bytes(inner)
    split = (made / "split_zhou_Caltech101.json").read_bytes()
    (made / "split_zhou_Caltech101.json").unlink()
    zipped = Path(shutil.make_archive(str(tmp_path / "zipped"), "zip", tmp_path / "made", "caltech-101")).read_bytes()
    served(
        server, monkeypatch, Caltech101, {"caltech-101.zip": zipped, "caltech-101/split_zhou_Caltech101.json": split}
    )
    root = tmp_path / "data"
    code, said = command("get", "caltech101", "--data-root", str(root), "--mirror", server.address)
    assert code == 0 and "test: 4 images (published: 2,465), 2 of 2 classes" in said
    assert "caltech-101/101_ObjectCategories.tar.gz" not in files(root)


def test_what_is_missing_is_said_with_the_command(tmp_path: Path) -> None:
    for name in ("oxfordpets", "imagenet-r"):
        code, said = command("check", name, "--data-root", str(tmp_path))
        assert code == 2 and f"`bench data get {name} --data-root DIR` downloads it. By hand: In DIR" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("get cc3 --data-root DIR", "unknown dataset 'cc3'. Did you mean 'cc3m'?"),
        ("check cc3", "unknown dataset 'cc3'. Did you mean 'cc3m'?"),
        ("get folder --data-root DIR", "'folder' is not downloaded: it is a folder of yours."),
        (
            "get oxfordpets --data-root DIR --mirror here",
            "here/images.tar.gz is no address. Give one such as --mirror https:",
        ),
        ("check oxfordpets", "`bench data get oxfordpets --data-root DIR` downloads it, or says whom to ask."),
        (
            "check imagenet --data-root DIR",
            "`bench data get imagenet --data-root DIR` downloads it, or says whom to ask.",
        ),
    ],
)
def test_what_cannot_be_got_is_said_with_what_to_do(
    words: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, said = command(*words.split())
    assert (code != 0, message in said) == (True, True), said


def test_imagenet_and_cc3m_are_asked_for(tmp_path: Path) -> None:
    code, said = command("get", "imagenet", "--data-root", str(tmp_path))
    assert code == 2
    assert "An account at https://image-net.org/download-images" in said
    assert "DIR/train/WNID/*.JPEG" in said and "`bench data check imagenet" in said
    code, said = command("get", "cc3m", "--data-root", str(tmp_path))
    assert code == 2 and "Train_GCC-training.tsv" in said and "img2dataset" in said
    code, said = command("get", "world", "--data-root", str(tmp_path))
    assert code == 1 and "'world' is not downloaded: bench draws it. `bench list datasets` explains" in said
    assert not list(tmp_path.iterdir())


def test_pairs_are_surveyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, said = command("check", "cc3m")
    assert code == 2 and "Give --data-root DIR" in said
    code, said = command("check", "cc3m", "--data-root", str(tmp_path / "none"))
    assert code == 2 and "unusable: there is no file" in said and "To get it. CC3M" in said
    for i in range(3):
        photo(tmp_path / f"{i}.jpg")
    (tmp_path / "0.txt").write_text("a cat")
    (tmp_path / "1.txt").write_text("a dog")
    code, said = command("check", "cc3m", "--data-root", str(tmp_path))
    assert (code, "pairs: 2 of 3 can be used" in said, "2.jpg: no .txt file of its name" in said) == (0, True, True)
    assert "usable, but not complete: the paper's runs take 1,000,000 pairs" in said
    monkeypatch.setattr("bench.data.on_request.NEEDED", 2)
    assert command("check", "cc3m", "--data-root", str(tmp_path))[1].endswith("ready: usable, and complete")


def test_every_declared_archive_can_be_asked_for() -> None:
    load_plugins()
    declared = {name: kind.archives for name in datasets if issubclass(kind := datasets[name], FileDataset)}
    named = {name for name, archives in declared.items() if archives}
    assert named == {"oxfordpets", "caltech101", "imagenet-v2", "imagenet-a", "imagenet-r", "imagenet-sketch"}
    for archives in declared.values():
        for archive in archives:
            assert re.match(r"https://[\w.~/=&?%-]+$", archive.address), archive.address
            assert re.fullmatch(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", archive.checksum) or archive.file.endswith(
                ".json"
            )
