"""The rows of a planned unit with their images, cut from a tile: what `infer` predicts and `ingest` stores.

Shape legend: N sources, C bands, H x W pixels.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from gampen_ray import storage
from gampen_ray.config.inputs import NanPolicy
from gampen_ray.data.cutouts import CORE, CutoutError, central, fit_to_size, without_blanks
from gampen_ray.data.shards import DatasetInfo
from gampen_ray.data.tiles.aligning import AlignedTile
from gampen_ray.data.tiles.assignment import assign
from gampen_ray.data.tiles.cutting import MASKED, Cuts
from gampen_ray.data.tiles.footprint import FOOTPRINT_JSON, Selection
from gampen_ray.data.tiles.planning import TILE, selected
from gampen_ray.data.tiles.units import TileUnit, read_unit

__all__ = ["RESAMPLED", "TILE_COLUMNS", "TileReader", "is_footprint"]

RESAMPLED = "bands_resampled"
"""Column of whether a band of a cutout was resampled onto the pixels of the first."""

TILE_COLUMNS = {
    TILE: ("", "name of the tile from which the galaxy was cut"),
    "x": ("pix", "column of the galaxy in the tile, 0 at the centre of the first pixel"),
    "y": ("pix", "row of the galaxy in the tile, 0 at the centre of the first pixel"),
    "edge_share": ("", "share of the cutout's pixels that are off the tile"),
    "mask_share": ("", "share of the cutout's pixels, in all bands, that have no value"),
    "psf_fwhm_arcsec": ("arcsec", "full width at half maximum of the PSF at the galaxy, in the first band; null if unknown"),
    "sky_noise": ("", "standard deviation of the noise of a pixel near the galaxy, in the first band, flux units"),
}
"""Unit and description of what is known of a galaxy that comes from a tile, by the name of its column."""


def is_footprint(uri: str) -> bool:
    """Return whether a folder holds a finished footprint."""
    return storage.exists(storage.join(uri, FOOTPRINT_JSON))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TileReader:
    """Reads the images of planned sources; small enough to send to every task.

    Parameters
    ----------
    footprint
        URI of the footprint.
    bands, size
        Bands and side of the cutouts, pixels.
    policies
        What becomes of pixels without a value, off the tile too (`gampen_ray.data.cutouts.fit_to_size`).
    max_beyond
        Pixels by which a cutout may reach over the edge of its tile, if it is not that of the plan.
    align
        Whether bands on other grids than that of the first are resampled onto it; such sources are marked as `RESAMPLED`.
    kept
        Columns of the plan that stay Arrow arrays.
    """

    footprint: str
    bands: tuple[str, ...]
    size: int
    policies: tuple[NanPolicy, ...] = ("quarantine",)
    max_beyond: int = 0
    align: bool = False
    kept: tuple[str, ...] = ()

    @property
    def selection(self) -> Selection:
        """The tiles, which a process reads once."""
        return selected(self.footprint, self.bands, self.align)

    def info(self, catalog_identity: str = "") -> DatasetInfo:
        """Return the metadata of a dataset of these cutouts."""
        info = self.selection.footprint.info
        return DatasetInfo(
            bands=self.bands,
            cutout_size=self.size,
            pixel_scale_arcsec=self.selection.pixel_scale_arcsec,
            zero_point_mag=info.zero_point_mag,
            survey=info.survey,
            fingerprint=info.fingerprint + catalog_identity,
        )

    def read(self, unit: TileUnit, num_rows: int, refused: Mapping[int, str]) -> Iterator[tuple[dict[str, Any], int]]:
        """Yield the sources of a unit in batches of at most ``num_rows``, each with the number of stored bytes read.

        Parameters
        ----------
        refused
            Reasons of rows that may not be cut, by their numbers in the unit; they come first.

        Yields
        ------
        dict
            The columns of the plan and of `TILE_COLUMNS`; ``image`` (N x C x H x W, zero in a row that cannot be used),
            ``reason`` (empty text for a good row), ``source`` (file of the first band), ``pixels_filled``, ``core_filled``,
            ``side_pixels``, `RESAMPLED`; and ``psf_fwhm_BAND`` and ``noise_BAND`` for each band.
        """
        table, names = read_unit(unit), self.selection.names
        tile = int(np.searchsorted(names, table[TILE][0].as_py()))
        left_out = sorted(refused)
        for start in range(0, len(left_out), num_rows):
            some = left_out[start : start + num_rows]
            reason_N = np.array([refused[row] for row in some], dtype=object)
            yield self._columns(table.take(pa.array(some)), None, reason_N, self._source(tile)), 0
        if kept := [row for row in range(len(table)) if row not in refused]:
            yield from self._cut(table.take(pa.array(kept)), tile, num_rows, frozenset())

    def _cut(self, table: pa.Table, tile: int, num_rows: int, without: frozenset[int]) -> Iterator[tuple[dict[str, Any], int]]:
        # Sources from one tile; those whose centre is masked there are cut from the next best, if there is one.
        footprint, masked = self.selection.footprint, []
        x_N, y_N = (table[axis].to_numpy() for axis in ("x", "y"))
        with AlignedTile(self.selection.files(tile), footprint.root, footprint.info.zero_point_mag) as opened:
            num_bytes = opened.num_bytes
            for cuts in opened.cut(x_N, y_N, self.size, num_rows):
                kept_N = cuts.reason_N != MASKED
                masked.append(cuts.rows_N[~kept_N])
                if kept_N.any():
                    kept = cuts.take(kept_N)
                    rows = table.take(pa.array(kept.rows_N))
                    columns = self._columns(rows, kept, kept.reason_N.copy(), self._source(tile))
                    if opened.resamples:
                        columns[RESAMPLED][:] = True
                    yield columns, num_bytes
                    num_bytes = 0
        again = table.take(pa.array(np.concatenate(masked)))
        if not len(again):
            return
        without |= {tile}
        position = again["ra"].to_numpy(), again["dec"].to_numpy()
        found = assign(*position, self.selection, size=self.size, max_beyond=self.max_beyond, without=without)
        lost = again.filter(pa.array(found.tile_N < 0))
        for start in range(0, len(lost), num_rows):
            some = lost.slice(start, num_rows)
            yield self._columns(some, None, np.full(len(some), MASKED, dtype=object), self._source(tile)), 0
        for other in np.unique(found.tile_N[found.tile_N >= 0]).tolist():
            rows_N = np.flatnonzero(found.tile_N == other)
            moved = again.take(pa.array(rows_N))
            place = {TILE: np.full(len(rows_N), self.selection.names[other]), "x": found.x_N[rows_N], "y": found.y_N[rows_N]}
            for name, values_N in place.items():
                moved = moved.set_column(moved.column_names.index(name), name, pa.array(values_N))
            yield from self._cut(moved, other, num_rows, without)

    def _source(self, tile: int) -> str:
        return storage.join(self.selection.footprint.root, self.selection.files(tile)[0].image.path)

    def _columns(self, table: pa.Table, cuts: Cuts | None, reason_N: np.ndarray, source: str) -> dict[str, Any]:
        count = len(table)
        image_NCHW = np.zeros((count, len(self.bands), self.size, self.size), np.float32)
        filled_N, core_N = np.zeros(count, np.int32), np.zeros(count, np.int32)
        unknown_N = np.full(count, np.nan)
        numbers = {"edge_share": unknown_N, "mask_share": unknown_N}
        psf_NC = noise_NC = np.full((count, len(self.bands)), np.nan)
        if cuts is not None:
            numbers = {"edge_share": cuts.off_tile_share_N, "mask_share": cuts.masked_share_N}
            psf_NC, noise_NC = cuts.psf_fwhm_arcsec_NC, cuts.sky_noise_NC
            for row in np.flatnonzero(reason_N == ""):
                try:
                    # As a stored cutout of the same pixels is read (`gampen_ray.data.packing`).
                    image_CHW = without_blanks(cuts.image_NCHW[row])
                    image_NCHW[row] = fit_to_size(image_CHW, self.size, self.policies, self.bands)
                except CutoutError as error:
                    reason_N[row] = str(error)
                    continue
                filled_N[row] = np.count_nonzero(~np.isfinite(image_CHW))
                core_N[row] = np.count_nonzero(~np.isfinite(central(image_CHW, CORE)))
        numbers |= {"psf_fwhm_arcsec": psf_NC[:, 0], "sky_noise": noise_NC[:, 0]}
        numbers |= {f"psf_fwhm_{band}": psf_N for band, psf_N in zip(self.bands, psf_NC.T, strict=True)}
        numbers |= {f"noise_{band}": noise_N for band, noise_N in zip(self.bands, noise_NC.T, strict=True)}
        # What the catalogue states is kept.
        columns: dict[str, Any] = numbers | {
            name: table[name] if name in self.kept else np.asarray(table[name]) for name in table.column_names
        }
        columns |= {"pixels_filled": filled_N, "core_filled": core_N}
        columns |= {"image": image_NCHW, "side_pixels": np.full(count, self.size, np.int32), RESAMPLED: np.zeros(count, bool)}
        return columns | {"reason": reason_N.astype(str), "source": np.full(count, source)}
