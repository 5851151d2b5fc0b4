"""The command line as a test calls it."""

import pytest

from bench.cli import main


def bench(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a `bench` command."""
    monkeypatch.setattr("sys.argv", ["bench", *words])
    try:
        main()
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err
