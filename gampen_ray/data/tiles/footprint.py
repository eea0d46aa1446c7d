"""The index of a survey's tiles: a Parquet table with a row per tile and band, made from headers alone.

A footprint is a folder: ``index/part-*.parquet``; ``quarantine/part-*.parquet`` for the files that cannot be used; and
``footprint.json``, written last, which marks it complete. It is a dataset without galaxies: a catalogue brings them.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydantic

from gampen_ray import documents, storage
from gampen_ray.data import shards
from gampen_ray.data.tiles.grid import Grid, unit_vectors
from gampen_ray.data.tiles.preset import ROLES, NoiseKind, TileSurvey
from gampen_ray.errors import UserError
from gampen_ray.provenance import content_fingerprint

__all__ = ["FOOTPRINT_JSON", "INDEX", "BandFile", "Footprint", "FootprintInfo", "Place", "Selection", "finish", "write_part"]

FOOTPRINT_JSON = "footprint.json"
"""Name of the file that declares a footprint complete."""
INDEX = "index"
"""Folder of the index."""
FORMAT_VERSION = 1
_PLACE = pa.struct([("path", pa.string()), ("hdu", pa.int32()), ("stamp", pa.string())])
_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("tile", "band", "tract", "patch", "version")),
        *((role, _PLACE) for role in ROLES),
        *(("noise_kind", pa.string()), ("mask_bits", pa.int64())),
        *((name, pa.float64()) for name in ("zero_point_mag", "pixel_scale_arcsec", "psf_fwhm_arcsec")),
        *(("wcs", pa.string()), ("height", pa.int32()), ("width", pa.int32())),
        *((name, pa.float64()) for name in ("ra", "dec", "radius_deg")),
        *((name, pa.list_(pa.float64(), 4)) for name in ("corner_ra", "corner_dec")),
    ]
)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where an image lies: path below the folder of tiles (empty: there is none), HDU, and the file's size and time or ETag."""

    path: str = ""
    hdu: int = 0
    stamp: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BandFile:
    """A tile in one band: a row of the index.

    Parameters
    ----------
    tile, band, tract, patch, version
        See `gampen_ray.data.tiles.listing.Entry`.
    image, noise, mask, psf
        Where its planes lie.
    noise_kind
        What the noise map holds.
    mask_bits
        Bits of the mask whose pixels have no value; -1: any; 0: it holds weights, positive where there is a value.
    zero_point_mag
        AB magnitude of one unit of flux.
    pixel_scale_arcsec
        At the centre.
    psf_fwhm_arcsec
        By the header; NaN: not there.
    grid
        Its pixels on the sky.
    """

    tile: str
    band: str
    tract: str = ""
    patch: str = ""
    version: str = ""
    image: Place
    noise: Place = Place()
    mask: Place = Place()
    psf: Place = Place()
    noise_kind: NoiseKind = "variance"
    mask_bits: int = 0
    zero_point_mag: float
    pixel_scale_arcsec: float
    psf_fwhm_arcsec: float = math.nan
    grid: Grid


@dataclasses.dataclass(frozen=True, kw_only=True)
class FootprintInfo:
    """Metadata of a footprint.

    Parameters
    ----------
    survey
        Name of its preset.
    tiles
        Folder of the tiles, to which paths in the index refer.
    bands
        All bands, sorted.
    zero_point_mag
        To which pixels are converted as they are read: the median of all.
    pixel_scale_arcsec
        Median of all.
    num_tiles, num_rows, num_quarantined
        Tiles; tiles and bands; files in quarantine.
    fingerprint
        Hash of the index.
    primary_columns
        See `gampen_ray.data.tiles.preset.TileSurvey`.
    """

    __pydantic_config__: ClassVar = documents.LENIENT

    survey: str
    tiles: str
    bands: Annotated[tuple[str, ...], pydantic.Field(min_length=1)]
    zero_point_mag: float
    pixel_scale_arcsec: Annotated[float, pydantic.Field(gt=0)]
    num_tiles: int
    num_rows: int
    num_quarantined: int
    fingerprint: str
    primary_columns: tuple[str, ...] = ()
    format_version: int = FORMAT_VERSION


