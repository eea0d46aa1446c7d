"""``manifest.json`` of a catalogue, which is written last: what was predicted, with what, and how fast."""

import dataclasses
from typing import Annotated, Any, ClassVar, Literal

import pydantic

from gampen_ray import documents, storage
from gampen_ray.data.dataset_info import DatasetInfo
from gampen_ray.errors import UserError
from gampen_ray.inference.bundle_files import Histograms

__all__ = ["MANIFEST", "prediction_options", "read_manifest"]

MANIFEST = "manifest.json"
_Count = Annotated[int, pydantic.Field(ge=0)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Inference:
    """What is used again of the config of `infer`."""

    bundle: str
    dataset: str
    split: Literal["", "train", "val", "test"]
    num_passes: Annotated[int, pydantic.Field(ge=1)]
    seed: _Count
    precision: Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Inputs:
    bundle: str
    dataset: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Rates:
    galaxies_per_second: Annotated[float, pydantic.Field(gt=0)]
    workers: _Count


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Provenance:
    git_revision: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Manifest:
    __pydantic_config__: ClassVar = documents.LENIENT

    num_galaxies: _Count
    num_quarantined: _Count
    config: _Inference
    inputs: _Inputs
    rates: _Rates | Annotated[dict[str, Any], pydantic.Field(max_length=0)]
    provenance: _Provenance
    prior: Histograms | None = None


def read_manifest(output: str) -> dict[str, Any]:
    """Return the manifest of a finished catalogue.

    Raises
    ------
    UserError
        If there is none, or it is damaged.
    """
    if not storage.exists(storage.join(output, MANIFEST)):
        raise UserError(f"catalog: {output} has no {MANIFEST}; give the output folder of a finished `infer`")
    kind = Annotated[dict[str, Any], documents.holds(_Manifest)]
    return documents.read(kind, storage.join(output, MANIFEST), "restore the file, or run infer into a new folder")


def prediction_options(manifest: dict[str, Any], info: DatasetInfo) -> dict[str, Any]:
    """Return what made the predictions of a catalogue from its dataset: arguments of `Predictor` and `Bundle.predict`."""
    inference = manifest["config"]
    return {
        "num_passes": inference["num_passes"],
        "seed": inference["seed"],
        "precision": inference["precision"],
        "zero_point_mag": info.zero_point_mag,
        "pixel_scale_arcsec": info.pixel_scale_arcsec,
    }
