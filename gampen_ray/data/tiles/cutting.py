"""Cutouts from the pixels of a tile: its bands are read once, by strips of rows, and sliced at the nearest pixel.

Shape legend: N sources, C bands, H x W pixels of a tile, h rows of a strip, S the side of a cutout. Pixel coordinates are
(x, y), zero at the centre of the first pixel.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gampen_ray import storage
from gampen_ray.data.cutouts import CutoutError
from gampen_ray.data.headers import linear_pixels
from gampen_ray.data.tiles.fits_files import opened
from gampen_ray.data.tiles.footprint import BandFile, Place
from gampen_ray.data.tiles.formats import format_of
from gampen_ray.data.tiles.preset import ROLES
from gampen_ray.errors import UserError

__all__ = ["MASKED", "OFF_TILE", "STRIP_BYTES", "Cuts", "Tile", "first_pixels", "masked_centres"]

MASKED = "masked centre: its pixel has no value"
"""Reason of a source whose nearest pixel has no value in a band."""
OFF_TILE = "the centre is off the tile"
"""Reason of a source whose cutout has no pixel on the tile."""

STRIP_BYTES = 512 << 20
"""Memory of the pixels of a strip, all bands together."""
_SAMPLES = 16
"""Places along each side of a cutout at which the map of the noise is looked up."""
_MAD = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""
# Rows between two sources that are not read.
_GAP = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cuts:
    """Cutouts of N sources.

    Parameters
    ----------
    rows_N
        Which of the sources that were asked for.
    image_NCHW
        Pixels, float32, in the flux unit that was asked for; NaN off the tile and where there is no value.
    dx_N, dy_N
        Position of the source less that of the cutout's centre, pixels, within half a pixel.
    masked_share_N, off_tile_share_N
        Shares of the pixels without a value, and off the tile.
    psf_fwhm_arcsec_NC
        Width of the PSF at the source; NaN: unknown.
    sky_noise_NC
        Noise of a pixel, flux units: the median of the map of the noise over the cutout, or without one the robust scatter of
        the cutout's edge.
    reason_N
        Why the cutout cannot be used, empty text for a good one.
    """

    rows_N: np.ndarray
    image_NCHW: np.ndarray
    dx_N: np.ndarray
    dy_N: np.ndarray
    masked_share_N: np.ndarray
    off_tile_share_N: np.ndarray
    psf_fwhm_arcsec_NC: np.ndarray
    sky_noise_NC: np.ndarray
    reason_N: np.ndarray

    def take(self, chosen_N: np.ndarray | slice) -> "Cuts":
        """Return some of them, by a mask, their places or a slice."""
        return Cuts(**{field.name: getattr(self, field.name)[chosen_N] for field in dataclasses.fields(self)})

    @staticmethod
    def joined(parts: "Sequence[Cuts]") -> "Cuts":
        """Return those of all parts, in the order of the sources that were asked for."""
        names = [field.name for field in dataclasses.fields(Cuts)]
        whole = Cuts(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})
        return whole.take(np.argsort(whole.rows_N))


def first_pixels(x_N: np.ndarray, size: int) -> np.ndarray:
    """Return the first pixel, along one axis, of cutouts whose centres are nearest to positions."""
    return np.floor(x_N - (size - 1) / 2 + 0.5).astype(np.int64)


def masked_centres(image_NCHW: np.ndarray, dx_N: np.ndarray, dy_N: np.ndarray) -> np.ndarray:
    """Return whether the pixel nearest to each source has no value in a band; see `Cuts`."""
    size = image_NCHW.shape[-1]
    at_x, at_y = (np.clip(np.floor((size - 1) / 2 + d_N + 0.5).astype(int), 0, size - 1) for d_N in (dx_N, dy_N))
    centre_NC = image_NCHW[np.arange(len(image_NCHW)), :, at_y, at_x]
    return np.count_nonzero(np.isnan(centre_NC), axis=1) > 0


class Tile:
    """A tile in some bands; a context manager, which closes its files.

    Parameters
    ----------
    files
        A row of the index for each band, on one grid.
    root
        Folder of the tiles.
    zero_point_mag
        AB magnitude of the flux unit of the cutouts, for all bands.

    Raises
    ------
    UserError
        If a file has changed since it was indexed.
    """

    def __init__(self, files: Sequence[BandFile], root: str, zero_point_mag: float) -> None:
        self.files = tuple(files)
        self._root, self._stack = root, contextlib.ExitStack()
        self._factors = [10 ** (0.4 * (zero_point_mag - file.zero_point_mag)) for file in files]
        self._open: dict[tuple[int, str], tuple[Any, Any]] = {}
        indexed = {storage.join(root, place.path): place.stamp for file in files for place in _places(file).values()}
        self.num_bytes = sum(int(stamp.split(" ")[0]) for stamp in indexed.values())
        """Size of its files."""
        for uri, stamp in storage.stamps(indexed).items():
            if stamp != indexed[uri]:
                raise UserError(f"dataset: {uri} has changed since the footprint was made; make the footprint again")

    def __enter__(self) -> "Tile":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def cut(
        self, x_N: np.ndarray, y_N: np.ndarray, size: int, num_rows: int = 256, strip_bytes: int = STRIP_BYTES
    ) -> Iterator[Cuts]:
        """Yield the cutouts of sources, each exactly once, in the order of their rows of pixels.

        Parameters
        ----------
        x_N, y_N
            Positions, pixels.
        size
            Side of the cutouts, pixels.
        num_rows
            Most sources at a time.
        strip_bytes
            Memory of a strip, but no less than a row of cutouts needs.
        """
        first_N = first_pixels(y_N, size)
        order = np.argsort(first_N, kind="stable")
        sorted_N = first_N[order]
        width = self.files[0].grid.width
        height = max(size, strip_bytes // (width * (8 * len(self.files) + 16)))
        start = 0
        while start < len(order):
            stop = int(np.searchsorted(sorted_N, sorted_N[start] + height - size, side="right"))
            gaps = np.flatnonzero(np.diff(sorted_N[start:stop]) > size + _GAP)
            stop = start + int(gaps[0]) + 1 if len(gaps) else stop
            yield from self._strip(order[start:stop], x_N, y_N, size, num_rows)
            start = stop

    def read_all(self) -> None:
        """Read and decompress all planes once, for the measurement of what that costs."""
        for band, file in enumerate(self.files):
            for role in _places(file):
                self._plane(band, role, 0, file.grid.height)

    def _strip(self, rows: np.ndarray, x_N: np.ndarray, y_N: np.ndarray, size: int, num_rows: int) -> Iterator[Cuts]:
        # The cutouts of some sources, from rows of pixels that are read at once.
        grid = self.files[0].grid
        first_N = first_pixels(y_N[rows], size)
        top, bottom = max(0, int(first_N[0])), min(grid.height, int(first_N[-1]) + size)
        pixels: _Strip | None = None
        fault = ""
        if top < bottom:
            try:
                pixels = self._read(top, bottom)
            except CutoutError as error:
                fault = str(error)
        for at in range(0, len(rows), num_rows):
            some = rows[at : at + num_rows]
            yield self._sliced(some, x_N[some], y_N[some], size, pixels, top, fault)

    def _sliced(
        self, rows: np.ndarray, x_N: np.ndarray, y_N: np.ndarray, size: int, strip: "_Strip | None", top: int, fault: str
    ) -> Cuts:
        count, bands, width = len(rows), len(self.files), self.files[0].grid.width
        left_N, first_N = first_pixels(x_N, size), first_pixels(y_N, size)
        image_NCHW = np.full((count, bands, size, size), np.nan, np.float32)
        off_N = np.ones(count)
        psf_NC, noise_NC = np.full((count, bands), np.nan), np.full((count, bands), np.nan)
        reason_N = np.full(count, fault, dtype=object)
        if strip is not None:
            height = strip.image_ChW.shape[1]
            for row, (left, first) in enumerate(zip(left_N.tolist(), (first_N - top).tolist(), strict=True)):
                (a, b), (c, d) = (max(0, first), min(height, first + size)), (max(0, left), min(width, left + size))
                if a < b and c < d:
                    image_NCHW[row, :, a - first : b - first, c - left : d - left] = strip.image_ChW[:, a:b, c:d]
                    off_N[row] = 1 - (b - a) * (d - c) / size**2
            psf_NC, noise_NC = strip.conditions(x_N, y_N - top, left_N, first_N - top, size)
        bad_N = np.count_nonzero(np.isnan(image_NCHW), axis=(1, 2, 3)) / (bands * size**2) - off_N
        unknown = np.isnan(noise_NC)
        if unknown.any():
            noise_NC = np.where(unknown, _edge_scatter(image_NCHW), noise_NC)
        dx_N, dy_N = (position - first - (size - 1) / 2 for position, first in ((x_N, left_N), (y_N, first_N)))
        masked_N = masked_centres(image_NCHW, dx_N, dy_N) & (reason_N == "")
        reason_N[masked_N] = np.where(off_N[masked_N] == 1, OFF_TILE, MASKED)
        return Cuts(
            rows_N=rows,
            image_NCHW=image_NCHW,
            dx_N=dx_N,
            dy_N=dy_N,
            masked_share_N=np.maximum(bad_N, 0.0),
            off_tile_share_N=off_N,
            psf_fwhm_arcsec_NC=psf_NC,
            sky_noise_NC=noise_NC,
            reason_N=reason_N,
        )

    def _read(self, top: int, bottom: int) -> "_Strip":
        shape = len(self.files), bottom - top, self.files[0].grid.width
        strip = _Strip(np.empty(shape, np.float32), [], [], [file.psf_fwhm_arcsec for file in self.files])
        for band, file in enumerate(self.files):
            image_hW = strip.image_ChW[band]
            with np.errstate(over="ignore", invalid="ignore"):
                # Values beyond float32 become infinite.
                image_hW[:] = self._plane(band, "image", top, bottom)
            if self._factors[band] != 1:
                image_hW *= np.float32(self._factors[band])
            bad_hW = ~np.isfinite(image_hW)
            if file.mask.path:
                flags_hW = self._plane(band, "mask", top, bottom)
                if file.mask_bits:
                    bad_hW |= (np.nan_to_num(flags_hW).astype(np.int64, copy=False) & file.mask_bits) != 0
                else:
                    bad_hW |= ~(flags_hW > 0)
            noise_hW, power = None, 1.0
            if file.noise.path:
                noise_hW = self._plane(band, "noise", top, bottom).astype(np.float32, copy=False)
                bad_hW |= ~((noise_hW > 0) & np.isfinite(noise_hW))
                power = {"variance": 0.5, "inverse_variance": -0.5, "error": 1.0, "relative": 0.0}[file.noise_kind]
            image_hW[bad_hW] = np.nan
            strip.noise.append((noise_hW if power else None, power, self._factors[band]))
            strip.psf.append(self._plane(band, "psf", top, bottom) if file.psf.path else None)
        return strip

    def _plane(self, band: int, role: str, top: int, bottom: int) -> np.ndarray:
        # Rows of a plane, of the linear flux.
        place: Place = getattr(self.files[band], role)
        try:
            if (band, role) not in self._open:
                file = self._stack.enter_context(opened(storage.join(self._root, place.path), whole=True))
                self._open[band, role] = format_of(place.path).rows_of(file, place.hdu)
            rows, header = self._open[band, role]
            # The cards of a compression are removed from a copy.
            return linear_pixels(rows.read(top, bottom), header.copy())
        except CutoutError as error:
            raise CutoutError(f"{place.path}: {error}") from None


@dataclasses.dataclass
class _Strip:
    """Rows of a tile: the image, NaN where there is no value, and per band the map of the noise and that of the PSF."""

    image_ChW: np.ndarray
    noise: list[tuple[np.ndarray | None, float, float]]
    psf: list[np.ndarray | None]
    psf_by_header: list[float]

    def conditions(
        self, x_N: np.ndarray, y_N: np.ndarray, left_N: np.ndarray, first_N: np.ndarray, size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return PSF width and noise (N x C); positions are in pixels of the strip."""
        _, height, width = self.image_ChW.shape
        psf_NC, noise_NC = (np.full((len(x_N), len(self.noise)), np.nan) for _ in range(2))
        at_y, at_x = (np.clip(np.rint(p_N), 0, most - 1).astype(int) for p_N, most in ((y_N, height), (x_N, width)))
        steps = np.unique(np.linspace(0, size - 1, min(size, _SAMPLES)).round().astype(int))
        rows_NS1, columns_N1S = (first_N[:, None] + steps)[:, :, None], (left_N[:, None] + steps)[:, None, :]
        inside = (rows_NS1 >= 0) & (rows_NS1 < height) & (columns_N1S >= 0) & (columns_N1S < width)
        places = np.clip(rows_NS1, 0, height - 1), np.clip(columns_N1S, 0, width - 1)
        for band, ((noise_hW, power, factor), psf_hW) in enumerate(zip(self.noise, self.psf, strict=True)):
            psf_NC[:, band] = self.psf_by_header[band] if psf_hW is None else psf_hW[at_y, at_x]
            if noise_hW is None:
                continue
            known = inside & np.isfinite(self.image_ChW[band][places])
            samples = np.where(known, noise_hW[places], np.nan).reshape(len(x_N), -1)
            some = known.any(axis=(1, 2))
            with np.errstate(invalid="ignore", divide="ignore"):
                noise_NC[some, band] = factor * np.nanmedian(samples[some], axis=1).astype(np.float64) ** power
        psf_NC[psf_NC <= 0] = np.nan
        return psf_NC, noise_NC


def _edge_scatter(image_NCHW: np.ndarray) -> np.ndarray:
    # The robust standard deviation of the outermost pixels (N x C); NaN where none has a value.
    edges = [image_NCHW[:, :, 0], image_NCHW[:, :, -1], image_NCHW[:, :, 1:-1, 0], image_NCHW[:, :, 1:-1, -1]]
    edge_NCE = np.concatenate(edges, axis=2)
    result_NC = np.full(edge_NCE.shape[:2], np.nan)
    some = np.isfinite(edge_NCE).any(axis=2)
    values = edge_NCE[some]
    result_NC[some] = _MAD * np.nanmedian(np.abs(values - np.nanmedian(values, axis=1, keepdims=True)), axis=1)
    return result_NC


def _places(file: BandFile) -> dict[str, Place]:
    return {role: place for role in ROLES if (place := getattr(file, role)).path}
