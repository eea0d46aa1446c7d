"""Templates that fit the names of files in a folder: of the files of a catalogue's rows, and of files of several bands."""

import re
from collections.abc import Iterable, Sequence

from gampen_ray.data.headers import canonical_band

__all__ = ["band_template", "id_template"]

_BAND_ORDER = ("u", "g", "r", "i", "z", "VIS", "y", "J", "H", "K")
_BAND = re.compile(r"(?<![A-Za-z0-9])(nir[-_][yjh]|vis|[ugrizyjhk]s?|f\d{3,4}(w|m|n|lp|w2))(?![A-Za-z0-9])", re.IGNORECASE)
_MARKS = "-_. /"
# What stands before and after the identifier of a single galaxy.
_ONE = re.compile(r"((?:.*/)?[-_. ]?)(.+?)([-_. /]?|(?:\.\w+)+)", re.DOTALL)


def id_template(ids: Iterable[str], names: Sequence[str], column: str) -> str:
    """Return the template that names one file for most identifiers, with wildcards where the names differ; empty: none."""
    found: list[tuple[str, str]] = []
    for text in ids:
        whole = re.compile(rf"(.*?)(?<![A-Za-z0-9]){re.escape(text)}(?![A-Za-z0-9])(.*)")
        good = [match for name in names if (match := whole.fullmatch(name))]
        if len(good) == 1:
            found.append((good[0][1], good[0][2]))
    if not found:
        return ""
    parts = [sorted({pair[side] for pair in found}) for side in (0, 1)]
    before, after = (texts[0] if len(texts) == 1 else _common(texts) for texts in parts)
    return f"{before}{{{column}}}{after}"


def _common(texts: Sequence[str]) -> str:
    first, last = texts[0], texts[-1]
    start = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    ends = [text[start:][::-1] for text in texts]
    end = 0
    while all(len(text) > end and text[end] == ends[0][end] for text in ends):
        end += 1
    return first[:start] + "*" + (first[len(first) - end :] if end else "")


def band_template(names: Sequence[str]) -> tuple[str, list[str]]:
    """Return the template of files that come in several bands, such as ID_BAND.fits or BAND/ID.fits, and the bands; else none.

    The names of a galaxy's files, with their folder, differ by the name of the band alone.
    """
    galaxies: dict[tuple[str, str], set[str]] = {}
    for name in names:
        for match in _BAND.finditer(name):
            galaxies.setdefault((name[: match.start()], name[match.end() :]), set()).add(match[0])
    found = {key: bands for key, bands in galaxies.items() if len(bands) > 1}
    bands = sorted({band for some in found.values() for band in some}, key=_band_rank)
    # Most files are of galaxies in several bands, and most galaxies have most bands.
    if 10 * sum(map(len, found.values())) < 9 * len(names) or 2 * len(names) < len(found) * len(bands):
        return "", []
    before, after = sorted({key[0] for key in found}), sorted({key[1] for key in found})
    if len(after) == 1 and re.search(r"\w", before[0]):
        return "{object_id}".join(_around(before)) + "{band}" + after[0], bands
    if len(before) == 1:
        return before[0] + "{band}" + "{object_id}".join(_around(after)), bands
    return "", []


def _band_rank(name: str) -> tuple[int, str]:
    band = canonical_band(name)
    return _BAND_ORDER.index(band) if band in _BAND_ORDER else len(_BAND_ORDER), name


def _around(texts: Sequence[str]) -> tuple[str, str]:
    """Return what all texts begin and end with, up to a delimiter: what lies between are whole words."""
    if len(texts) == 1:
        match = _ONE.fullmatch(texts[0])
        return (match[1], match[3]) if match else ("", "")
    return _beginning(texts), _beginning([text[::-1] for text in texts])[::-1]


def _beginning(texts: Sequence[str]) -> str:
    low, high = min(texts), max(texts)
    same = next((at for at, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return low[: max(low.rfind(mark, 0, same) for mark in _MARKS) + 1]
