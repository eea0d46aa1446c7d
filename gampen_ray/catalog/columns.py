"""The columns of a catalogue: name, unit, description, value and type of each, extensible by user code.

Shape legend: N galaxies, K passes, D targets, T = D (D + 1) / 2 elements of a lower triangle.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from gampen_ray.data.carried import Carried
from gampen_ray.data.headers import unit_zero_point
from gampen_ray.data.tiles.planning import TILE
from gampen_ray.data.tiles.reading import TILE_COLUMNS
from gampen_ray.errors import UserError
from gampen_ray.inference.flags import Flag, galaxy_flags
from gampen_ray.inference.psf_sizes import PSF_COLUMNS
from gampen_ray.model.targets import TargetSchema
from gampen_ray.plugins import Registry
from gampen_ray.posterior.summary import Column, Statistics, summary_columns

__all__ = [
    "COLUMNS",
    "EFFECTIVE_SHARE",
    "MIXTURE_MEAN",
    "MIXTURE_TRIL",
    "Column",
    "Rows",
    "catalog_columns",
    "named_columns",
    "register_column",
]

MIXTURE_MEAN, MIXTURE_TRIL = "mixture_mean", "mixture_scale_tril"
EFFECTIVE_SHARE = "effective_share"
COLUMNS: Registry[Column] = Registry("columns")
"""Columns registered by user code; `infer` adds those in its field ``columns``."""

Value = Callable[["Rows"], Any]


def register_column(
    name: str, *, unit: str, description: str, type: pa.DataType | None = None, ucd: str = ""
) -> Callable[[Value], Value]:
    """Return a decorator for a function that computes a column's N values from `Rows`.

    Parameters
    ----------
    name, unit, description, type, ucd
        See `Column`; type None: float64.
    """

    def add(value: Value) -> Value:
        COLUMNS.register(name)(Column(name, unit, description, value, type or pa.float64(), ucd))
        return value

    return add


@dataclasses.dataclass(frozen=True)
class Rows(Statistics):
    """Inputs of the columns of N catalogue rows.

    Parameters
    ----------
    mixture, trained
        Calibrated posteriors; see `Statistics`.
    objects
        Table of N rows with ``object_id`` and, if known, ``ra`` and ``dec``, deg, ``centre_offset``, pixels, and under another
        prior ``effective_share``.
    crop_scale_N
        Side of the crop over the side of the network's input.
    image_flags_N
        Flags (`Flag`) of the images.
    """

    objects: pa.Table
    crop_scale_N: np.ndarray
    image_flags_N: np.ndarray

    @functools.cached_property
    def flags_N(self) -> np.ndarray:
        """Flags of the images and the posteriors, which judge the network: by the posteriors under the training's prior."""
        return galaxy_flags(self.image_flags_N, self if self.trained is None else Statistics(self.trained))


