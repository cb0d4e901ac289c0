"""The one error a user sees: what was given, what is allowed, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake the user can mend; the command line prints it on one line and exits with 2."""


def nearest(word: str, allowed: Iterable[str], in_words: str = "") -> str:
    """Return ``"; did you mean 'x'?"`` for the closest allowed word, or the list of all, or ``in_words`` for it."""
    names = sorted(allowed)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else f"; allowed: {in_words or ', '.join(names)}"
