"""The catalogue contract: columns, units and descriptions of the published table, readable by pyarrow, astropy and HATS tools.

Shape legend: N galaxies, K passes, D targets, T = D (D + 1) / 2 elements of a lower triangle.
"""

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from astropy.table import Column as AstropyColumn
from astropy.table import Table
from astropy.table.meta import get_yaml_from_table

from gampen_ray import storage
from gampen_ray.inference.flags import Flag, posterior_flags
from gampen_ray.model.targets import TargetSchema
from gampen_ray.posterior.mixture import Mixture
from gampen_ray.posterior.summary import Column, field, summarise, summary_columns

CATALOG, QUARANTINE, MANIFEST = "catalog", "quarantine", "manifest.json"
"""What the output folder of an inference holds."""

_MIXTURE_MEAN, _MIXTURE_TRIL = "mixture_mean", "mixture_scale_tril"


@functools.cache
def catalog_schema(
    targets: TargetSchema, id_type: pa.DataType, num_passes: int = 0, *, mode_centred: bool = False
) -> pa.Schema:
    """Return the catalogue's schema; every field's metadata holds its ``unit`` and ``description``.

    The schema's metadata holds the same under ``table_meta_yaml``, from which ``astropy.table.Table.read`` takes them.

    Parameters
    ----------
    targets
        Targets of the model.
    id_type
        Type of ``object_id``: int64 or string.
    num_passes
        K if the whole mixture is stored, 0 if not.
    mode_centred
        Whether the mode-centred intervals are there too.
    """
    flags = ", ".join(f"{flag.value} {flag.name}" for flag in Flag)
    columns = [
        (Column("object_id", "", "identifier of the galaxy, unique in its dataset"), id_type),
        (Column("ra", "deg", "right ascension (ICRS), null if unknown"), pa.float64()),
        (Column("dec", "deg", "declination (ICRS), null if unknown"), pa.float64()),
        *((column, pa.float64()) for column in summary_columns(targets, mode_centred=mode_centred)),
        (Column("crop_scale", "", "side of the spatial transformer's crop over the side of the network's input"), pa.float64()),
        (Column("flags", "", f"bit mask: {flags}"), pa.int64()),
    ]
    if num_passes:
        dims = len(targets)
        sizes = {_MIXTURE_MEAN: num_passes * dims, _MIXTURE_TRIL: num_passes * dims * (dims + 1) // 2}
        texts = {
            _MIXTURE_MEAN: f"component means in standardised space, row-major {num_passes} x {dims}",
            _MIXTURE_TRIL: f"lower Cholesky factors in standardised space, row-major {num_passes} x lower triangle by rows",
        }
        columns += [(Column(name, "", texts[name]), pa.list_(pa.float32(), size)) for name, size in sizes.items()]
    return described([field(column, kind) for column, kind in columns])


def described(fields: Iterable[pa.Field]) -> pa.Schema:
    """Return a schema whose metadata repeats the fields' units and descriptions in astropy's form (astropy.io.misc.parquet)."""
    empty = Table()
    for item in fields:
        # The element type of a fixed-size list; astropy reads the types themselves from Parquet's schema.
        kind = getattr(item.type, "value_type", item.type)
        dtype = "U1" if kind == pa.string() else kind.to_pandas_dtype()
        unit, description = (item.metadata[key].decode() for key in (b"unit", b"description"))
        empty[item.name] = AstropyColumn(np.zeros(0, dtype), unit=unit or None, description=description)
    return pa.schema(fields, metadata={"table_meta_yaml": "\n".join(get_yaml_from_table(empty))})


def catalog_table(
    objects: pa.Table,
    mixture: Mixture,
    crop_scale_N: np.ndarray,
    flags_N: np.ndarray,
    *,
    store_mixture: bool,
    mode_centred: bool = False,
) -> pa.Table:
    """Return the catalogue rows of N galaxies.

    Parameters
    ----------
    objects
        Table of N rows with ``object_id`` (integer or string) and, if known, ``ra`` and ``dec``, deg; other columns are
        ignored.
    mixture
        Calibrated posteriors of these galaxies.
    crop_scale_N
        Side of the crop over the side of the input.
    flags_N
        Sums of the `Flag` values of the images; those of the posteriors are added.
    store_mixture
        Whether to store the mixture too, rounded to float32; the summaries are those of the mixture before rounding.
    mode_centred
        Whether to add the mode-centred intervals.

    Raises
    ------
    ValueError
        If the arguments differ in length.
    """
    lengths = {"objects": len(objects), "mixture": len(mixture), "crop_scale_N": len(crop_scale_N), "flags_N": len(flags_N)}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"a catalogue needs one row a galaxy everywhere, not {lengths}")
    ids = objects["object_id"]
    id_type = pa.int64() if pa.types.is_integer(ids.type) else pa.string()
    unknown = pa.nulls(len(objects), pa.float64())
    summary = summarise(mixture, mode_centred=mode_centred)
    flags_N = np.asarray(flags_N, dtype=np.int64) | posterior_flags(summary, mixture.targets)
    columns = {
        "object_id": ids.cast(id_type),
        **{name: _null_if_not_finite(objects[name]) if name in objects.column_names else unknown for name in ("ra", "dec")},
        **summary,
        "crop_scale": np.asarray(crop_scale_N, dtype=np.float64),
        "flags": flags_N,
    }
    if store_mixture:
        rows, cols = np.tril_indices(len(mixture.targets))
        columns[_MIXTURE_MEAN] = _lists(mixture.mean_NKD)
        columns[_MIXTURE_TRIL] = _lists(mixture.scale_tril_NKDD[:, :, rows, cols])
    num_passes = mixture.num_passes if store_mixture else 0
    schema = catalog_schema(mixture.targets, id_type, num_passes, mode_centred=mode_centred)
    return pa.table(list(columns.values()), schema=schema)


