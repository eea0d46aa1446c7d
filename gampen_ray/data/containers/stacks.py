"""Images of many galaxies in one array. Shape legend: N galaxies, C bands, H x W pixels."""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa

from gampen_ray.config import ReaderConfig
from gampen_ray.data.containers.faults import row_faults
from gampen_ray.data.cutouts import Cutout, CutoutError, too_large
from gampen_ray.data.kinds import shows_galaxies
from gampen_ray.data.readers.arrays import band_order, from_planes, to_bands
from gampen_ray.errors import UserError

__all__ = ["INDEX", "MOST_ROWS", "StackContainer", "check_rows", "in_runs", "needs_values"]

INDEX = "gampen_ray:index"
"""Column of a container's rows with the number by which it finds an image; absent: the row's number."""

# The first is GaMPEN's own, the second Galaxy10's and Cutana's, the last Multimodal Universe's.
_IMAGES = ("image", "images", "data", "image_array", "image_flux")
_MAX_LABELS = 64
# Structures and complex numbers.
_NOT_SCALAR = "Vc"
# A header may declare anything: these bound what is allocated by it.
MOST_ROWS = 100_000_000
"""Galaxies of a file; more are in several files, or in none: a damaged header declares them."""
_MOST_CHUNK_BYTES = 1 << 30
_MOST_COLUMN_BYTES = 4 << 30
_RUN_BYTES = 64 << 20


