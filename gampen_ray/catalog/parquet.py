"""The catalogue as Parquet, with units, descriptions and provenance, readable by pyarrow, astropy, TOPCAT and HATS tools.

Shape legend: N galaxies, K passes, D targets.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from astropy.table import Column as AstropyColumn
from astropy.table import Table
from astropy.table.meta import get_yaml_from_table

from gampen_ray import storage
from gampen_ray.catalog.columns import MIXTURE_MEAN, MIXTURE_TRIL, Rows, catalog_columns
from gampen_ray.catalog.votable import TITLE, parquet_metadata
from gampen_ray.data.carried import Carried
from gampen_ray.model.targets import TargetSchema
from gampen_ray.posterior.mixture import Mixture

CATALOG, QUARANTINE = "catalog", "quarantine"
"""Contents of the output folder of an inference."""
_PROVENANCE = "gampen_ray."


@functools.cache
def catalog_schema(
    targets: TargetSchema,
    id_type: pa.DataType,
    num_passes: int = 0,
    *,
    mode_centred: bool = False,
    prior: bool = False,
    conditions: tuple[str, ...] = (),
    extra: tuple[str, ...] = (),
    carried: tuple[Carried, ...] = (),
    provenance: tuple[tuple[str, str], ...] = (),
) -> pa.Schema:
    """Return the catalogue's schema; every field's metadata holds its ``unit``, ``description`` and ``ucd``.

    The schema's metadata repeats them under ``table_meta_yaml`` for ``astropy.table.Table.read``, and holds what made the
    catalogue, names and values, each under ``gampen_ray.NAME``. Other parameters are those of `catalog_columns`.
    """
    which: dict[str, Any] = {"mode_centred": mode_centred, "prior": prior, "conditions": conditions}
    columns = catalog_columns(targets, id_type, num_passes, **which, extra=extra, carried=carried)
    return described([column.field for column in columns], dict(provenance))


def described(fields: Iterable[pa.Field], provenance: Mapping[str, str]) -> pa.Schema:
    """Return a schema whose metadata repeats that of the fields in astropy's form (astropy.io.misc.parquet): see above."""
    empty = Table(meta={"title": TITLE, **provenance})
    for item in fields:
        # The element type of a fixed-size list; astropy reads the types themselves from Parquet's schema.
        kind = getattr(item.type, "value_type", item.type)
        dtype = "U1" if kind == pa.string() else kind.to_pandas_dtype()
        unit, description, ucd = (item.metadata[key].decode() for key in (b"unit", b"description", b"ucd"))
        meta = {"ucd": ucd} if ucd else None
        empty[item.name] = AstropyColumn(np.zeros(0, dtype), unit=unit or None, description=description, meta=meta)
    made = {f"{_PROVENANCE}{name}": value for name, value in provenance.items()}
    return pa.schema(fields, metadata={"table_meta_yaml": "\n".join(get_yaml_from_table(empty)), **made})


def provenance_of(schema: pa.Schema) -> dict[str, str]:
    """Return what made a catalogue, by name, from the schema of one of its files."""
    metadata = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
    return {key.removeprefix(_PROVENANCE): value for key, value in metadata.items() if key.startswith(_PROVENANCE)}


def catalog_table(
    objects: pa.Table,
    mixture: Mixture,
    crop_scale_N: np.ndarray,
    flags_N: np.ndarray,
    *,
    store_mixture: bool,
    trained: Mixture | None = None,
    mode_centred: bool = False,
    conditions: tuple[str, ...] = (),
    extra: tuple[str, ...] = (),
    carried: tuple[Carried, ...] = (),
    provenance: tuple[tuple[str, str], ...] = (),
) -> pa.Table:
    """Return the catalogue rows of N galaxies.

    Parameters
    ----------
    objects
        Table of N rows with ``object_id`` (integer or string) and, if known, ``ra`` and ``dec``, deg; registered columns may
        use others.
    mixture
        Calibrated posteriors of these galaxies.
    crop_scale_N
        Side of the crop over the side of the input.
    flags_N
        Flags (`Flag`) of the images; those of the posteriors are added.
    store_mixture
        Whether to store the mixture too, rounded to float32; summaries are computed before rounding.
    trained
        The posteriors under the prior of the training, where ``mixture`` has another; the objects then have
        ``effective_share``.
    mode_centred
        Whether to add the mode-centred intervals.
    conditions
        Names of the conditions that the model is given, columns of the objects.
    extra
        Names of registered columns to add.
    carried
        Columns of the objects to keep.
    provenance
        What made the catalogue, names and values.

    Raises
    ------
    ValueError
        If the arguments differ in length.
    """
    lengths = {"objects": len(objects), "mixture": len(mixture), "crop_scale_N": len(crop_scale_N), "flags_N": len(flags_N)}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"arguments of a catalogue need one row per galaxy; their lengths are {lengths}")
    id_type = pa.int64() if pa.types.is_integer(objects["object_id"].type) else pa.string()
    which: dict[str, Any] = {
        "num_passes": mixture.num_passes if store_mixture else 0,
        "mode_centred": mode_centred,
        "prior": trained is not None,
        "conditions": tuple(conditions),
        "extra": tuple(extra),
        "carried": carried,
    }
    rows = Rows(mixture, objects, crop_scale_N, flags_N, trained=trained)
    values = {column.name: column.value(rows) for column in catalog_columns(mixture.targets, id_type, **which)}
    return pa.table(values, schema=catalog_schema(mixture.targets, id_type, **which, provenance=provenance))


