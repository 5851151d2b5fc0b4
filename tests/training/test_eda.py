"""EDA as its definition says: what each operation may change, and the crashes and accidents of the common scripts."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from bench.core.randomness import generator
from bench.training import eda
from bench.training.eda import STOP_WORDS, augment, delete, insert, normalise, replace, swap, wordnet

CAPTIONS = [
    "dog",
    "a dog",
    "A dog's well-known bone, No. 9!",
    "the the the the",
    "a small red house on a blue background with a yellow dot at the top left in dark light and a small red sticker",
    "\ttabs\nand  lines  ",
]
LONG = [f"{a}{b}" for a in "bcdfg" for b in ("at", "ed", "in", "op", "ug")]


def one_word(word: str) -> list[str]:
    return [f"{word}ish", f"{word}like"]


def two_words(word: str) -> list[str]:
    return [f"very{word} {word}ish"]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("It's", "its"),
        ("it’s", "its"),
        ("well-known\tdog\nbone", "well known dog bone"),
        ("  Two   DOGS, 3 cats. ", "two dogs cats"),
        ("naïve", "na ve"),
        ("", ""),
        ("1984 — !?", ""),
    ],
)
def test_normalise(text: str, expected: str):
    assert normalise(text) == expected


@pytest.mark.parametrize("caption", CAPTIONS)
@pytest.mark.parametrize("synonyms", [None, one_word, two_words], ids=["none", "single", "double"])
def test_views_are_letters_and_single_spaces(caption: str, synonyms):
    for seed in range(40):
        view = augment(caption, generator(seed, "eda"), synonyms)
        assert view
        assert view == normalise(view)


@pytest.mark.parametrize("caption", ["", "   ", "1984", "—!?", "日本"])
@pytest.mark.parametrize("synonyms", [None, one_word], ids=["none", "single"])
def test_captions_without_letters_stay(caption: str, synonyms):
    assert all(augment(caption, generator(seed, "eda"), synonyms) == caption for seed in range(20))


@pytest.mark.parametrize("caption", CAPTIONS)
@pytest.mark.parametrize("seed", range(20))
def test_word_counts(caption: str, seed: int):
    words = normalise(caption).split()
    n, m, rng = len(words), max(1, len(words) // 10), generator(seed, "counts")
    assert len(replace(words, m, rng, one_word)) == n
    assert len(insert(words, m, rng, one_word)) == n + m
    assert len(insert(words, m, rng, two_words)) == n + 2 * m
    assert n <= len(replace(words, m, rng, two_words))
    assert Counter(swap(words, m, rng)) == Counter(words)
    kept = delete(words, rng)
    assert 1 <= len(kept) <= n
    remaining = iter(words)
    assert all(word in remaining for word in kept), "deletion keeps the order"


def test_edits_grow_with_the_caption():
    assert {len(insert(LONG, max(1, len(LONG) // 10), generator(s, ""), one_word)) for s in range(9)} == {27}
    views = [augment(" ".join(LONG), generator(s, "grow"), one_word).split() for s in range(200)]
    assert max(map(len, views)) == 27
    assert max(sum(w.endswith(("ish", "like")) for w in view) for view in views if len(view) == 25) == 2


def test_replacement_changes_up_to_m_words_everywhere_and_no_stop_word():
    words = ["the", "red", "dog", "and", "the", "red", "cat", "on", "a", "dog"]
    for seed in range(30):
        new = replace(words, 2, generator(seed, "replace"), one_word)
        changes = {(old, now) for old, now in zip(words, new, strict=True) if old != now}
        assert len(changes) == len({old for old, _ in changes}) == 2, "a word has one synonym in all its places"
        assert not STOP_WORDS & {old for old, _ in changes}
        assert not {old for old, _ in changes} & set(new)


def test_replacement_passes_over_words_without_synonyms():
    for seed in range(10):
        new = replace(["dog", "cat", "owl"], 1, generator(seed, ""), lambda w: ["bird"] if w == "owl" else [])
        assert new == ["dog", "cat", "bird"]
    assert replace(["the", "a"], 1, generator(0, ""), one_word) == ["the", "a"]


def test_insertion_gives_up_after_ten_tries():
    asked: list[str] = []

    def none(word: str) -> list[str]:
        asked.append(word)
        return []

    assert insert(["dog", "cat"], 1, generator(0, ""), none) == ["dog", "cat"]
    assert len(asked) == 10


def test_insertion_reaches_every_place():
    places = {insert(["dog", "cat"], 1, generator(s, ""), lambda _: ["owl"]).index("owl") for s in range(30)}
    assert places == {0, 1, 2}


def test_a_swap_moves_two_words():
    for seed in range(20):
        assert sum(a != b for a, b in zip(LONG, swap(LONG, 1, generator(seed, "")), strict=True)) == 2
    assert swap(["dog"], 1, generator(0, "")) == ["dog"]


def test_deletion_drops_a_tenth_and_never_all():
    dropped = sum(len(LONG) - len(delete(LONG, generator(s, "rate"))) for s in range(400)) / (400 * len(LONG))
    assert dropped == pytest.approx(0.1, abs=4 * (0.09 / (400 * len(LONG))) ** 0.5)
    assert delete(["dog"], generator(0, "")) == ["dog"]
    single = {tuple(delete(["dog", "cat"], generator(s, "never"))) for s in range(600)}
    assert single == {("dog", "cat"), ("dog",), ("cat",)}


def test_deletion_of_all_words_keeps_a_random_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(eda, "DELETION", 1.1)
    assert {tuple(delete(["dog", "cat"], generator(s, ""))) for s in range(20)} == {("dog",), ("cat",)}


def edit_of(view: list[str]) -> str:
    if any(word.endswith("ish") for word in view):
        return "insert" if len(view) > len(LONG) else "replace"
    # A deletion may delete nothing; two swaps hardly ever undo each other.
    return "swap" if len(view) == len(LONG) and view != LONG else "delete"


@pytest.mark.parametrize(
    "synonyms, edits", [(lambda w: [f"{w}ish"], 4), (None, 2)], ids=["with synonyms", "without synonyms"]
)
def test_edits_are_equally_likely(synonyms, edits: int):
    rng, n = generator(0, "uniform"), 1200
    counts = Counter(edit_of(augment(" ".join(LONG), rng, synonyms).split()) for _ in range(n))
    assert set(counts) == ({"insert", "replace", "swap", "delete"} if edits == 4 else {"swap", "delete"})
    slack = 4 * (n / edits * (1 - 1 / edits)) ** 0.5
    assert all(count == pytest.approx(n / edits, abs=slack) for count in counts.values())


def test_a_generator_determines_the_view():
    first = [augment(CAPTIONS[4], generator(s, "same"), one_word) for s in range(30)]
    assert first == [augment(CAPTIONS[4], generator(s, "same"), one_word) for s in range(30)]
    assert len(set(first)) > 20
    torch.manual_seed(1)
    state = torch.get_rng_state()
    augment(CAPTIONS[4], generator(0, "global"), one_word)
    assert torch.equal(state, torch.get_rng_state())


def fake_nltk(monkeypatch: pytest.MonkeyPatch, load) -> None:
    """An nltk whose WordNet knows the dog, in spellings that need care."""
    synsets = {
        "dog": [
            SimpleNamespace(lemma_names=lambda: ["dog", "Canis_familiaris", "domestic-dog"]),
            SimpleNamespace(lemma_names=lambda: ["hound", "DOG", "24", "domestic_dog"]),
        ]
    }
    corpus = ModuleType("nltk.corpus")
    known = SimpleNamespace(ensure_loaded=load, synsets=lambda word: synsets.get(word, []))
    monkeypatch.setattr(corpus, "wordnet", known, raising=False)
    monkeypatch.setitem(sys.modules, "nltk", ModuleType("nltk"))
    monkeypatch.setitem(sys.modules, "nltk.corpus", corpus)


def test_wordnet_synonyms_are_normalised_sorted_and_others(monkeypatch: pytest.MonkeyPatch):
    fake_nltk(monkeypatch, lambda: None)
    synonyms = wordnet()
    assert synonyms is not None
    assert synonyms("dog") == ["canis familiaris", "domestic dog", "hound"]
    assert synonyms("qwerty") == []


@pytest.mark.parametrize("error", [LookupError, OSError])
def test_no_wordnet_without_its_corpus(monkeypatch: pytest.MonkeyPatch, error):
    def load():
        raise error("Resource wordnet not found")

    fake_nltk(monkeypatch, load)
    assert wordnet() is None


def test_no_wordnet_without_nltk(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "nltk", None)
    monkeypatch.setitem(sys.modules, "nltk.corpus", None)
    assert wordnet() is None


def test_real_wordnet():
    synonyms = wordnet()
    if synonyms is None:
        pytest.skip("needs nltk and its corpus: pip install nltk && python -m nltk.downloader wordnet")
    assert {"hound", "domestic dog"} <= set(synonyms("dog"))
    assert "dog" not in synonyms("dog")
    assert synonyms("xyzzy") == []


SCRIPT = """
import importlib.util
import torch
import unordered_wordnet

unordered_wordnet.install()

# From its file: the package around it takes many seconds to import, and twice.
spec = importlib.util.spec_from_file_location("eda", FILE)
eda = importlib.util.module_from_spec(spec)
spec.loader.exec_module(eda)
rng = torch.Generator().manual_seed(0)
synonyms = eda.wordnet()
for _ in range(200):
    print(eda.augment("small red house beside quiet old river under bright morning sky", rng, synonyms))
"""


def test_the_hash_seed_changes_nothing():
    tests = str(Path(__file__).parents[1])
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT.replace("FILE", repr(str(Path(eda.__file__))))],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": tests, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    first, second = (run.communicate()[0] for run in runs)
    assert [run.returncode for run in runs] == [0, 0]
    assert len(set(first.splitlines())) > 100
    assert any("dwelling" in line for line in first.splitlines())
    assert first == second
