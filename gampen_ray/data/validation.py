"""Find the rows of a dataset that cannot be used, with reasons."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from gampen_ray import storage
from gampen_ray.data import shards
from gampen_ray.errors import UserError

__all__ = ["validate_dataset", "validate_rows"]

pc: Any = pyarrow.compute


def validate_rows(columns: Mapping[str, Any], targets: Sequence[str] = ()) -> np.ndarray:
    """Return why each row cannot be used, empty text for a good row.

    Parameters
    ----------
    columns
        ``object_id`` (N), ``image`` (N x C x H x W) and the targets (N), as NumPy or Arrow arrays; ``object_id`` and ``image``
        are optional.
    targets
        Columns whose values must be present and finite.

    Returns
    -------
    np.ndarray
        N texts, each the first fault of a row in this order: missing id, duplicate of an earlier id, non-finite pixels,
        constant image, missing target, non-finite target.
    """
    missing = [name for name in targets if name not in columns]
    if missing:
        raise UserError(f"no target column {missing[0]!r}; found: {', '.join(columns)}")
    faults: list[tuple[np.ndarray, Any]] = []
    if "object_id" in columns:
        ids = shards.as_array(columns["object_id"])
        faults.append((_null(ids), "object_id is missing"))
        faults.append((_repeated(ids), "duplicate object_id: an earlier row has it"))
    if "image" in columns:
        image_NCHW = columns["image"]
        bad_N = (~np.isfinite(image_NCHW)).sum(axis=(1, 2, 3))
        faults.append((bad_N > 0, [f"{bad:,} of {image_NCHW[0].size:,} pixels are not finite" for bad in bad_N]))
        low_N = image_NCHW.min(axis=(1, 2, 3))
        faults.append((low_N == image_NCHW.max(axis=(1, 2, 3)), [f"all pixels have the same value {low:g}" for low in low_N]))
    for name in targets:
        values = shards.as_array(columns[name])
        null = _null(values)
        faults.append((null, f"target {name} is missing"))
        numbers = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
        faults.append((~null & ~np.isfinite(numbers), f"target {name} is not finite"))
    count = len(faults[0][0]) if faults else 0
    reasons = np.full(count, "", dtype=object)
    for fault, text in reversed(faults):
        reasons[fault] = text if isinstance(text, str) else np.asarray(text, dtype=object)[fault]
    return reasons


def validate_dataset(dataset: str) -> list[tuple[str, str, str]]:
    """Check all rows of a dataset, and the checksums of its shards.

    Returns
    -------
    list of (object_id, source, reason)
        The rows that cannot be used; ``source`` is the shard.

    Raises
    ------
    UserError
        If the dataset is incomplete, damaged or of a newer version, or its row counts differ from ``dataset.json``.
    """
    info = shards.read_dataset_info(dataset)
    root = storage.absolute(dataset)
    bad: list[tuple[str, str, str]] = []
    seen: list[pa.Array] = []
    counts = dict.fromkeys(info.num_rows, 0)
    for uri in shards.shard_uris(dataset):
        table = shards.read_shard(uri, info=info)
        columns = {name: table.column(name) for name in table.column_names} | {"image": shards.images(table.select(["image"]))}
        reasons = validate_rows({name: columns[name] for name in ("image", *info.target_units)}, info.targets)
        ids = table.column("object_id").combine_chunks()
        seen.append(ids.cast(pa.string()))
        bad += [(str(ids[row]), uri, reasons[row]) for row in np.flatnonzero(reasons != "")]
        split = shards.split_of(root, uri)
        counts[split] = counts.get(split, 0) + table.num_rows
    if counts != info.num_rows:
        raise UserError(f"dataset {dataset} has the rows {counts}, but its dataset.json says {info.num_rows}; make it again")
    ids = pa.concat_arrays(seen)
    bad += [(str(ids[row]), dataset, "duplicate object_id: an earlier row has it") for row in np.flatnonzero(_repeated(ids))]
    return bad


def _null(values: pa.Array) -> np.ndarray:
    null = values.is_null()
    if pa.types.is_string(values.type):
        null = pc.or_(null, pc.equal(values, "").fill_null(False))
    return null.to_numpy(zero_copy_only=False)


def _repeated(values: pa.Array) -> np.ndarray:
    # True for every row that repeats the value of an earlier row; nulls do not count.
    encoded = values.dictionary_encode()
    codes = encoded.indices.fill_null(len(encoded.dictionary)).to_numpy(zero_copy_only=False)
    first = np.full(len(encoded.dictionary) + 1, len(codes))
    np.minimum.at(first, codes, np.arange(len(codes)))
    return (np.arange(len(codes)) > first[codes]) & ~_null(values)
