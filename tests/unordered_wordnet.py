"""A small WordNet in the place of nltk's, for tests in a process of their own; its order is that of a set."""

import sys
import types
from typing import Any

NAMES = {"house", "home", "dwelling", "abode", "residence", "lodge", "cottage", "cabin"}


def install() -> None:
    """Not when this is imported: pytest imports every file of the tests, to look for doctests."""
    corpus: Any = types.ModuleType("nltk.corpus")
    corpus.wordnet = types.SimpleNamespace(
        ensure_loaded=lambda: None, synsets=lambda _: [types.SimpleNamespace(lemma_names=lambda: list(NAMES))]
    )
    sys.modules |= {"nltk": types.ModuleType("nltk"), "nltk.corpus": corpus}
