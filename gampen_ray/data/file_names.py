"""Names of files: those in a folder, by a pattern, and those that a catalogue's rows name, by a column or a template.

A catalogue may have 10^7 rows: columns stay in Arrow.
"""

import fnmatch
import itertools
import logging
import posixpath
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from gampen_ray import storage
from gampen_ray.config.inputs import FITS_FILES
from gampen_ray.data import kinds
from gampen_ray.errors import UserError
from gampen_ray.progress import Progress

__all__ = [
    "NO_NAME",
    "TEMPLATE_FIELD",
    "NoFilesError",
    "file_uris",
    "is_file_name",
    "listed_files",
    "matches_default",
    "matching",
    "matching_files",
    "stems",
    "templated_files",
]

pc: Any = pyarrow.compute
logger = logging.getLogger(__name__)
TEMPLATE_FIELD = re.compile(r"\{(\w+)\}")
"""A column in a template."""
NO_NAME = "a part of more than 255 bytes, more than 1,024 in all, or a NUL"
"""What a name has that is none by `is_file_name`."""
_FIELD_EXPRESSION = re.compile(r"\\\{(\w+)\\\}")
_MAX_PART_BYTES, _MAX_NAME_BYTES = 255, 1024
_WILDCARDS = re.compile(r"[*?]")
_STEM = r"(?i)(\.[a-z][\p{L}\p{N}_]*)?(\.(gz|fz|bz2))?$"
_OTHERS = ("*.fit", "*.npy", "*.jpg", "*.jpeg", "*.png")
"""Patterns of files that are taken where none matches the default."""


class NoFilesError(UserError):
    """The folder does not exist or holds no matching file."""


def matching_files(images: str, pattern: str) -> list[str]:
    """Return the absolute URIs of the files below a folder that match a pattern, sorted, or of ``images`` if it is a file.

    Where no file matches the default pattern, NumPy files and pictures are taken.

    Raises
    ------
    NoFilesError
        If there are none.
    """
    if not storage.exists(images):
        raise NoFilesError(f"images: no folder {images}")
    if storage.size(images) is not None:
        return [storage.absolute(images)]
    return matching(images, pattern, listed_files(images))


def matches_default(uri: str) -> bool:
    """Return whether a file's name matches the default pattern."""
    return fnmatch.fnmatchcase(uri.rpartition("/")[2], FITS_FILES)


def listed_files(folder: str) -> list[str]:
    """Return the URIs of all files below a folder, sorted, with progress if there are many."""
    with Progress("images", None, "files") as progress:
        return storage.list_files(folder, listed=progress.advance)


def matching(images: str, pattern: str, uris: Sequence[str]) -> list[str]:
    """Return those of some files of ``images`` that match a pattern; see `matching_files`."""
    root = storage.absolute(images)
    if list(uris) == [root]:
        return [root]
    # A pattern without "/" matches the file name alone, as in find.
    names = [uri.removeprefix(root).strip("/") if "/" in pattern else uri.rpartition("/")[2] for uri in uris]
    for one in (pattern, *_OTHERS) if pattern == FITS_FILES else (pattern,):
        matches = re.compile(fnmatch.translate(one)).match
        if found := [uri for uri, name in zip(uris, names, strict=True) if matches(name)]:
            return _of_galaxies(found, root)
    if not names:
        raise NoFilesError(f"images: {images} holds no file; give the folder of the cutouts")
    some = f"none of the {len(uris):,} files below {images}, such as {names[0].rpartition('/')[2]}, matches the pattern"
    raise NoFilesError(f"images: {some} {pattern!r}; give another pattern")


def _of_galaxies(uris: list[str], root: str) -> list[str]:
    # Without masks, weights, PSFs and the like.
    folders = {uri.rpartition("/")[0] for uri in uris}
    aside = {folder for folder in folders if kinds.is_aside(folder.removeprefix(root).rpartition("/")[2])}
    beside = [uri for uri in uris if uri.rpartition("/")[0] not in aside] or uris
    names = stems(pa.chunked_array([pa.array(beside, pa.string())])).fill_null("").to_pylist()
    galaxies = [beside[row] for row in kinds.without_siblings(names)[0]]
    if count := len(uris) - len(galaxies):
        kept = set(galaxies)
        some = ", ".join(uri.rpartition("/")[2] for uri in itertools.islice((uri for uri in uris if uri not in kept), 3))
        logger.warning(
            "%s of %s files are left out, as masks, weights, PSFs or the like of others by their names, such as %s; another "
            "pattern takes them",
            *(f"{count:,}", f"{len(uris):,}", some),
        )
    return galaxies


def _expanded(template: str, table: pa.Table) -> pa.ChunkedArray:
    pieces = TEMPLATE_FIELD.split(template)
    parts = [
        pc.utf8_trim_whitespace(table.column(piece).cast(pa.string())) if number % 2 else pa.scalar(piece)
        for number, piece in enumerate(pieces)
    ]
    if len(parts) == 1:
        return pa.chunked_array([pa.repeat(parts[0], len(table))])
    return pc.binary_join_element_wise(*parts, "")


