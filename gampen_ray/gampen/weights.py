"""Conversion of published GaMPEN networks: state dict to network, and label scaler to target schema.

The state dicts are those of ``vgg16_w_stn_oc_drp``, ``_at_drp``, ``_drp``, ``_drp_2``, ``vgg16_w_stn`` and ``vgg16``. They
are recognised by their keys and shapes.
"""

import io
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from scipy.special import expit
from torch import nn

from gampen_ray.config import NetworkConfig, gampen_vgg16
from gampen_ray.config.base import build, to_dict
from gampen_ray.config.parts import MOST_CHANNELS
from gampen_ray.data import catalogs
from gampen_ray.data.gampen_labels import Label, logit_limits
from gampen_ray.errors import UserError
from gampen_ray.model.likelihoods import LIKELIHOODS
from gampen_ray.model.meta import without_weights
from gampen_ray.model.network import Network
from gampen_ray.model.spatial_transformer import NUM_PARAMETERS
from gampen_ray.model.targets import Target, TargetSchema

__all__ = ["label_schema", "network_from_state_dict", "read_state_dict", "schema_of_table"]

# Sides among which a wrong cutout size is explained; no cutout is larger.
_SIDES = range(33, 1025)


def read_state_dict(data: bytes, uri: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a file written by ``torch.save``, without the prefix ``module.`` that DataParallel adds.

    Nothing pickled is executed.

    Parameters
    ----------
    data
        Content of the file.
    uri
        Its name, for messages.

    Raises
    ------
    UserError
        If the file is damaged, or anything but a state dict.
    """
    try:
        _refuse_compressed(data)
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception:
        # A damaged file can raise any exception; torch's own message advises unpickling the file.
        raise UserError(
            f"model: {uri} is not a state dict; give the undamaged file that torch.save(model.state_dict(), ...) wrote"
        ) from None
    if not isinstance(content, dict) or not content or not all(isinstance(v, torch.Tensor) for v in content.values()):
        raise UserError(f"model: {uri} holds {type(content).__name__}, not a state dict; give the file of the weights alone")
    for key, value in content.items():
        if value.layout != torch.strided or not value.is_floating_point():
            raise UserError(
                f"model: {uri} holds {key!r} of {value.dtype}, no plain floating-point numbers; give the undamaged file"
            )
    return {str(key).removeprefix("module."): value for key, value in content.items()}


def _refuse_compressed(data: bytes) -> None:
    # torch.save compresses nothing; what is compressed may be of any size.
    if data.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if any(part.compress_type != zipfile.ZIP_STORED or part.file_size > len(data) for part in archive.infolist()):
                raise ValueError("it is compressed")


def network_from_state_dict(
    state: Mapping[str, torch.Tensor], *, num_targets: int, cutout_size: int, dropout_rate: float
) -> tuple[Network, NetworkConfig, int]:
    """Return the network with these weights in evaluation mode, its config and its number of input channels.

    Parameters
    ----------
    state
        As of `read_state_dict`.
    num_targets
        Number of targets; together with the width of the output layer it determines the likelihood.
    cutout_size
        Side of the network's input, pixels.
    dropout_rate
        Rate of every dropout layer.

    Raises
    ------
    UserError
        Naming the first key that is missing, unknown, or of the wrong shape.
    """
    prefix = "vgg." if any(key.startswith(("vgg.", "localization.")) for key in state) else ""
    config = _network_config(state, prefix, num_targets, dropout_rate)
    channels = _length(state, f"{prefix}features.0.weight", 1)
    if not 0 < channels <= MOST_CHANNELS:
        raise UserError(
            f"model: {prefix}features.0.weight has {channels} input channels, not 1 to {MOST_CHANNELS}; give another file"
        )
    # Without memory: the weights of the file are assigned.
    with without_weights():
        network = Network(config, channels=channels, size=cutout_size, num_targets=num_targets)
    ours = network.state_dict()
    names = dict(_key_pairs(network, prefix))
    for theirs, our in names.items():
        shape, wanted = _shape(state, theirs), tuple(ours[our].shape)
        if shape != wanted:
            raise UserError(f"model: {theirs} has shape {shape}, not {wanted}{_remedy(theirs, shape, cutout_size)}")
        # A sum takes no memory, and a thirtieth of the time of a look at each of a hundred million numbers.
        if not state[theirs].sum(dtype=torch.float32).isfinite():
            raise UserError(f"model: {theirs} is not finite: the training diverged, or the file is damaged; give another file")
    for key in state:
        if key not in names:
            raise UserError(f"model: {key} is not part of a GaMPEN network with {next(iter(names))}; give another file")
    network.load_state_dict({our: state[theirs].float() for theirs, our in names.items()}, assign=True)
    return network.eval(), config, channels


def label_schema(columns: Mapping[str, np.ndarray], labels: Sequence[str], scaling: Literal["std", "minmax"]) -> TargetSchema:
    """Return the targets behind GaMPEN's labels, standardised like the original by scikit-learn's scalers.

    Parameters
    ----------
    columns
        Columns of the training CSV: the labels and, if present, the physical quantity of a logit label, which gives the values
        that stand for 0 and 1.
    labels
        GaMPEN's label columns, in the order of the network's outputs.
    scaling
        ``std``: mean and standard deviation; ``minmax``: minimum and range.

    Raises
    ------
    UserError
        If a label does not vary or is not finite.
    """
    targets = []
    for name in labels:
        label, t = Label.parse(name), columns[name]
        if not np.isfinite(t).all() or not np.ptp(t) > 0:
            raise UserError(f"scaling: column {name!r} does not vary or is not finite everywhere; correct the training CSV")
        y = label.physical(t)
        clip = 0.0, 1.0
        if label.transform == "logit":
            clip = float(expit(t.min())), float(expit(t.max()))
            if label.quantity in columns:
                y = columns[label.quantity]
                clip = logit_limits(y)
        targets.append(
            Target(
                name=label.target,
                unit=label.unit,
                transform=label.transform,
                clip_low=clip[0],
                clip_high=clip[1],
                location=float(t.mean() if scaling == "std" else t.min()),
                scale=float(t.std() if scaling == "std" else np.ptp(t)),
                low=float(y.min()),
                high=float(y.max()),
            )
        )
    return TargetSchema(tuple(targets))


def schema_of_table(table: pa.Table, uri: str, labels: Sequence[str], scaling: Literal["std", "minmax"]) -> TargetSchema:
    """Return `label_schema` of the columns of a CSV.

    Raises
    ------
    UserError
        If a label is missing, or a value is not a finite number.
    """
    catalogs.require_columns(uri, table, dict.fromkeys(labels, "targets"))
    wanted = dict.fromkeys([*labels, *(Label.parse(name).quantity for name in labels)])
    columns: dict[str, np.ndarray] = {}
    for name in wanted:
        if name not in table.column_names:
            continue
        columns[name], faults = catalogs.numbers(table.column(name))
        if bad := np.flatnonzero(faults != "").tolist():
            place = f"{uri}, column {name!r}, row {bad[0] + 1}"
            raise UserError(f"scaling: {place}: the value {faults[bad[0]]}; correct the CSV")
    return label_schema(columns, labels, scaling)


def _network_config(state: Mapping[str, torch.Tensor], prefix: str, num_targets: int, dropout_rate: float) -> NetworkConfig:
    published = to_dict(gampen_vgg16())
    if prefix:
        parameters = _length(state, "fc_loc.2.bias", 0)
        family = next((name for name, count in NUM_PARAMETERS.items() if count == parameters), None)
        if family is None:
            raise UserError(f"model: fc_loc.2.bias has shape ({parameters},), but a transform has 1, 3 or 6 parameters")
    else:
        family = "none"
    outputs = _length(state, f"{prefix}classifier.6.bias", 0)
    families = {LIKELIHOODS[name](num_targets).num_outputs: name for name in ("unit_variance", "diagonal", "full")}
    if outputs not in families:
        raise UserError(
            f"model: {prefix}classifier.6.bias has shape ({outputs},), but {num_targets} targets make "
            f"{', '.join(map(str, families))} outputs; give the targets that the network was trained on"
        )
    # A dropout layer before the second convolution shifts its index by one.
    every = f"{prefix}features.3.weight" in state
    published["likelihood"] = families[outputs]
    published["spatial_transformer"]["family"] = family
    published["backbone"]["dropout_placement"] = "every_conv" if every else "classifier"
    published["backbone"]["dropout_rate"] = dropout_rate
    return build(NetworkConfig, published, recorded=True)


def _key_pairs(network: Network, prefix: str) -> Iterator[tuple[str, str]]:
    """Yield GaMPEN's key and ours of every parameter, in GaMPEN's order."""
    if network.transformer is not None:
        for theirs, ours in (("localization", "localisation"), ("fc_loc", "parameters_head")):
            for name, _ in getattr(network.transformer, ours).named_parameters():
                yield f"{theirs}.{name}", f"transformer.{ours}.{name}"
    layers = [(f"{part}.{name}", layer) for part in ("stem", "tail") for name, layer in getattr(network, part).named_children()]
    flatten = next(i for i, (_, layer) in enumerate(layers) if isinstance(layer, nn.Flatten))
    # torchvision numbers the layers up to the last pool from 0, and again from 0 those after the flattening.
    for part, numbered in (("features", layers[: flatten - 1]), ("classifier", layers[flatten + 1 :])):
        for index, (ours, layer) in enumerate(numbered):
            for name, _ in layer.named_parameters():
                yield f"{prefix}{part}.{index}.{name}", f"{ours}.{name}"


def _shape(state: Mapping[str, torch.Tensor], key: str) -> tuple[int, ...]:
    if key not in state:
        raise UserError(
            f"model: {key} is missing; give the state dict of a GaMPEN network (vgg16, vgg16_w_stn or one of its _drp variants)"
        )
    return tuple(state[key].shape)


def _length(state: Mapping[str, torch.Tensor], key: str, axis: int) -> int:
    shape = _shape(state, key)
    if len(shape) <= axis:
        raise UserError(f"model: {key} has shape {shape}; give the state dict of a GaMPEN network")
    return shape[axis]


def _remedy(key: str, shape: tuple[int, ...], cutout_size: int) -> str:
    """Return the cutout sizes that fit, if the cutout size is at fault."""
    if key != "fc_loc.0.weight":
        return ""
    channels, kernels = 96, (11, 9)
    fitting = []
    for side in _SIDES:
        reduced = side
        for kernel in kernels:
            reduced = (reduced - kernel + 1 - 3) // 2 + 1
        if channels * reduced**2 == shape[1]:
            fitting.append(side)
    sizes = f"sizes of {fitting[0]} to {fitting[-1]} fit" if fitting else "no cutout size fits"
    return f", with cutout_size {cutout_size}; {sizes}"