class _Array(Protocol):
    """An array that is read by slices of its first axis: of NumPy, h5py or zarr."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any: ...

    def __getitem__(self, key: Any) -> Any: ...


def check_rows(uri: str, count: int) -> None:
    """Raise a UserError for a file that declares more than `MOST_ROWS` galaxies."""
    if count > MOST_ROWS:
        raise UserError(f"images: {uri} declares {count:,} galaxies, more than {MOST_ROWS:,}: it is damaged, or to be split")


def needs_values(array: Any) -> bool:
    """Return whether what was never written to an array is to be NaN, where its format gives zeros: in images and floats.

    Zeros in columns of integers are common, and formats do not store them.
    """
    kind = np.dtype(array.dtype).kind
    return kind == "f" or (kind in "iu" and len(array.shape) > 2)


class StackContainer:
    """Arrays by name: one of images (N x H x W, N x C x H x W or N x H x W x C), and columns of N values beside it.

    Multimodal Universe's arrays ``image_band``, ``image_mask`` (true: usable), ``image_ivar``, ``image_psf_fwhm`` and
    ``image_scale`` are understood, and the bands taken in the order of the config.

    Parameters
    ----------
    uri
        The file, for messages.
    arrays
        Arrays by name.
    config
        Bands, axes, and the name of the images.

    Raises
    ------
    UserError
        If the images cannot be found.
    """

    package: ClassVar[str] = ""
    suffixes: ClassVar[tuple[str, ...]] = ()

    def __init__(self, uri: str, arrays: Mapping[str, _Array], config: ReaderConfig) -> None:
        self._uri, self._arrays, self._config = uri, arrays, config
        self._images = arrays[name] if (name := self._name()) else None  # type: ignore[index]
        self._good, self._ivar = (arrays.get(f"image_{plane}") for plane in ("mask", "ivar"))
        check_rows(uri, len(self))
        planes = (array for array in (self._stack, self._good, self._ivar) if array is not None)
        self._row_bytes = max(_bytes(array, array.shape[1:]) for array in planes)
        if self._row_bytes > config.max_mebibytes << 20:
            raise UserError(f"images: {uri}: {too_large('an image', self._row_bytes, config)}")
        for name, array in arrays.items():
            # A chunk is decompressed whole.
            if (size := _bytes(array, getattr(array, "chunks", None) or ())) > _MOST_CHUNK_BYTES:
                raise UserError(f"images: {uri}: {name} has chunks of {size / 2**30:,.1f} GiB; write chunks of a few MiB")
        names = arrays.get("image_band")
        first = () if names is None else np.ravel(names[:1] if len(names.shape) > 1 else names[:])
        self.bands = tuple(_text(name) for name in first)
        scale = arrays.get("image_scale")
        self.pixel_scale_arcsec = None if scale is None else float(np.ravel(scale[:1])[0])

    def __len__(self) -> int:
        return self._stack.shape[0]

    @property
    def _stack(self) -> _Array:
        assert self._images is not None
        return self._images

    def _name(self) -> str:
        wanted = self._config.dataset
        if wanted:
            if wanted not in self._arrays:
                raise UserError(f"reader.dataset: {self._uri} has no array {wanted!r}; there are: {', '.join(self._arrays)}")
            return wanted
        deep = [name for name, array in self._arrays.items() if len(array.shape) in (3, 4) and shows_galaxies(name)]
        chosen = next((name for name in _IMAGES if name in deep), deep[0] if len(deep) == 1 else "")
        if not chosen:
            there = ", ".join(f"{name} {array.shape}" for name, array in self._arrays.items()) or "none"
            raise UserError(
                f"images: {self._uri} has no array of images (galaxies, height, width[, bands]) that can be told by name or "
                f"shape; give reader.dataset; there are: {there}"
            )
        return chosen

    @functools.cached_property
    def _order(self) -> list[int] | None:
        try:
            return band_order(self.bands, self._config) if self.bands else None
        except CutoutError as error:
            raise UserError(f"reader.bands: {self._uri}: {error}") from None

    def rows(self) -> pa.Table:
        """Return the arrays of N values as columns, those of few values a galaxy as one column each, and the PSF's widths."""
        count, columns = len(self), {}
        beside = {
            name: array
            for name, array in self._arrays.items()
            if array is not self._images
            and array.shape[:1] == (count,)
            and not name.startswith("image_")
            and np.dtype(array.dtype).kind not in _NOT_SCALAR
            and (len(array.shape) == 1 or (len(array.shape) == 2 and array.shape[1] <= _MAX_LABELS))
        }
        if (size := sum(_bytes(array, array.shape) for array in beside.values())) > _MOST_COLUMN_BYTES:
            raise UserError(f"images: {self._uri} declares columns of {size / 2**30:,.1f} GiB: it is damaged, or to be split")
        for name, array in beside.items():
            if len(array.shape) == 1:
                columns[name] = _column(array[:])
            elif np.dtype(array.dtype).kind in "fiub":
                values = array[:]
                columns |= {f"{name}_{index}": _column(values[:, index]) for index in range(array.shape[1])}
        psf, order = self._arrays.get("image_psf_fwhm"), self._order
        if psf is not None and order is not None and psf.shape[0] == count:
            widths = np.asarray(psf[:], dtype=np.float64).reshape(count, -1)
            columns |= {f"psf_fwhm_{band}": widths[:, at] for band, at in zip(self._config.bands, order, strict=True)}
        if self._ivar is not None:
            # Known only when the images are read.
            columns |= {f"noise_{band}": np.full(count, np.nan) for band in self._config.bands}
        return pa.table(columns) if columns else pa.table({"row": np.arange(count)})

    def read(self, indices: Sequence[int]) -> Iterator[Cutout | CutoutError]:
        """Yield the image of each row; those of a run are read at once, or singly where one is damaged."""
        step = max(1, _RUN_BYTES // max(1, self._row_bytes))
        runs = ((at, min(at + step, stop)) for start, stop in in_runs(indices) for at in range(start, stop, step))
        for start, stop in runs:
            try:
                with row_faults(self._uri, start):
                    found = self._run(start, stop)
            except CutoutError as error:
                if stop - start > 1:
                    for index in range(start, stop):
                        yield from self.read([index])
                    continue
                found = [error]
            yield from found

    def _run(self, start: int, stop: int) -> list[Cutout | CutoutError]:
        planes = [None if array is None else np.asarray(array[start:stop]) for array in (self._stack, self._good, self._ivar)]
        rows = [[None if plane is None else plane[row] for plane in planes] for row in range(stop - start)]
        return [self._cutout(*row) for row in rows]

    def _cutout(self, image: Any, good: np.ndarray | None, ivar: np.ndarray | None) -> Cutout | CutoutError:
        order = self._order
        if order is not None:
            image = image[order] if image.ndim == 3 else image
            good = good[order] if good is not None and good.ndim == 3 else good
            ivar = ivar[order] if ivar is not None and ivar.ndim == 3 else ivar
        try:
            image_CHW = to_bands(image, self._config)
            ivar_CHW = None if ivar is None else to_bands(ivar, self._config)
            return from_planes(image_CHW, self._config, good=good, ivar=ivar_CHW)
        except CutoutError as error:
            return error

    def close(self) -> None:
        """Arrays in memory need no closing."""


def in_runs(indices: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of the runs of consecutive numbers, in their order."""
    start = stop = -1
    for index in indices:
        if index != stop:
            if stop > start:
                yield start, stop
            start = index
        stop = index + 1
    if stop > start:
        yield start, stop


def _bytes(array: _Array, shape: Sequence[int]) -> int:
    """Return what elements of an array take, bytes."""
    return math.prod(shape) * np.dtype(array.dtype).itemsize


def _column(values: np.ndarray) -> pa.Array:
    values = np.asarray(values)
    if values.dtype.kind in "SO":
        return pa.array([_text(value) for value in values], pa.string())
    return pa.array(values.astype(str).tolist() if values.dtype.kind == "U" else values.astype(values.dtype.newbyteorder("=")))


def _text(value: Any) -> str:
    # Not every program writes UTF-8.
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)
