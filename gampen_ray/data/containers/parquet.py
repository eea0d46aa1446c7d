"""Parquet files with a column of images: tensors, nested lists, or Multimodal Universe's structures."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from gampen_ray import storage
from gampen_ray.config import ReaderConfig
from gampen_ray.data.catalog_formats import scalar_table
from gampen_ray.data.containers.faults import row_faults
from gampen_ray.data.containers.stacks import check_rows
from gampen_ray.data.cutouts import Cutout, CutoutError, too_large
from gampen_ray.data.kinds import shows_galaxies
from gampen_ray.data.parquet_footers import footer_of
from gampen_ray.data.reader_process import bytes_per_row, read_content
from gampen_ray.data.readers.arrays import band_order, from_planes, to_bands
from gampen_ray.errors import UserError

__all__ = ["ParquetContainer"]

pc: Any = pyarrow.compute
_IMAGES = ("image", "images", "cutout", "data")
_BATCH_ROWS = 16
_NESTED = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


class ParquetContainer:
    """One Parquet file, also a partition of a HATS catalogue, whose images are read in batches, in the order of the rows.

    The column of images holds fixed-shape tensors, nested lists, files (FITS, NumPy) as bytes, or Multimodal Universe's
    structure of ``band``, ``flux`` and, where there are any, ``ivar``, ``mask`` (true: usable), ``psf_fwhm``, ``scale``. Bands
    are taken by their names in each row.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".parquet", ".pq")
    package: ClassVar[str] = ""

    def __init__(self, uri: str, config: ReaderConfig) -> None:
        self._uri, self._config = uri, config
        self._source = storage.open_input(uri)
        self._file = pq.ParquetFile(self._source, pre_buffer=False, buffer_size=1 << 20)
        self._column = self._image_column()
        groups = (self._file.metadata.row_group(group).num_rows for group in range(self._file.num_row_groups))
        self._starts = np.concatenate([[0], np.cumsum(list(groups))])
        self._sizes: list[float] | CutoutError | None = None
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._batch, self._batch_start, self._group = None, 0, -1
        kind = self._file.schema_arrow.field(self._column).type
        self._members = [field.name for field in _structure(kind)]
        self.bands = self._first_bands() if "band" in self._members else ()
        self.pixel_scale_arcsec = self._scale() if "scale" in self._members else None

    def _image_column(self) -> str:
        schema, wanted = self._file.schema_arrow, self._config.dataset
        if wanted:
            if wanted not in schema.names:
                raise UserError(f"reader.dataset: {self._uri} has no column {wanted!r}; there are: {', '.join(schema.names)}")
            return wanted
        found = [field.name for field in schema if _is_image(field.type) and shows_galaxies(field.name)]
        chosen = next((name for name in _IMAGES if name in found), found[0] if len(found) == 1 else "")
        if not chosen:
            raise UserError(
                f"images: {self._uri} has no column of images that can be told by its name or type; give reader.dataset; its "
                f"columns: {', '.join(schema.names)}"
            )
        return chosen

    def _scale(self) -> float | None:
        columns = [f"{self._column}.scale", f"{self._column}.list.element.scale"]
        first = (batch.column(self._column)[0] for batch in self._file.iter_batches(1, columns=columns))
        return next((float(_planes(value, ["scale"])["scale"].ravel()[0]) for value in first), None)

    def rows(self) -> pa.Table:
        check_rows(self._uri, self._file.metadata.num_rows)
        table = scalar_table(self._source, self._column)
        names = [name for member, name in (("psf_fwhm", "psf_fwhm"), ("ivar", "noise")) if member in self._members]
        for name in (f"{name}_{band}" for name in names for band in self._config.bands):
            # Known only when the images are read.
            table = table.append_column(name, pa.array(np.full(len(table), np.nan)))
        if self.bands:
            try:
                band_order(self.bands, self._config)
            except CutoutError as error:
                raise UserError(f"reader.bands: {self._uri}: {error}") from None
        return table

    def _first_bands(self) -> tuple[str, ...]:
        columns = [f"{self._column}.band", f"{self._column}.list.element.band"]
        first = (batch.column(self._column)[0] for batch in self._file.iter_batches(1, columns=columns))
        return tuple(str(name) for name in next((_planes(value, ["band"])["band"] for value in first), ()))

    def read(self, indices: Sequence[int]) -> Iterator[Cutout | CutoutError]:
        for index in indices:
            try:
                with row_faults(self._uri, index):
                    found: Cutout | CutoutError = self._cutout(self._value(index))
            except CutoutError as error:
                # Its batch may be damaged.
                self._group, found = -1, error
            yield found

    def _value(self, index: int) -> Any:
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        if group != self._group or index < self._batch_start:
            self._check_size(group)
            self._group, self._batch, self._batch_start = group, None, int(self._starts[group])
            self._batches = self._file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=[self._column])
        while self._batch is None or index >= self._batch_start + len(self._batch):
            self._batch_start += 0 if self._batch is None else len(self._batch)
            self._batch = next(self._batches)
        return self._batch.column(0)[index - self._batch_start]

    def _check_size(self, group: int) -> None:
        # Some bytes may stand for any number of equal pixels.
        if self._sizes is None:
            try:
                self._sizes = bytes_per_row(footer_of(self._source), self._column, self._config)
            except CutoutError as error:
                self._sizes = error
        if isinstance(self._sizes, CutoutError):
            raise self._sizes
        if (size := self._sizes[group]) > self._config.max_mebibytes << 20:
            raise too_large("the image", int(size), self._config)

    def _cutout(self, value: Any) -> Cutout:
        if not value.is_valid:
            raise CutoutError("the image is missing")
        kind, config = value.type, self._config
        if isinstance(kind, pa.FixedShapeTensorType):
            return Cutout(to_bands(value.to_numpy(), config))
        if "bytes" in self._members:
            return read_content(value["bytes"].as_py(), str(value.get("path") or ""), config)
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            return read_content(value.as_py(), "", config)
        if not self._members:
            return Cutout(to_bands(_ndarray(value), config))
        flux = "flux" if "flux" in self._members else "array"
        there = [name for name in ("band", flux, "ivar", "mask", "psf_fwhm") if name in self._members]
        planes = _planes(value, there)
        order = band_order([str(name) for name in planes["band"]], config)
        # Bands alone may be stored without an axis for them.
        taken = {name: np.atleast_1d(plane)[order] for name, plane in planes.items() if name != "mask"}
        good = planes.get("mask")
        good = good[order] if good is not None and good.ndim == 3 else good
        ivar = to_bands(taken["ivar"], config) if "ivar" in taken else None
        cutout = from_planes(to_bands(taken[flux], config), config, good=good, ivar=ivar)
        widths = zip(config.bands, taken.get("psf_fwhm", ()), strict=False)
        numbers = {**cutout.numbers, **{f"psf_fwhm_{band}": float(w) for band, w in widths}}
        return dataclasses.replace(cutout, numbers=numbers)

    def close(self) -> None:
        self._source.close()


