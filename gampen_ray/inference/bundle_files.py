"""The files of a bundle, checked before they are used: ``bundle.json``, the tensors, and the checksums of both."""

import dataclasses
import hashlib
from typing import Annotated, Any, ClassVar

import pydantic
import safetensors.torch
import torch
from torch import nn

from gampen_ray import documents
from gampen_ray.errors import UserError
from gampen_ray.model.images import ImagePreprocessing
from gampen_ray.model.targets import Target
from gampen_ray.posterior.calibration import Coverage

__all__ = [
    "CHECKSUMS",
    "CONDITIONS",
    "DESCRIPTION",
    "NOVELTY",
    "REMEDY",
    "WEIGHTS",
    "Description",
    "checksums",
    "tensors",
    "verify",
    "weights",
]

DESCRIPTION, WEIGHTS, CHECKSUMS = "bundle.json", "weights.safetensors", "SHA256SUMS"
NOVELTY, CONDITIONS = "novelty.safetensors", "conditions.safetensors"
REMEDY = "copy the bundle again"
_Table = Annotated[list[list[float]], pydantic.Field(min_length=1)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Optimizer:
    epochs: int
    numbers_epochs: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Calibrated:
    num_passes: Annotated[int, pydantic.Field(ge=1, le=1_000_000)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Trained:
    seed: int
    optimizer: _Optimizer
    calibration: _Calibrated | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Dataset:
    survey: str = ""
    num_rows: dict[str, int] = dataclasses.field(default_factory=dict)
    made_by: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Imported:
    model: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Origin:
    uri: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Provenance:
    """What the card and the report show of a bundle's provenance."""

    __pydantic_config__: ClassVar = documents.LENIENT

    date: str = ""
    gampen_ray: str = ""
    git_revision: str | None = None
    dataset: _Dataset | None = None
    train: _Trained | Annotated[dict[str, Any], pydantic.Field(max_length=0)] | None = None
    imported: _Imported | None = None
    fine_tuned_from: _Origin | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Seeds:
    num_passes: int
    verdict: str
    worst: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Crop:
    dead_fraction: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Verdict:
    verdict: str
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Metrics:
    """What the card and the report show of a bundle's metrics."""

    __pydantic_config__: ClassVar = documents.LENIENT

    val_loss: float | None = None
    coverage: dict[str, Annotated[tuple[Coverage, ...], pydantic.Field(min_length=1)]] | None = None
    seeds: _Seeds | None = None
    crop: _Crop | None = None
    verdicts: dict[str, _Verdict] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.coverage is not None and not (self.coverage and self.seeds):
            raise ValueError("there is coverage without its values, or without seeds")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Threshold:
    threshold: Annotated[float, pydantic.Field(gt=0)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Knots:
    std: _Table
    scale: _Table
    tails: float = 1.0
    correlation: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Ends:
    low: _Table
    high: _Table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Histograms:
    """A prior as it is stored; see `gampen_ray.posterior.prior.Prior.to_dict`."""

    edges: _Table
    masses: _Table
    correlation: _Table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """The content of ``bundle.json``; see `gampen_ray.inference.bundle.Bundle`."""

    __pydantic_config__: ClassVar = documents.STRICT

    format_version: int
    network: dict[str, Any]
    targets: tuple[Target, ...]
    images: ImagePreprocessing
    calibration: _Knots
    novelty: _Threshold | None = None
    ranges: _Ends | None = None
    prior: Histograms | None = None
    metrics: Annotated[dict[str, Any], documents.holds(_Metrics)]
    provenance: Annotated[dict[str, Any], documents.holds(_Provenance)]


def checksums(files: dict[str, bytes]) -> bytes:
    """Return the content of the file of checksums."""
    return "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items()).encode()


def verify(uri: str, files: dict[str, bytes]) -> None:
    """Raise a UserError for the first file that does not match its checksum."""
    lines = files[CHECKSUMS].decode(errors="replace").splitlines()
    expected = dict(line.split("  ", 1)[::-1] for line in lines if "  " in line)
    for name, data in files.items():
        if name != CHECKSUMS and expected.get(name) != hashlib.sha256(data).hexdigest():
            raise UserError(f"bundle: {uri}/{name} does not match its checksum in {CHECKSUMS}: it is damaged; {REMEDY}")


def tensors(data: bytes, where: str) -> dict[str, torch.Tensor]:
    """Return the content of a file of tensors; a UserError if it is damaged."""
    try:
        return safetensors.torch.load(data)
    except Exception as error:
        # Its own error for most damage; torch's for some.
        raise UserError(f"{where}: {' '.join(str(error).split())}; {REMEDY}") from None


def weights(data: bytes, where: str, network: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights of a network.

    Raises
    ------
    UserError
        If the file is damaged, or one is missing, unknown, of another type or shape, or not finite.
    """
    found, wanted = tensors(data, where), network.state_dict()
    for name in {**wanted, **found}:
        if name not in found or name not in wanted:
            fault = "is missing" if name in wanted else f"is no weight of the network in {DESCRIPTION}"
        elif (there := _kind(found[name])) != (ours := _kind(wanted[name])):
            fault = f"is {there}, not {ours} as the network in {DESCRIPTION} has it"
        elif not found[name].sum(dtype=torch.float32).isfinite() or (name.endswith("running_var") and (found[name] < 0).any()):
            fault = "has values that no weight has"
        else:
            continue
        raise UserError(f"{where}: {name} {fault}; {REMEDY}")
    return found


def _kind(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
