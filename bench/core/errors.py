"""Errors that a user can mend; the command line prints them and exits with code 2."""

from collections.abc import Iterable
from difflib import get_close_matches


class BenchError(Exception):
    """The user's input cannot be used. The message says what to do next."""


def unknown(kind: str, name: str, known: Iterable[str], hint: str = "") -> BenchError:
    """An error for an unknown name, with the nearest known name, ignoring case.

    >>> print(unknown("defense", "rvtp", ["none", "rvpt"]))
    unknown defense 'rvtp'. Did you mean 'rvpt'?
    Known: none, rvpt.
    """
    known = sorted(known)
    return BenchError(f"unknown {kind} '{name}'.{guess(name, known)}\nKnown: {', '.join(known)}. {hint}".rstrip())


def undeclared(kind: str, need: str) -> BenchError:
    """An error for a method that takes what its `needs` do not name.

    >>> print(undeclared("defense", "pairs"))
    this defense takes `pairs` and does not declare it: write needs = frozenset({'pairs'})
    """
    return BenchError(f"this {kind} takes `{need}` and does not declare it: write needs = frozenset({{'{need}'}})")


def guess(name: str, known: Iterable[str]) -> str:
    """A question with the nearest known name, ignoring case; it starts with a space and is "" if none is near.

    >>> guess("rvtp", ["none", "rvpt"])
    " Did you mean 'rvpt'?"
    """
    lowered = {k.lower(): k for k in known}
    close = get_close_matches(name.lower(), lowered, n=1)
    return f" Did you mean '{lowered[close[0]]}'?" if close else ""
