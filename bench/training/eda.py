"""EDA, "easy data augmentation" of a text: one small random edit (Wei & Zou, arXiv 1901.11196).

CleanCLIP and attacks that augment captions use it. Synonyms come from WordNet through nltk, if both are installed;
without them, only two of the four edits are used.
"""

import re
import warnings
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Literal

import torch

from bench.core.errors import BenchError

INSTALL = "pip install 'clip-backdoor-bench[wordnet]' && python -m nltk.downloader wordnet"
DELETION = 0.1
"""Probability with which random deletion drops a word."""
TRIES = 10
"""How many random words an insertion tries before it gives up finding a synonym."""

STOP_WORDS = frozenset(
    """
    a an the this that these those some any each every all both few many more most other another such no nor not only
    own same so than too very just now then once again further here there when where why how what which who whom whose
    i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she her hers
    herself it its itself they them their theirs themselves one
    am is are was were be been being do does did doing have has had having can could may might must shall should will
    would
    about above across after against along among around as at before behind below beneath beside between beyond by down
    during for from in inside into near of off on onto out outside over past through to toward under until up upon
    with within without
    and but or if because while although though since
    """.split()  # noqa: SIM905  # words without quotes can be read
)
"""Words that are never replaced: English determiners, pronouns, auxiliaries, prepositions and conjunctions.

They carry the grammar of a caption, and WordNet has only unrelated meanings for some of them ("a" is a vitamin).
"""

Source = Literal["auto", "wordnet", "none"]
"""Where synonyms come from; `synonyms_from` says what each means."""

Synonyms = Callable[[str], Sequence[str]]
"""Returns the synonyms of a lower-case word in a fixed order; each is one word or several."""


def augment(caption: str, rng: torch.Generator, synonyms: Synonyms | None = None) -> str:
    """A random view of a caption: lower-case letters and single spaces.

    One of the four edits, each equally likely, is made to the normalised caption: replacement of words by synonyms,
    insertion of synonyms, swaps, deletion. With n words, the first three make m = max(1, n // 10) edits. Without
    `synonyms` only swaps and deletion are left. A caption without any letter is returned as it is.

    >>> augment("A dog's bone!", torch.Generator().manual_seed(3))
    'bone dogs a'
    >>> augment("1984", torch.Generator())
    '1984'
    """
    words = normalise(caption).split()
    if not words:
        return caption
    times = max(1, len(words) // 10)
    edits = [partial(swap, words, times, rng), partial(delete, words, rng)]
    if synonyms is not None:
        edits += [partial(replace, words, times, rng, synonyms), partial(insert, words, times, rng, synonyms)]
    return " ".join(_pick(edits, rng)())


def normalise(text: str) -> str:
    """Reduce a text to lower-case letters a-z and single spaces; apostrophes vanish, other characters become spaces.

    >>> normalise("It's a well-known  Café, No. 9")
    'its a well known caf no'
    """
    return " ".join(re.sub("[^a-z]", " ", re.sub("['’]", "", text.lower())).split())


def replace(words: Sequence[str], times: int, rng: torch.Generator, synonyms: Synonyms) -> list[str]:
    """Replace up to `times` different words, no stop words, by synonyms; each in all places where it occurs."""
    # Not a set: its order depends on PYTHONHASHSEED.
    candidates = list(dict.fromkeys(word for word in words if word not in STOP_WORDS))
    chosen: dict[str, str] = {}
    for i in torch.randperm(len(candidates), generator=rng).tolist():
        if len(chosen) == times:
            break
        if options := synonyms(candidates[i]):
            chosen[candidates[i]] = _pick(options, rng)
    return " ".join(chosen.get(word, word) for word in words).split()


def insert(words: Sequence[str], times: int, rng: torch.Generator, synonyms: Synonyms) -> list[str]:
    """`times` times, insert a synonym of a random word at a random position."""
    words = list(words)
    for _ in range(times):
        for _ in range(TRIES):
            if options := synonyms(_pick(words, rng)):
                position = int(torch.randint(len(words) + 1, (), generator=rng))
                words[position:position] = _pick(options, rng).split()
                break
    return words


def swap(words: Sequence[str], times: int, rng: torch.Generator) -> list[str]:
    """`times` times, swap two words at random positions."""
    words = list(words)
    for _ in range(times if len(words) > 1 else 0):
        # On the CPU: words.
        i, j = torch.randperm(len(words), generator=rng)[:2].tolist()
        words[i], words[j] = words[j], words[i]
    return words


def delete(words: Sequence[str], rng: torch.Generator) -> list[str]:
    """Drop each word with probability `DELETION`; if all would be dropped, keep a random one."""
    kept = (torch.rand(len(words), generator=rng) >= DELETION).tolist()
    return [word for word, stays in zip(words, kept, strict=True) if stays] or [_pick(words, rng)]


def synonyms_from(source: Source, method: str) -> Synonyms | None:
    """The synonyms that a method's setting `synonyms` asks for: WordNet's, none, or ("auto") WordNet's if installed.

    Raises:
        BenchError: WordNet is asked for, and is not installed.
    """
    known = None if source == "none" else wordnet()
    if source == "wordnet" and known is None:
        raise BenchError(f"{method}.synonyms = wordnet needs nltk and its corpus: {INSTALL}")
    return known


def installed_source(source: Source) -> dict[str, bool]:
    """What ids say of a source that depends on the machine: whether "auto" finds WordNet."""
    return {"wordnet": True} if source == "auto" and wordnet() is not None else {}


def check_source(source: Source, method: str) -> None:
    """Before a run starts: fail if WordNet is asked for and missing; warn if "auto" does not find it.

    Raises:
        BenchError: as `synonyms_from`.
    """
    if synonyms_from(source, method) is None and source == "auto":
        warnings.warn(
            f"{method} edits texts without synonyms, so two of EDA's four edits are left: WordNet is not installed. "
            f"{INSTALL}; or say so with --set {method}.synonyms=none",
            stacklevel=2,
        )


def wordnet() -> Synonyms | None:
    """A function that gives WordNet's synonyms, normalised and sorted; None if nltk or its full corpus is missing."""
    try:
        from nltk.corpus import wordnet as corpus

        corpus.ensure_loaded()
    except (ImportError, LookupError, OSError):
        return None

    @cache
    def synonyms(word: str) -> list[str]:
        names = {normalise(name) for synset in corpus.synsets(word) for name in synset.lemma_names()}
        return sorted(names - {word, ""})

    return synonyms


def _pick(items: Sequence, rng: torch.Generator):
    return items[int(torch.randint(len(items), (), generator=rng))]
