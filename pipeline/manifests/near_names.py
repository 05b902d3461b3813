"""Names that differ only in Unicode normalisation, case or leading zeros: hints for videos that are not found."""

import re
import unicodedata
from collections.abc import Callable, Iterable

_REDUCTIONS: dict[str, Callable[[str], str]] = {
    "Unicode normalisation (NFC against NFD)": lambda name: unicodedata.normalize("NFC", name),
    "case": str.casefold,
    "leading zeros": lambda name: re.sub(r"(?<!\d)0+(?=\d)", "", name),
}


class NearNames:
    """Known names, found by a name that nearly equals one of them."""

    def __init__(self, names: Iterable[str]) -> None:
        self._by_reduced: dict[str, str] = {}
        for name in names:
            self._by_reduced.setdefault(_reduce(name), name)

    def find(self, name: str) -> tuple[str, str] | None:
        """Return the known name that nearly equals `name` and in what they differ, None if there is none."""
        known = self._by_reduced.get(_reduce(name))
        if known is None or known == name:
            return None
        return known, " and ".join(kind for kind in _REDUCTIONS if _reduce(name, kind) != _reduce(known, kind))


def _reduce(name: str, kept: str = "") -> str:
    """Return `name` without the differences of every kind but `kept`."""
    for kind, reduction in _REDUCTIONS.items():
        if kind != kept:
            name = reduction(name)
    return name
