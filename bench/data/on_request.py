"""Data that `bench data get` cannot download: whom to ask for it, and how to lay it out. CC3M is image-text pairs."""

from pathlib import Path

from bench.core.dataset import datasets
from bench.core.errors import BenchError, unknown
from bench.data.files import FileDataset
from bench.data.pairs import survey

CC3M = "cc3m"
CC3M_SOURCE = """CC3M is a list of captions and addresses of images. Many are dead by now: fewer than 3.3 million come.
Its publisher, https://ai.google.com/research/ConceptualCaptions/download, gives Train_GCC-training.tsv. Then, in DIR:
  (printf 'caption\\turl\\n'; cat Train_GCC-training.tsv) > cc3m_addresses.tsv
  pip install img2dataset
  img2dataset --url_list cc3m_addresses.tsv --input_format tsv --url_col url --caption_col caption \\
    --output_folder cc3m --output_format webdataset --image_size 384 --resize_mode keep_ratio \\
    --resize_only_if_bigger True
`bench data check cc3m --data-root DIR/cc3m` says what came; `bench run --pairs DIR/cc3m` uses it."""
# Pairs that the paper's runs take: 500,000 in the attacker's half, and up to 250,000 in the defender's.
NEEDED = 1_000_000


def on_request(name: str) -> str:
    """Whom to ask for a data set and how to lay it out; "" if `bench data get` can download it.

    Raises:
        BenchError: the data set is not one that lies in files.
    """
    if name == CC3M:
        return CC3M_SOURCE
    if name not in datasets:
        raise unknown("dataset", name, [*datasets, CC3M], "`bench list datasets` explains them.")
    data = datasets[name]
    if not issubclass(data, FileDataset) or not data.source:
        own = "bench draws it" if data.embedded else "it is a folder of yours"
        raise BenchError(f"'{name}' is not downloaded: {own}. `bench list datasets` explains all data sets")
    return (
        ""
        if data.archives
        else f"{data.layout}\n{data.source}\n`bench data check {name} --data-root DIR` says what is there."
    )


def pairs_lines(place: Path | None) -> tuple[list[str], bool]:
    """What `bench data check cc3m` prints of pairs, and whether a run can use them; no image is read."""
    if place is None:
        return [f"unusable: CC3M is a folder of yours. Give --data-root DIR. {CC3M_SOURCE}"], False
    try:
        usable, problems = survey(place)
    except BenchError as error:
        return [f"unusable: {error}", f"To get it. {CC3M_SOURCE}"], False
    report = [f"pairs: {usable:,} of {usable + len(problems):,} can be used"]
    if problems:
        report.append(f"  left out, {len(problems)}: {'; '.join(problems[:3])}")
    if usable < NEEDED:
        return [
            *report,
            f"usable, but not complete: the paper's runs take {NEEDED:,} pairs, a half for either side",
        ], usable > 1
    return [*report, "ready: usable, and complete"], True