class _Listing:
    """The files below a folder, by their names there, for templates with wildcards."""

    def __init__(self, folder: str) -> None:
        root = storage.join(storage.absolute(folder), "")
        self._root = root
        self._names = [uri.removeprefix(root) for uri in listed_files(folder)]
        self._reversed: list[str] = []

    def matches(self, template: str, table: pa.Table) -> tuple[pa.ChunkedArray, np.ndarray]:
        """Return the file of each row that alone matches the template, and why there is none."""
        wild = [match.start() for match in _WILDCARDS.finditer(template)]
        fixed, rest = template[: wild[0]], template[wild[0] :]
        if backwards := not TEMPLATE_FIELD.search(fixed):
            fixed, rest = template[wild[-1] + 1 :], template[: wild[-1] + 1]
        if not TEMPLATE_FIELD.search(fixed):
            raise UserError(
                f"file_template: {template!r} has a wildcard both before and after its columns, which would compare every file "
                "with every row; begin or end it with a column"
            )
        if backwards and not self._reversed:
            self._reversed = sorted(name[::-1] for name in self._names)
        names = self._reversed if backwards else self._names
        inner = dict.fromkeys(TEMPLATE_FIELD.findall(rest))
        rests = [_texts(table.column(name).cast(pa.string())) for name in inner]
        # "*" and "?" are wildcards in the template alone, and "[" is none.
        expression = fnmatch.translate(rest.replace("[", "[[]"))
        pattern, matches = rest, re.compile(expression).match
        found: list[str | None] = []
        faults = np.full(len(table), "", dtype=object)
        for row, key in enumerate(_texts(_expanded(fixed, table))):
            if rests:
                own = {name: next(texts) for name, texts in zip(inner, rests, strict=True)}
                pattern = TEMPLATE_FIELD.sub(lambda match, own=own: own[match[1]], rest)
                literal = _FIELD_EXPRESSION.sub(lambda match, own=own: re.escape(own[match[1]]), expression)
                matches = re.compile(literal).match
            start, good = key[::-1] if backwards else key, []
            for at in range(bisect_left(names, start), len(names)):
                if not key or not names[at].startswith(start):
                    break
                other = names[at][len(start) :]
                if matches(other[::-1] if backwards else other):
                    good.append(names[at][::-1] if backwards else names[at])
            found.append(self._root + good[0] if len(good) == 1 else None)
            if len(good) != 1:
                whole = f"{pattern}{key}" if backwards else f"{key}{pattern}"
                several = f"several files match {whole}: {', '.join(good[:3])}; narrow file_template"
                faults[row] = several if good else f"no file matches {whole}"
        return pa.chunked_array([pa.array(found, pa.string())]), faults


def _texts(values: pa.ChunkedArray) -> Iterator[str]:
    for chunk in values.chunks:
        yield from (text.strip() for text in chunk.fill_null("").to_pylist())


def templated_files(
    template: str, bands: Sequence[str], table: pa.Table, folder: str
) -> tuple[list[pa.ChunkedArray], np.ndarray]:
    """Return the files that a template names for each row, one column or with {band} one a band, and why there is none."""
    templates = [template.replace("{band}", band) for band in bands] if "{band}" in template else [template]
    planes, faults = [], np.full(len(table), "", dtype=object)
    below = _Listing(folder) if _WILDCARDS.search(template) else None
    for one in templates:
        if below is None:
            names = _expanded(one, table)
            planes.append(file_uris(folder, names))
            continue
        found, reasons = below.matches(one, table)
        planes.append(found)
        faults = np.where(faults == "", reasons, faults)
    return planes, faults


def stems(names: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return `gampen_ray.data.cutouts.stem` of every name; null for an empty name."""
    texts = pc.replace_substring_regex(pc.replace_substring_regex(names, r"(?s)^.*/", ""), _STEM, "")
    return pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)


def file_uris(folder: str, names: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the URI of each name below a folder; null if it is missing, no valid name, or leads out of the folder."""
    root = storage.join(folder, "")
    texts = pc.utf8_trim_whitespace(names.cast(pa.string()).fill_null(""))
    whole = pc.match_substring_regex(texts, "^(/|s3://)")
    uris = pc.if_else(whole, texts, pc.binary_join_element_wise(pa.scalar(root), texts, ""))
    odd = pc.or_(
        pc.match_substring_regex(texts, r"(^|/)\.{1,2}(/|$)|\x00|/$"), pc.greater(pc.binary_length(texts), _MAX_PART_BYTES)
    )
    if pc.any(odd).as_py():
        fixed = pa.array([_file_uri(folder, name) for name in texts.filter(odd).to_pylist()], pa.string())
        uris = pa.chunked_array([pc.replace_with_mask(uris.combine_chunks(), odd.combine_chunks(), fixed)])
    inside = pc.and_(pc.starts_with(uris, root), pc.not_equal(texts, ""))
    return pc.if_else(inside, uris, pa.scalar(None, pa.string()))


def is_file_name(name: str) -> bool:
    """Return whether a name can be that of a file below a folder, on disk and on S3; where ``..`` leads is not checked."""
    return "\0" not in name and _num_bytes(name) <= _MAX_NAME_BYTES and max(map(_num_bytes, name.split("/"))) <= _MAX_PART_BYTES


def _num_bytes(text: str) -> int:
    return len(text.encode())


def _file_uri(folder: str, name: str) -> str:
    # Empty if the name is not a valid file name.
    parts = name.split("/")
    if not is_file_name(name):
        return ""
    uri = name if name.startswith(("/", "s3://")) else storage.join(folder, name)
    if not {".", ".."}.isdisjoint(parts):
        scheme = "" if storage.is_local(folder) else "s3://"
        uri = scheme + posixpath.normpath(uri.removeprefix(scheme))
    return uri