def catalog_columns(
    targets: TargetSchema,
    id_type: pa.DataType,
    num_passes: int = 0,
    *,
    mode_centred: bool = False,
    prior: bool = False,
    conditions: Sequence[str] = (),
    extra: Sequence[str] = (),
    carried: Sequence[Carried] = (),
) -> list[Column]:
    """Return the columns of a catalogue, in order.

    Parameters
    ----------
    targets
        Targets of the model.
    id_type
        Type of ``object_id``: int64 or string.
    num_passes
        K to store the whole mixture, 0 to leave it out.
    mode_centred
        Whether to add the mode-centred intervals.
    prior
        Whether the posteriors are under another prior than that of the training, which adds ``effective_share``.
    conditions
        Names of the conditions that the model is given beside the image, which are columns of the objects.
    extra
        Names of columns to add: registered ones, and AB magnitudes of fluxes, ``T_mag``, ``T_mag_lo68`` and ``T_mag_hi68``.
    carried
        Columns of the input, which are columns of the objects.

    Raises
    ------
    UserError
        If a name in ``extra`` is unknown, or one of ``extra`` or ``carried`` belongs to another column.
    """
    flags = ", ".join(f"{flag.value} {flag.name}" for flag in Flag if prior or flag is not Flag.PRIOR_CONFLICT)
    scale = "side of the spatial transformer's crop over the side of the network's input"
    offset = "distance of the galaxy's peak from the middle of the network's input, 0 if it is there; null if unknown"
    columns = [
        Column("object_id", "", "identifier of the galaxy, unique in its dataset", _object_id, id_type, "meta.id;meta.main"),
        _float("ra", "deg", "right ascension (ICRS), null if unknown", "pos.eq.ra;meta.main"),
        _float("dec", "deg", "declination (ICRS), null if unknown", "pos.eq.dec;meta.main"),
        *summary_columns(targets, mode_centred=mode_centred),
        Column("crop_scale", "", scale, lambda rows: np.asarray(rows.crop_scale_N, dtype=np.float64), ucd="arith.factor"),
        _float("centre_offset", "pix", offset, "pos.angDistance"),
        Column("flags", "", f"bit mask: {flags}", lambda rows: rows.flags_N, pa.int64(), "meta.code.qual"),
    ]
    if prior:
        text = "effective number of draws of the posterior under the prior that was asked for, over their number"
        columns.insert(-1, _float(EFFECTIVE_SHARE, "", text, "stat.weight"))
    if num_passes:
        dims = len(targets)
        mean, tril = (pa.list_(pa.float32(), num_passes * size) for size in (dims, dims * (dims + 1) // 2))
        text = f"component means in standardised space, row-major {num_passes} x {dims}"
        columns.append(Column(MIXTURE_MEAN, "", text, lambda rows: _lists(rows.mixture.mean_NKD), mean, "stat.fit.param"))
        text = f"lower Cholesky factors in standardised space, row-major {num_passes} x lower triangle by rows"
        columns.append(Column(MIXTURE_TRIL, "", text, _triangles, tril, "stat.covariance"))
    there = [column.name for column in columns]
    for name in (name for name in conditions if name not in there):
        text = f"{PSF_COLUMNS.get(name, 'condition')}, given to the network beside the image; null if unknown"
        unit = "arcsec" if name.endswith("_arcsec") else ""
        columns.append(Column(name, unit, text, functools.partial(_nullable, name=name), ucd="obs.param"))
    magnitudes = {column.name: column for column in _magnitudes(targets)}
    for name in extra:
        if name in [column.name for column in columns]:
            raise UserError(f"columns: {name!r} is a column of the catalogue already; leave it out, or rename yours")
        columns.append(magnitudes[name] if name in magnitudes else COLUMNS[name])
    for name, unit, description, kind in carried:
        # FITS does not tell small letters from capitals.
        if name.lower() in [column.name.lower() for column in columns]:
            raise UserError(f"columns: {name!r} is a column of the catalogue already; leave it out, or rename yours")
        columns.append(Column(name, unit, description, functools.partial(_as_it_is, name=name), kind))
    return columns


def named_columns(targets: TargetSchema) -> list[str]:
    """Return the names that ``extra`` of `catalog_columns` may have."""
    return [*(column.name for column in _magnitudes(targets)), *COLUMNS.names]


def _magnitudes(targets: TargetSchema) -> Iterator[Column]:
    """Yield the columns of AB magnitudes, of the targets whose unit has a zero point; null where the flux is not positive."""
    for d, target in enumerate(targets):
        zero_point = unit_zero_point(target.unit)
        if zero_point is None:
            continue
        text, levels = (
            f"of the equal-tailed 68.27 % credible interval of the AB magnitude of {target.name}",
            "phot.mag;stat.interval",
        )
        # The brightest end has the largest flux.
        for quantile, suffix, description, ucd in (
            (0, "", f"posterior median of the AB magnitude of {target.name}", "phot.mag;stat.median"),
            (2, "_lo68", f"lower end {text}", f"{levels};stat.min"),
            (1, "_hi68", f"upper end {text}", f"{levels};stat.max"),
        ):
            value = functools.partial(_magnitude, zero_point=zero_point, index=(quantile, d))
            yield Column(f"{target.name}_mag{suffix}", "mag", description, value, ucd=ucd)


def _magnitude(rows: Rows, zero_point: float, index: tuple[int, int]) -> pa.Array:
    flux_N = rows.quantile_NQD[:, *index]
    mag_N = zero_point - 2.5 * np.log10(flux_N, out=np.full(len(flux_N), np.nan), where=flux_N > 0)
    return pa.array(mag_N, mask=~np.isfinite(mag_N))


def _object_id(rows: Rows) -> pa.ChunkedArray:
    ids = rows.objects["object_id"]
    return ids.cast(pa.int64() if pa.types.is_integer(ids.type) else pa.string())


def _float(name: str, unit: str, description: str, ucd: str) -> Column:
    return Column(name, unit, description, functools.partial(_position, name=name), ucd=ucd)


def _as_it_is(rows: Rows, name: str) -> pa.ChunkedArray:
    return rows.objects[name]


def _text(rows: Rows, name: str) -> pa.Array:
    return (
        rows.objects[name].cast(pa.string()) if name in rows.objects.column_names else pa.nulls(len(rows.objects), pa.string())
    )


def _position(rows: Rows, name: str) -> pa.Array:
    return _nullable(rows, name) if name in rows.objects.column_names else pa.nulls(len(rows.objects), pa.float64())


def _nullable(rows: Rows, name: str) -> pa.Array:
    values = rows.objects[name].cast(pa.float64()).to_numpy()
    return pa.array(values, mask=~np.isfinite(values))


def _triangles(rows: Rows) -> pa.FixedSizeListArray:
    row, column = np.tril_indices(len(rows.mixture.targets))
    return _lists(rows.mixture.scale_tril_NKDD[:, :, row, column])


def _lists(values: torch.Tensor) -> pa.FixedSizeListArray:
    flat_NX = values.to(torch.float32).cpu().flatten(1).contiguous().numpy()
    return pa.FixedSizeListArray.from_arrays(pa.array(flat_NX.reshape(-1)), flat_NX.shape[1])


for _name, (_unit, _about) in TILE_COLUMNS.items():
    # Of galaxies from tiles; null for others.
    _kind, _of = (pa.string(), _text) if _name == TILE else (pa.float64(), _position)
    register_column(_name, unit=_unit, description=_about, type=_kind)(functools.partial(_of, name=_name))