def part_content(table: pa.Table) -> pa.Buffer:
    """Return the content of one Parquet file of a catalogue.

    Floats are stored byte by byte before compression (BYTE_STREAM_SPLIT), not in dictionaries: their values never repeat, and a
    stored mixture takes two thirds of the space.
    """
    kinds = {item.name: item.type for item in table.schema}
    lists = {name: f"{name}.list.element" for name, kind in kinds.items() if pa.types.is_fixed_size_list(kind)}
    floats = [lists.get(name, name) for name, kind in kinds.items() if name in lists or pa.types.is_floating(kind)]
    sink = pa.BufferOutputStream()
    encoding: dict[str, Any] = {"use_dictionary": False, "use_byte_stream_split": floats}
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True, **encoding)
    return sink.getvalue()


def catalog_parts(output: str) -> Iterator[pa.Table]:
    """Yield the tables of a catalogue's files, in order; ``output`` is the folder that `infer` made."""
    for uri in storage.list_files(storage.join(output, CATALOG), ".parquet"):
        with storage.open_input(uri) as source:
            yield pq.read_table(source)


def mixture_from_catalog(table: Any, targets: TargetSchema) -> Mixture:
    """Return the posteriors stored in a catalogue (float32 accuracy), whichever program read it.

    Parameters
    ----------
    table
        Rows of the catalogue as a pyarrow, pandas or astropy table, or any mapping from column name to values: of DuckDB, what
        ``to_arrow_table()``, ``df()`` and ``fetchnumpy()`` give. ``mixture_mean`` and ``mixture_scale_tril`` must be there.
    targets
        Targets of the model that made the catalogue: ``load_bundle(uri).targets``.

    Raises
    ------
    ValueError
        If the catalogue holds no mixtures, rows without one, or mixtures of another number of targets.
    """
    dims = len(targets)
    triangle = dims * (dims + 1) // 2
    mean, tril = _matrix(table, _MIXTURE_MEAN, dims), _matrix(table, _MIXTURE_TRIL, triangle)
    passes = mean.shape[1] // dims
    if (mean.shape[1], tril.shape[1]) != (passes * dims, passes * triangle):
        raise ValueError(
            f"stored means have {mean.shape[1]} and factors {tril.shape[1]} elements; not mixtures of {dims} targets"
        )
    rows, cols = np.tril_indices(dims)
    scale_tril_NKDD = np.zeros((len(mean), passes, dims, dims))
    scale_tril_NKDD[:, :, rows, cols] = tril.reshape(len(mean), passes, triangle)
    mean_NKD = mean.reshape(len(mean), passes, dims)
    return Mixture(torch.from_numpy(mean_NKD), torch.from_numpy(scale_tril_NKDD), targets)


def _null_if_not_finite(column: pa.ChunkedArray) -> pa.Array:
    values = column.cast(pa.float64()).to_numpy()
    return pa.array(values, mask=~np.isfinite(values))


def _lists(values: torch.Tensor) -> pa.FixedSizeListArray:
    flat_NX = values.to(torch.float32).cpu().flatten(1).contiguous().numpy()
    return pa.FixedSizeListArray.from_arrays(pa.array(flat_NX.reshape(-1)), flat_NX.shape[1])


def _matrix(table: Any, name: str, component: int) -> np.ndarray:
    """Return a column of equally long lists as a float64 matrix; an empty one may not know their length: one ``component``."""
    try:
        column = table[name]
    except KeyError:
        raise ValueError(f"the table has no column {name}: run infer with --posterior mixture") from None
    if np.ndim(column) == 2:
        return np.asarray(column, dtype=np.float64)
    lists = column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([pa.array(column)])
    if lists.null_count:
        raise ValueError(f"{name}: {lists.null_count} of {len(lists)} rows hold no mixture; leave these rows out")
    if len(lists) == 0:
        return np.zeros((0, getattr(lists.type, "list_size", component)))
    return lists.combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.float64).reshape(len(lists), -1)