def write_part(output: str, part: int, rows: Sequence[BandFile], bad: Sequence[tuple[str, str, str]]) -> None:
    """Write a part of the index, and of the quarantine: (tile and band, file, reason)."""
    uri = storage.join(output, INDEX, f"part-{part:06d}.parquet")
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([_row(row) for row in rows], _SCHEMA), sink, compression="zstd")
    if bad:
        names, sources, reasons = zip(*bad, strict=True)
        shards.write_quarantine(
            shards.part_uri(output, shards.QUARANTINE, part), object_id=names, source=sources, reason=reasons
        )
    # Last: it marks the part as finished.
    storage.write_bytes_atomic(uri, sink.getvalue())


def finish(output: str, survey: TileSurvey, tiles: str, num_quarantined: int) -> FootprintInfo:
    """Declare a footprint complete whose parts are all written, and return its metadata.

    Raises
    ------
    UserError
        If it has no tile, or one in one band twice.
    """
    table = _index(output)
    keys = list(zip(table["tile"].to_pylist(), table["band"].to_pylist(), strict=True))
    for place, key in enumerate(keys[1:]):
        if key == keys[place]:
            paths = " and ".join(table["image"][row].as_py()["path"] for row in (place, place + 1))
            raise UserError(
                f"tiles: the tile {key[0]} has two images of the band {key[1]}, {paths}; take one out, or give a table whose "
                "names of files tell them apart (survey generic)"
            )
    info = FootprintInfo(
        survey=survey.name,
        tiles=tiles,
        bands=tuple(sorted({band for _, band in keys})),
        zero_point_mag=float(np.median(table["zero_point_mag"])),
        pixel_scale_arcsec=float(np.median(table["pixel_scale_arcsec"])),
        num_tiles=len({tile for tile, _ in keys}),
        num_rows=len(keys),
        num_quarantined=num_quarantined,
        fingerprint=_fingerprint(table),
        primary_columns=survey.primary_columns,
    )
    storage.write_json(storage.join(output, FOOTPRINT_JSON), dataclasses.asdict(info))
    return info


class Footprint:
    """A complete footprint.

    Parameters
    ----------
    uri
        Its folder.
    tiles
        Folder of the tiles, where they have moved; empty: where they were.

    Raises
    ------
    UserError
        If there is no complete footprint, or one of a newer version.
    """

    def __init__(self, uri: str, tiles: str = "") -> None:
        path = storage.join(uri, FOOTPRINT_JSON)
        if not storage.exists(path):
            raise UserError(
                f"dataset: {uri} holds no finished footprint ({FOOTPRINT_JSON}); make one with `gampen-ray footprint`"
            )
        remedy = "make the footprint again"
        if documents.read(documents.Versioned, path, remedy).format_version > FORMAT_VERSION:
            raise UserError(f"dataset: {uri} was made by a newer gampen_ray; upgrade gampen_ray")
        self.uri, self.info = uri, documents.read(FootprintInfo, path, remedy)
        self.root = tiles or self.info.tiles
        self.table = _index(uri)
        names = self.table["tile"].to_numpy()
        self.names, start = np.unique(names, return_index=True)
        """Names of the tiles, sorted."""
        self._bounds = [*start.tolist(), len(names)]

    def select(self, bands: Sequence[str], align: bool = False) -> "Selection":
        """Return the tiles with the bands that are wanted, in their order.

        Parameters
        ----------
        bands
            Their names.
        align
            Whether tiles may be used whose bands lie on different grids (`gampen_ray.data.tiles.aligning`).

        Raises
        ------
        UserError
            If no tile has one of them.
        """
        missing = [band for band in bands if band not in self.info.bands]
        if missing:
            raise UserError(f"bands: no tile of {self.uri} has {missing[0]}; there are {', '.join(self.info.bands)}")
        return Selection(self, tuple(bands), align)

    def rows(self, tile: int) -> range:
        """Return the rows of the index of a tile, given its place in `names`."""
        return range(self._bounds[tile], self._bounds[tile + 1])