def part_content(table: pa.Table) -> pa.Buffer:
    """Return the content of one Parquet file of a catalogue, with the head of a VOTable in its metadata.

    Floats, whose values rarely repeat, are encoded as BYTE_STREAM_SPLIT instead of dictionaries: a stored mixture takes two
    thirds of the space.
    """
    kinds = {item.name: item.type for item in table.schema}
    lists = {name: f"{name}.list.element" for name, kind in kinds.items() if pa.types.is_fixed_size_list(kind)}
    floats = [lists.get(name, name) for name, kind in kinds.items() if name in lists or pa.types.is_floating(kind)]
    sink = pa.BufferOutputStream()
    encoding: dict[str, Any] = {"use_dictionary": False, "use_byte_stream_split": floats}
    texts = [name for name, kind in kinds.items() if pa.types.is_string(kind)]
    lengths = {name: max([1, *map(len, table[name].drop_null().to_pylist())]) for name in texts}
    # As astropy writes it, and needs it for texts.
    known = {f"table::len::{name}": str(length) for name, length in lengths.items()}
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), **known})
    with pq.ParquetWriter(sink, table.schema, compression="zstd", write_page_checksum=True, **encoding) as writer:
        writer.write_table(table)
        # Not in the schema's metadata, which Arrow stores twice.
        writer.add_key_value_metadata(parquet_metadata(table.schema, provenance_of(table.schema), lengths))
    return sink.getvalue()


def catalog_parts(output: str, columns: Sequence[str] | None = None, num_rows: int | None = None) -> Iterator[pa.Table]:
    """Yield the rows of a catalogue, in order; ``output`` is the folder that `infer` made.

    Parameters
    ----------
    columns
        To read; None: all.
    num_rows
        Rows of a table at most; None: a table is a file.
    """
    for uri in storage.list_files(storage.join(output, CATALOG), ".parquet"):
        with storage.open_input(uri) as source:
            if num_rows is None:
                yield pq.read_table(source, columns=columns)
            else:
                for batch in pq.ParquetFile(source).iter_batches(num_rows, columns=columns):
                    yield pa.Table.from_batches([batch])


def catalog_names(output: str) -> list[str]:
    """Return the names of the columns of a catalogue, those of its first file."""
    with storage.open_input(storage.list_files(storage.join(output, CATALOG), ".parquet")[0]) as source:
        return pq.read_schema(source).names


def mixture_from_catalog(table: Any, targets: TargetSchema) -> Mixture:
    """Return the posteriors stored in a catalogue (float32 accuracy), whichever program read it.

    Parameters
    ----------
    table
        Rows of the catalogue as a pyarrow, pandas or astropy table, or any mapping from column name to values, such as the
        results of DuckDB's ``to_arrow_table()``, ``df()`` and ``fetchnumpy()``; with ``mixture_mean`` and
        ``mixture_scale_tril``.
    targets
        Targets of the model that made the catalogue: ``load_bundle(uri).targets``.

    Raises
    ------
    ValueError
        If the catalogue holds no mixtures, rows without one, or mixtures of another number of targets.
    """
    dims = len(targets)
    triangle = dims * (dims + 1) // 2
    mean, tril = _matrix(table, MIXTURE_MEAN, dims), _matrix(table, MIXTURE_TRIL, triangle)
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


def _matrix(table: Any, name: str, component: int) -> np.ndarray:
    """Return a column of equally long lists as a float64 matrix; lists of unknown length have that of one ``component``."""
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
