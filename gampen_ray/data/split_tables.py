"""Split a catalogue into train, devel and test tables: GaMPEN's scheme, stratified, or by sky region.

A table holds unchanged lines of the catalogue. Shape legend: N rows, S strata, C sky cells, P = 3 parts.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import astropy.units as u
import numpy as np
import pandas as pd
import pyarrow as pa
from astropy_healpix import HEALPix, pixel_resolution_to_nside

from gampen_ray import storage
from gampen_ray.data import catalogs, gampen_folder
from gampen_ray.errors import UserError

__all__ = ["PARTS", "SHARES", "gampen_split", "listed_splits", "part_sizes", "sky_split", "stratified_split", "write_tables"]

logger = logging.getLogger(__name__)

PARTS = ("train", "devel", "test")
SHARES = {
    "xs": (0.027, 0.003, 0.970),
    "sm": (0.045, 0.005, 0.950),
    "md": (0.090, 0.010, 0.900),
    "lg": (0.200, 0.050, 0.750),
    "xl": (0.450, 0.050, 0.500),
    "dev": (0.70, 0.15, 0.15),
    "dev2": (0.70, 0.05, 0.25),
}
"""Shares of the parts by GaMPEN's names."""
SPLITS = "splits"
"""Folder of the tables in a GaMPEN data folder."""
_BALANCE = "balance"
_GAMPEN_BINS = 4
# Number of random orders of the sky cells, of which the one nearest to the shares is used.
_DEALS = 100


def write_tables(
    images: str,
    *,
    catalog: str,
    output: str,
    scheme: str,
    target: str,
    num_strata: int,
    cell_size_deg: float,
    seed: int,
) -> dict[str, int]:
    """Write the tables of all splits of a scheme; the arguments are the fields of `split`.

    Returns
    -------
    dict
        Number of rows by file name.

    Raises
    ------
    UserError
        If the catalogue cannot be read or lacks a column or a value, or a file exists with other content; nothing is written.
    """
    uri = catalog or storage.join(images, gampen_folder.INFO_CSV)
    if not catalog and not storage.exists(uri):
        raise UserError(f"images: no {gampen_folder.INFO_CSV} in {images}; give a GaMPEN data folder, or set catalog")
    if not uri.lower().endswith(".csv"):
        raise UserError(f"catalog: {uri}: the name must end in .csv, as a table holds lines of it")
    table = catalogs.read_catalog(uri, (target,))
    header, *lines = _lines(uri)
    if len(lines) != len(table):
        raise UserError(f"catalog {uri}: {len(table):,} rows on {len(lines):,} lines; write each row on a line of its own")
    balance: list[str] = []
    if scheme == "sky":
        rows = sky_split(*_positions(uri, table), cell_size_deg, seed)
    elif scheme == "stratified":
        rows = stratified_split(_numbers(uri, table, target, "target"), num_strata, seed)
    elif _BALANCE in table.column_names:
        raise UserError(f"catalog {uri}: GaMPEN's balanced splits add a column {_BALANCE!r}; rename yours")
    else:
        rows, balance_N = gampen_split(_numbers(uri, table, target, "target"))
        balance = balance_N.tolist()
    binned = [b'%s,"%s"' % (line, name.encode()) for line, name in zip(lines, balance, strict=False)]

    def content(name: str) -> bytes:
        chosen = rows[name].tolist()
        if name.startswith("balanced-"):
            return b"\n".join([b"%s,%s" % (header, _BALANCE.encode()), *map(binned.__getitem__, chosen), b""])
        return b"\n".join([header, *map(lines.__getitem__, chosen), b""])

    _write(output or storage.join(images, SPLITS), list(rows), content)
    return {f"{name}.csv": len(chosen) for name, chosen in rows.items()}


def part_sizes(num_rows: int, shares: Sequence[float]) -> tuple[int, int, int]:
    """Return the numbers of rows in train, devel and test: GaMPEN rounds train and devel up, and test is the rest."""
    train = math.ceil(shares[0] * num_rows)
    devel = min(math.ceil(shares[1] * num_rows), num_rows - train)
    return train, devel, num_rows - train - devel


