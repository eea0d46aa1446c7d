"""The `import-gampen` verb: a trained GaMPEN network becomes a bundle, with its label scaler and everything else in it."""

import dataclasses
import hashlib
import logging

import numpy as np
import pyarrow as pa

from gampen_ray import storage
from gampen_ray.config import ImportGampenConfig
from gampen_ray.config.base import to_dict
from gampen_ray.data import catalogs
from gampen_ray.data.gampen_labels import GAMPEN_ZERO_POINT_MAG, Label
from gampen_ray.errors import UserError
from gampen_ray.gampen.weights import label_schema, network_from_state_dict, read_state_dict
from gampen_ray.inference.bundle import CHECKSUMS, Bundle, load_bundle
from gampen_ray.model.images import ImagePreprocessing
from gampen_ray.model.targets import TargetSchema
from gampen_ray.provenance import claim_output, provenance

logger = logging.getLogger(__name__)

# Ghosh et al. (2023, arXiv:2212.00051) and the documentation of the public data release: cutout size, dropout rate.
_PRESETS = {
    "g_0_025": (239, 4e-4),
    "r_025_050": (143, 2e-4),
    "i_050_075": (96, 2e-4),
    "sim_g_0_025": (239, 7e-4),
    "sim_r_025_050": (143, 7e-4),
    "sim_i_050_075": (96, 4e-4),
}
_PRESET_LABELS = ("custom_logit_bt", "ln_R_e_asec", "ln_total_flux_adus")
_HSC_PIXEL_SCALE_ARCSEC = 0.168


def import_gampen(config: ImportGampenConfig) -> Bundle:
    """Write the bundle and return it; one that is there already is left as it is.

    Raises
    ------
    UserError
        If the file is no state dict of a GaMPEN network, does not fit the targets or the cutout size (the first key at fault is
        named), the CSV lacks a label, or the output holds something else.
    """
    config = settled(config)
    assert config.dropout_rate is not None
    weights, table = storage.read_bytes(config.model), catalogs.read_catalog(config.scaling)
    targets = _targets(config, table)
    network, architecture, channels = network_from_state_dict(
        read_state_dict(weights, config.model),
        num_targets=len(targets),
        cutout_size=config.cutout_size,
        dropout_rate=config.dropout_rate,
    )
    if len(config.bands) not in (1, channels):
        raise UserError(
            f"bands: {', '.join(config.bands)}, but the network has {channels} channels; name one band or {channels}"
        )
    inputs = {
        "model": hashlib.sha256(weights).hexdigest(),
        "scaling": hashlib.sha256(storage.read_bytes(config.scaling)).hexdigest(),
    }
    claim_output(config.output, config, inputs)
    if storage.exists(storage.join(config.output, CHECKSUMS)):
        logger.info("%s is complete; nothing to do", config.output)
        return load_bundle(config.output)
    bundle = Bundle(
        network=network,
        config=architecture,
        targets=targets,
        images=ImagePreprocessing(
            bands=config.bands,
            size=config.cutout_size,
            softening=1.0,
            channels=channels,
            zero_point_mag=config.zero_point_mag,
            pixel_scale_arcsec=config.pixel_scale_arcsec,
        ),
        calibration_scale_D=np.ones(len(targets)),
        metrics={},
        provenance={**provenance(), "imported": to_dict(config), "inputs": inputs},
    )
    bundle.save(config.output)
    logger.info("wrote %s: %s", config.output, ", ".join(f"{t.name} ({t.transform})" for t in targets))
    return bundle


def settled(config: ImportGampenConfig) -> ImportGampenConfig:
    """Return the config with absolute URIs, and the preset's values where none are given; a UserError where one is missing."""
    if config.preset:
        size, rate = _PRESETS[config.preset]
        band = config.preset.removeprefix("sim_")[0]
        config = dataclasses.replace(
            config,
            targets=config.targets or _PRESET_LABELS,
            cutout_size=config.cutout_size or size,
            dropout_rate=rate if config.dropout_rate is None else config.dropout_rate,
            bands=config.bands or (band,),
            pixel_scale_arcsec=config.pixel_scale_arcsec or _HSC_PIXEL_SCALE_ARCSEC,
            zero_point_mag=GAMPEN_ZERO_POINT_MAG if config.zero_point_mag is None else config.zero_point_mag,
        )
    for name, empty in (("targets", ()), ("cutout_size", 0), ("dropout_rate", None)):
        if getattr(config, name) == empty:
            raise UserError(f"{name}: required without a preset; give --{name.replace('_', '-')} or --preset")
    if len({Label.parse(name).target for name in config.targets}) < len(config.targets):
        raise UserError(f"targets: {', '.join(config.targets)}: two labels stand for one target; name each target once")
    uris = {name: storage.absolute(getattr(config, name)) for name in ("model", "scaling", "output")}
    return dataclasses.replace(config, bands=config.bands or ("unknown",), **uris)


def _targets(config: ImportGampenConfig, table: pa.Table) -> TargetSchema:
    catalogs.require_columns(config.scaling, table, dict.fromkeys(config.targets, "targets"))
    wanted = dict.fromkeys([*config.targets, *(Label.parse(name).quantity for name in config.targets)])
    columns: dict[str, np.ndarray] = {}
    for name in wanted:
        if name not in table.column_names:
            continue
        columns[name], faults = catalogs.numbers(table.column(name))
        if bad := np.flatnonzero(faults != "").tolist():
            place = f"{config.scaling}, column {name!r}, row {bad[0] + 1}"
            raise UserError(f"scaling: {place}: the value {faults[bad[0]]}; mend the CSV")
    return label_schema(columns, config.targets, config.label_scaling)
