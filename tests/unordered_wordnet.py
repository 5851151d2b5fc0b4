"""Importing this, in a process of its own, puts a small WordNet in nltk's place; its order is that of a set."""

import sys
import types
from typing import Any

NAMES = {"house", "home", "dwelling", "abode", "residence", "lodge", "cottage", "cabin"}

corpus: Any = types.ModuleType("nltk.corpus")
corpus.wordnet = types.SimpleNamespace(
    ensure_loaded=lambda: None, synsets=lambda _: [types.SimpleNamespace(lemma_names=lambda: list(NAMES))]
)
sys.modules |= {"nltk": types.ModuleType("nltk"), "nltk.corpus": corpus}