def gampen_split(target_N: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the splits of GaMPEN's ``make_splits.py``, row for row.

    Each is a run of consecutive rows of a shuffled catalogue. For the balanced ones, the row numbers of four bins of equal
    width in the target are interleaved, and then used as positions in the shuffled catalogue. The result is another random
    order, and these splits are no more balanced than the others.

    Parameters
    ----------
    target_N
        Finite.

    Returns
    -------
    rows
        Row numbers in the order of the file, by ``{balanced|unbalanced}-{slug}-{part}``.
    balance_N
        Bin of each row, the last column of the balanced files.
    """
    shuffled_N = pd.Series(np.arange(len(target_N))).sample(frac=1, random_state=0).to_numpy()
    binned_N: Any = pd.cut(pd.Series(target_N), _GAMPEN_BINS)
    balance_N = binned_N.astype(str).to_numpy(dtype=object)
    # Bins are numbered in the order of their first appearance.
    bins_N, _ = pd.factorize(balance_N[shuffled_N])
    turns_N = pd.Series(bins_N).groupby(bins_N).cumcount().to_numpy()
    interleaved_N = shuffled_N[np.lexsort((bins_N, turns_N))]
    rows = {}
    for kind, order_N in (("unbalanced", shuffled_N), ("balanced", shuffled_N[interleaved_N])):
        for slug, shares in SHARES.items():
            rows |= _named(f"{kind}-{slug}", _cut(order_N, part_sizes(len(order_N), shares)))
    return rows, balance_N


def stratified_split(target_N: np.ndarray, num_strata: int, seed: int) -> dict[str, np.ndarray]:
    """Return splits in which train, devel and test have the same distribution of the target.

    The parts are as large as in `gampen_split`, and each has its share of every stratum, to within one row.

    Parameters
    ----------
    target_N
        Finite; ties are in random order.
    num_strata
        Number of strata, between quantiles of the target.
    seed
        Seed of the choice within a stratum.

    Returns
    -------
    dict
        Row numbers in the order of the catalogue, by ``stratified-{slug}-{part}``.
    """
    rng = np.random.default_rng(seed)
    sorted_N = np.lexsort((rng.random(len(target_N)), target_N))
    strata = [rng.permutation(stratum) for stratum in np.array_split(sorted_N, num_strata)]
    rows = {}
    for slug, shares in SHARES.items():
        counts_SP = _apportion([len(stratum) for stratum in strata], part_sizes(len(target_N), shares))
        parts = zip(*(_cut(stratum, counts_P) for stratum, counts_P in zip(strata, counts_SP, strict=True)), strict=True)
        rows |= _named(f"stratified-{slug}", [np.sort(np.concatenate(part)) for part in parts])
    return rows


def sky_split(ra_N: np.ndarray, dec_N: np.ndarray, cell_size_deg: float, seed: int) -> dict[str, np.ndarray]:
    """Return splits in which all galaxies of a cell of the sky are in the same part.

    The cells are those of HEALPix (Gorski et al. 2005, ApJ 622, 759). They are dealt in a random order that approximates the
    sizes of `gampen_split`; each part has at least one cell.

    Parameters
    ----------
    ra_N, dec_N
        Degrees, finite.
    cell_size_deg
        Square root of a cell's area, degrees; the nearest HEALPix resolution is used.
    seed
        Seed of the order of the cells.

    Returns
    -------
    dict
        Row numbers in the order of the catalogue, by ``sky-{slug}-{part}``.

    Raises
    ------
    UserError
        If there are fewer than three cells.
    """
    healpix = HEALPix(pixel_resolution_to_nside(cell_size_deg * u.deg, round="nearest"), order="nested")
    pixel_N = healpix.lonlat_to_healpix(ra_N * u.deg, dec_N * u.deg)
    _, cell_N, sizes_C = np.unique(pixel_N, return_inverse=True, return_counts=True)
    if len(sizes_C) < len(PARTS):
        raise UserError(
            f"cell_size_deg: {cell_size_deg:g}: the galaxies lie in {len(sizes_C)} cells of this size, too few for three "
            "parts; give a smaller one"
        )
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(len(sizes_C)) for _ in range(_DEALS)]
    rows = {}
    for slug, shares in SHARES.items():
        wanted_P = part_sizes(len(ra_N), shares)
        part_C = min((_deal(sizes_C, order_C, wanted_P) for order_C in orders), key=lambda deal: deal[1])[0]
        part_N = part_C[cell_N]
        rows |= _named(f"sky-{slug}", [np.flatnonzero(part_N == part) for part in range(len(PARTS))])
    return rows


def listed_splits(images: str, slug: str, keys: Mapping[str, Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the split of each row of a catalogue according to the tables of a GaMPEN data folder.

    Parameters
    ----------
    images
        The data folder.
    slug
        Name of the split, e.g. ``balanced-dev2``.
    keys
        Texts that identify the N rows, by column; each table is matched on the first of these columns that it has.

    Returns
    -------
    splits_N
        ``"train"``, ``"val"`` (GaMPEN's devel) or ``"test"``.
    faults_N
        Why a row has no split; empty text for the others.

    Raises
    ------
    UserError
        If the folder has no such split, or a table has none of the columns.
    """
    folder = storage.join(images, SPLITS)
    root = storage.join(storage.absolute(folder), "")
    names = {uri.removeprefix(root) for uri in storage.list_files(folder, ".csv")}
    firsts = (name.removesuffix("-train.csv") for name in names if name.endswith("-train.csv"))
    slugs = sorted(first for first in firsts if names.issuperset(f"{first}-{part}.csv" for part in PARTS))
    if slug not in slugs:
        there = f"there are: {', '.join(slugs)}" if slugs else "there is none; make some with `gampen-ray split`"
        raise UserError(f"split_slug: {slug}: {folder} has no such split; {there}")
    num_rows = len(next(iter(keys.values())))
    splits_N, faults_N = np.full(num_rows, "", dtype=object), np.full(num_rows, "", dtype=object)
    for part, name in zip(PARTS, ("train", "val", "test"), strict=True):
        uri = storage.join(folder, f"{slug}-{part}.csv")
        if len(_lines(uri)) < 2:
            # A part of a small catalogue may be empty.
            continue
        table = catalogs.read_catalog(uri, tuple(keys))
        column = next((column for column in keys if column in table.column_names), None)
        if column is None:
            raise UserError(f"split_slug: {uri} has neither a column {' nor '.join(keys)}; its rows cannot be matched")
        listed = {text.strip() for text in table.column(column).to_pylist() if text}
        here_N = np.array([text in listed for text in keys[column]])
        faults_N[here_N & (splits_N != "")] = f"in more than one table of the split: {slug}"
        splits_N[here_N] = name
    faults_N[splits_N == ""] = f"in no table of the split: {slug}"
    return splits_N, faults_N


def _positions(uri: str, table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    spelled = {name.lower(): name for name in table.column_names}
    ra_N, dec_N = (_numbers(uri, table, spelled.get(name, name), name) for name in ("ra", "dec"))
    if (beyond_N := np.abs(dec_N) > 90).any():
        raise UserError(f"dec: catalog {uri} has {dec_N[beyond_N][0]:g}; give degrees from -90 to 90")
    return ra_N, dec_N


def _numbers(uri: str, table: pa.Table, column: str, field: str) -> np.ndarray:
    catalogs.require_columns(uri, table, {column: field})
    values_N, faults = catalogs.numbers(table.column(column))
    if len(bad := np.flatnonzero(faults != "")):
        raise UserError(
            f"{field}: catalog {uri}, row {bad[0] + 1}: {column} {faults[bad[0]]} ({len(bad):,} rows are not finite); "
            "fix or remove them"
        )
    return values_N


def _lines(uri: str) -> list[bytes]:
    # Header and rows of the file, without empty lines.
    lines = storage.read_bytes(uri).removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return [line for line in (line.removesuffix(b"\r") for line in lines) if line]


def _write(output: str, names: Sequence[str], content: Callable[[str], bytes]) -> None:
    # Compares existing files before writing any.
    uris = {name: storage.join(output, f"{name}.csv") for name in names}
    missing = [name for name, uri in uris.items() if not storage.exists(uri)]
    for name, uri in uris.items():
        if name not in missing and storage.read_bytes(uri) != content(name):
            raise UserError(f"output: {uri} has other content; nothing was written: give a new folder, or remove the file")
    for name in missing:
        storage.write_bytes_atomic(uris[name], content(name))
    if missing:
        logger.info("wrote %s of %s tables to %s", len(missing), len(names), output)
    else:
        logger.info("%s is complete; nothing to do", output)


def _named(stem: str, parts: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{stem}-{part}": rows for part, rows in zip(PARTS, parts, strict=True)}


def _cut(rows: np.ndarray, sizes_P: Sequence[int]) -> list[np.ndarray]:
    return np.split(rows, np.cumsum(sizes_P)[:-1])


def _apportion(sizes_S: Sequence[int], totals_P: Sequence[int]) -> np.ndarray:
    # Rows of each part in each stratum, S x P: exact shares rounded down, or up where the deficit is largest.
    num_rows = sum(sizes_S)
    # In units of 1 / num_rows of a row, so that the arithmetic is exact.
    owed_P = np.zeros(len(totals_P), dtype=np.int64)
    counts_SP = np.zeros((len(sizes_S), len(totals_P)), dtype=np.int64)
    for size, counts_P in zip(sizes_S, counts_SP, strict=True):
        share_P = size * np.array(totals_P, dtype=np.int64)
        counts_P += share_P // num_rows
        owed_P += share_P - num_rows * counts_P
        more = np.argsort(-owed_P, kind="stable")[: size - counts_P.sum()]
        counts_P[more] += 1
        owed_P[more] -= num_rows
    return counts_SP


def _deal(sizes_C: np.ndarray, order_C: np.ndarray, wanted_P: Sequence[int]) -> tuple[np.ndarray, int]:
    # Part of each cell, and the largest difference from the wanted sizes: runs of cells, cut where the sum is nearest.
    filled_C = np.cumsum(sizes_C[order_C])
    nearest = [1 + int(np.argmin(np.abs(filled_C - wanted))) for wanted in np.cumsum(wanted_P)[:-1]]
    first = min(nearest[0], len(sizes_C) - 2)
    second = min(max(nearest[1], first + 1), len(sizes_C) - 1)
    part_C = np.empty(len(sizes_C), dtype=np.int64)
    part_C[order_C] = np.repeat(np.arange(3), np.diff([0, first, second, len(sizes_C)]))
    filled_P = np.bincount(part_C, weights=sizes_C)
    return part_C, int(np.abs(filled_P - wanted_P).max())