def _structure(kind: pa.DataType) -> list[pa.Field]:
    """Return the fields of a structure, or of a list of structures; none for other types."""
    if any(test(kind) for test in _NESTED):
        kind = kind.value_type  # type: ignore[attr-defined]
    return list(kind) if isinstance(kind, pa.StructType) else []


def _is_image(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.FixedShapeTensorType):
        return len(kind.shape) >= 2
    names = {field.name for field in _structure(kind)}
    if names:
        return {"band", "flux"} <= names or {"band", "array"} <= names or "bytes" in names
    depth = 0
    while any(test(kind) for test in _NESTED):
        kind, depth = kind.value_type, depth + 1  # type: ignore[attr-defined]
    return depth >= 2


def _planes(value: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return members of a structure, or of a list of structures, as arrays with the bands on their first axis."""
    if isinstance(value, pa.StructScalar):
        return {name: _ndarray(value[name]) for name in names}
    items = list(value)
    return {name: np.stack([_ndarray(item[name]) for item in items]) for name in names}


def _ndarray(value: Any) -> np.ndarray:
    """Return a scalar, or nested lists of one shape, as an array."""
    if not value.is_valid:
        raise CutoutError("the image is missing")
    if not hasattr(value, "values"):
        return np.asarray(value.as_py())
    values, shape = value.values, [len(value.values)]
    while any(test(values.type) for test in _NESTED):
        lengths = pc.unique(pc.list_value_length(values)).to_pylist()
        if len(lengths) != 1 or values.null_count:
            raise CutoutError(f"the image is ragged: its rows have {sorted(map(str, lengths))} pixels")
        values, shape = values.flatten(), [*shape, lengths[0]]
    if values.null_count and pa.types.is_floating(values.type):
        values = pc.fill_null(values, float("nan"))
    return values.to_numpy(zero_copy_only=False).reshape(shape)
