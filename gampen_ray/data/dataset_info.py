"""``dataset.json``, which describes a dataset of cutout shards and marks it complete, and the same in the shards themselves."""

import dataclasses
import json
from typing import Annotated, Any, ClassVar

import pyarrow as pa
import pydantic

from gampen_ray import documents, storage
from gampen_ray.errors import UserError

__all__ = [
    "DATASET_JSON",
    "FORMAT_VERSION",
    "NOISE",
    "DatasetInfo",
    "check_schema",
    "read_dataset_info",
    "schema_info",
    "schema_metadata",
    "write_dataset_info",
]

FORMAT_VERSION = 1
DATASET_JSON = "dataset.json"
"""Name of the file that declares a dataset complete."""
_METADATA_KEY = b"gampen_ray"
# Fields in which a shard's metadata must agree with dataset.json.
_SHARED = ("bands", "cutout_size", "pixel_scale_arcsec", "zero_point_mag", "flux_unit", "noise_planes")
NOISE = "noise_planes"
"""Column with the standard deviation of each pixel, of a dataset that has it; zero where it is unknown."""
_AGAIN = "make the dataset again"
_STRANGER = f"take this file out of the dataset, or {_AGAIN}"
_Count = Annotated[int, pydantic.Field(ge=0)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """Metadata of a dataset, the content of ``dataset.json``.

    Parameters
    ----------
    bands
        Names of the bands, in the order of the image's first axis.
    cutout_size
        Side of the square cutouts, pixels.
    pixel_scale_arcsec
        Pixel scale, arcsec; None: unknown.
    zero_point_mag
        AB magnitude of one unit of flux; None: unknown.
    flux_unit
        Unit of the pixels, empty: unknown.
    survey
        Name of the survey, empty: unknown.
    target_units
        Unit of each target column, by name; empty text for dimensionless.
    num_rows
        Galaxies by split, or under ``"all"`` where there are no splits.
    num_quarantined
        Rows in quarantine.
    fingerprint
        Hash of ids and settings, independent of the number of workers.
    source
        The config that made the dataset.
    noise_planes
        Whether the shards have the noise of each pixel beside the images (`NOISE`).
    format_version
        Version of this layout.
    """

    __pydantic_config__: ClassVar = documents.STRICT

    bands: Annotated[tuple[str, ...], pydantic.Field(min_length=1)]
    cutout_size: Annotated[int, pydantic.Field(ge=1)]
    pixel_scale_arcsec: Annotated[float, pydantic.Field(gt=0)] | None = None
    zero_point_mag: float | None = None
    flux_unit: str = ""
    survey: str = ""
    target_units: dict[str, str] = dataclasses.field(default_factory=dict)
    num_rows: dict[str, _Count] = dataclasses.field(default_factory=dict)
    num_quarantined: _Count = 0
    fingerprint: str = ""
    source: dict[str, Any] = dataclasses.field(default_factory=dict)
    noise_planes: bool = False
    format_version: int = FORMAT_VERSION

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Bands, height and width (C, H, W)."""
        return len(self.bands), self.cutout_size, self.cutout_size

    @property
    def planes_shape(self) -> tuple[int, int, int]:
        """Shape of what is read of a galaxy: the image, and behind it the noise of each band where the dataset has it."""
        return (1 + self.noise_planes) * len(self.bands), self.cutout_size, self.cutout_size

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the target columns."""
        return tuple(self.target_units)


def read_dataset_info(dataset: str) -> DatasetInfo:
    """Read ``dataset.json``.

    Raises
    ------
    UserError
        If there is no complete dataset at the URI, or it was written by a newer version.
    """
    uri = storage.join(dataset, DATASET_JSON)
    if not storage.exists(uri):
        found = "is not complete" if storage.exists(dataset) else "does not exist"
        raise UserError(
            f"dataset {dataset} {found}: no {DATASET_JSON}; make it with `gampen-ray ingest` or `gampen-ray simulate`"
        )
    return _parsed(uri, storage.read_bytes(uri), _AGAIN)


def write_dataset_info(dataset: str, info: DatasetInfo) -> None:
    """Write ``dataset.json``, the last step of making a dataset."""
    storage.write_json(storage.join(dataset, DATASET_JSON), _described(info))


def schema_metadata(info: DatasetInfo) -> dict[bytes, bytes]:
    """Return the metadata of the schema of a shard: what holds for each of the dataset's."""
    skipped = ("num_rows", "num_quarantined", "source")
    return {_METADATA_KEY: json.dumps({k: v for k, v in _described(info).items() if k not in skipped}).encode()}


def _described(info: DatasetInfo) -> dict[str, Any]:
    # Shards without noise planes are byte for byte those of earlier versions.
    return {k: v for k, v in dataclasses.asdict(info).items() if k != "noise_planes" or v}


def schema_info(uri: str, schema: pa.Schema) -> DatasetInfo | None:
    """Return what a shard's schema says of its dataset; None: nothing.

    Raises
    ------
    UserError
        If its metadata are damaged, or of a newer version.
    """
    found = (schema.metadata or {}).get(_METADATA_KEY)
    return None if found is None else _parsed(uri, found, _STRANGER)


def check_schema(uri: str, schema: pa.Schema, info: DatasetInfo) -> None:
    """Raise a UserError if a shard does not belong to a dataset, by its columns and metadata."""
    tensors = ("image", NOISE) if info.noise_planes else ("image",)
    for name in ("object_id", *tensors, *info.target_units):
        if (count := schema.names.count(name)) != 1:
            there = f"{count} columns are named {name!r}" if count else f"no column {name!r}"
            raise UserError(f"{uri}: {there}; found: {', '.join(schema.names)}")
    types = {name: schema.field(name).type for name in ("object_id", *tensors, *info.target_units)}
    for name in tensors:
        image = types[name]
        plain = isinstance(image, pa.FixedShapeTensorType) and (image.permutation or [0, 1, 2]) == [0, 1, 2]
        kind = (image.value_type, tuple(image.shape)) if plain else (image, ())
        if kind != (pa.float32(), info.image_shape):
            there, shape = f"{kind[0]} {list(kind[1])}", list(info.image_shape)
            raise UserError(
                f"{uri}: column {name} is {there}, but {DATASET_JSON} says float {shape} (bands, size, size); {_STRANGER}"
            )
    if types["object_id"] not in (pa.int64(), pa.string()):
        raise UserError(f"{uri}: column object_id is {types['object_id']}, neither int64 nor string; {_STRANGER}")
    for name in info.target_units:
        if types[name] != pa.float64():
            raise UserError(f"{uri}: target column {name} is {types[name]}, not float64 (double); {_STRANGER}")
    found = schema_info(uri, schema)
    for name in _SHARED if found else ():
        there, wanted = getattr(found, name), getattr(info, name)
        if there != wanted:
            raise UserError(f"{uri}: {name} is {there!r}, but {DATASET_JSON} says {wanted!r}; {_STRANGER}")


def _parsed(uri: str, data: bytes, remedy: str) -> DatasetInfo:
    version = documents.parsed(documents.Versioned, data, f"{uri}: not a dataset of gampen_ray", remedy).format_version
    if version > FORMAT_VERSION:
        raise UserError(
            f"{uri}: format version {version}, this gampen_ray reads up to {FORMAT_VERSION}; install a newer gampen_ray"
        )
    return documents.parsed(DatasetInfo, data, uri, remedy)