class Selection:
    """The tiles of a footprint in some bands, by their place in `Footprint.names`."""

    def __init__(self, footprint: Footprint, bands: tuple[str, ...], align: bool = False) -> None:
        self.footprint, self.bands, self.names, self._align = footprint, bands, footprint.names, align
        starts = pa.array([footprint.rows(tile)[0] for tile in range(len(footprint.names))])
        first = footprint.table.select(["ra", "dec", "radius_deg"]).take(starts)
        self.centre_T3 = unit_vectors(first["ra"].to_numpy(), first["dec"].to_numpy())
        self.radius_deg_T = first["radius_deg"].to_numpy()

    @functools.cached_property
    def pixel_scale_arcsec(self) -> float:
        """Side of a pixel in the first band, the median of all tiles."""
        table = self.footprint.table
        return float(np.median(table["pixel_scale_arcsec"].to_numpy()[table["band"].to_numpy() == self.bands[0]]))

    @functools.lru_cache(4096)  # noqa: B019 - lives as long as the selection
    def files(self, tile: int) -> list[BandFile]:
        """Return the files of a tile in those of the bands that it has."""
        table = self.footprint.table.slice(self.footprint.rows(tile)[0], len(self.footprint.rows(tile)))
        found = {row["band"]: _band_file(row) for row in table.to_pylist()}
        return [found[band] for band in self.bands if band in found]

    def grid(self, tile: int) -> Grid:
        """Return a tile's pixels on the sky: those of the first of its bands."""
        files = self.files(tile)
        return (files or [_band_file(self.footprint.table.slice(self.footprint.rows(tile)[0], 1).to_pylist()[0])])[0].grid

    @functools.lru_cache(4096)  # noqa: B019
    def fault(self, tile: int) -> str:
        """Return why a tile cannot be used in these bands: one is missing, or the bands' grids do not fit; empty: it can."""
        files = self.files(tile)
        name = self.names[tile]
        if missing := [band for band in self.bands if band not in {file.band for file in files}]:
            return f"band missing: tile {name} has no {', '.join(missing)}"
        first = files[0]
        for file in files[1:]:
            grids = f"tile {name} has {first.grid} in {first.band}, {file.grid} in {file.band}"
            if self._align and not first.grid.overlaps(file.grid):
                return f"bands apart on the sky: {grids}"
            if not (self._align or first.grid.same_as(file.grid)):
                return f"bands on different grids: {grids}; align resamples them onto that of {first.band}"
        return ""


def _index(uri: str) -> pa.Table:
    uris = storage.list_files(storage.join(uri, INDEX), ".parquet")

    def read(uri: str) -> pa.Table:
        with storage.explained(uri, "damaged: "), storage.open_input(uri) as source:
            return pq.read_table(source, schema=_SCHEMA)

    table = pa.concat_tables(storage.read_each(read, uris))
    return table.sort_by([("tile", "ascending"), ("band", "ascending"), ("version", "ascending")]).combine_chunks()


def _fingerprint(table: pa.Table) -> str:
    scalar = [name for name in table.column_names if name not in (*ROLES, "corner_ra", "corner_dec")]
    places = [table[role].combine_chunks().field(name) for role in ROLES for name in ("path", "stamp")]
    return content_fingerprint({}, *(table[name] for name in scalar), *places)


def _row(file: BandFile) -> dict[str, Any]:
    values = dataclasses.asdict(file)
    grid = file.grid
    del values["grid"]
    centre = grid.sky([(grid.width - 1) / 2], [(grid.height - 1) / 2])
    corners = dict(zip(("corner_ra", "corner_dec"), (corner.tolist() for corner in grid.corners), strict=True))
    sky = {"ra": float(centre[0][0]), "dec": float(centre[1][0]), "radius_deg": grid.radius_deg}
    return values | {"wcs": grid.wcs, "height": grid.height, "width": grid.width} | sky | corners


def _band_file(row: dict[str, Any]) -> BandFile:
    fields = {field.name for field in dataclasses.fields(BandFile)} & row.keys()
    values: dict[str, Any] = {name: Place(**row[name]) if name in ROLES else row[name] for name in fields}
    return BandFile(**values, grid=Grid(row["wcs"], row["height"], row["width"]))
