"""The `import-gampen` verb: converts a trained GaMPEN network and its label scaler to a bundle."""

import logging
from typing import TYPE_CHECKING, Literal

import pydantic

from gampen_ray.commands.registry import verb
from gampen_ray.config.base import config_class, replace, to_dict
from gampen_ray.errors import UserError

if TYPE_CHECKING:
    from gampen_ray.inference.bundle import Bundle

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


@config_class
class ImportGampenConfig:
    """Turn a trained GaMPEN network (a .pt state dict) into a model bundle; nothing pickled is executed."""

    model: str
    """State dict of a vgg16, vgg16_w_stn or vgg16_w_stn_*_drp network, saved by GaMPEN's train.py."""
    scaling: str
    """CSV of the training split, from which the label scaler is computed (GaMPEN: splits/SLUG-train.csv). If it has a column
    bt beside custom_logit_bt, the logits that stand for B/T of 0 and 1 come from it."""
    output: str
    """Bundle to create: a folder or s3:// URI."""
    preset: Literal["", "g_0_025", "r_025_050", "i_050_075", "sim_g_0_025", "sim_r_025_050", "sim_i_050_075"] = ""
    """Public HSC model: sets the fields below that are left out. g_0_025, r_025_050 and i_050_075 are the real-data models for
    z < 0.25, 0.25 to 0.50 and 0.50 to 0.75, sim_* those trained on simulations."""
    targets: tuple[str, ...] = ()
    """Label columns in the order of GaMPEN's --target_metrics; ln_* and custom_logit_* are logarithms and logits of physical
    targets. Left out: the preset's."""
    cutout_size: int = pydantic.Field(default=0, ge=0)
    """Side of the network's input, pixels (GaMPEN: --cutout_size). 0: the preset's."""
    dropout_rate: float | None = pydantic.Field(default=None, ge=0, lt=1)
    """Rate of every dropout layer (GaMPEN: --dropout_rate; 0.5 where it was left out in training). Left out: the preset's."""
    label_scaling: Literal["std", "minmax"] = "std"
    """GaMPEN's --label_scaling."""
    bands: tuple[str, ...] = ()
    """Bands of the cutouts; a single band is repeated over the network's channels, as in GaMPEN. Left out: the preset's, or one
    band named unknown."""
    pixel_scale_arcsec: float | None = pydantic.Field(default=None, gt=0)
    """Pixel scale of the training cutouts, arcsec. Left out: the preset's, or unknown."""
    zero_point_mag: float | None = None
    """AB magnitude of one unit of flux of the training cutouts. Left out: the preset's, or unknown."""


@verb(
    "import-gampen",
    positional="model",
    then=lambda run: f"infer --bundle {run['output']} --dataset DATASET --output CATALOG",
)
def import_gampen(config: ImportGampenConfig) -> "Bundle":
    """Write the bundle and return it; an existing one is left unchanged.

    Raises
    ------
    UserError
        If the file is not the state dict of a GaMPEN network, does not fit the targets or the cutout size (naming the
        first key at fault), the CSV lacks a label, or the output holds something else.
    """
    import hashlib

    import numpy as np

    from gampen_ray import storage
    from gampen_ray.data import catalogs
    from gampen_ray.gampen.weights import network_from_state_dict, read_state_dict, schema_of_table
    from gampen_ray.inference.bundle import CHECKSUMS, Bundle, load_bundle
    from gampen_ray.model.images import ImagePreprocessing
    from gampen_ray.posterior.calibration import Calibration
    from gampen_ray.provenance import provenance
    from gampen_ray.run_folder import RunFolder

    config = settled(config)
    assert config.dropout_rate is not None
    weights, table = storage.read_bytes(config.model), catalogs.read_catalog(config.scaling)
    targets = schema_of_table(table, config.scaling, config.targets, config.label_scaling)
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
    with RunFolder.open(config.output, "import-gampen", config, inputs, complete=CHECKSUMS) as folder:
        if folder.is_complete:
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
            calibration=Calibration.constant(np.ones(len(targets))),
            metrics={},
            provenance={**provenance(), "imported": to_dict(config), "inputs": inputs},
        )
        bundle.save(config.output)
        logger.info("wrote %s: %s", config.output, ", ".join(f"{t.name} ({t.transform})" for t in targets))
        return bundle


def settled(config: ImportGampenConfig) -> ImportGampenConfig:
    """Return the config with absolute URIs and the preset's values for omitted fields; a `UserError` if one is missing."""
    from gampen_ray import storage
    from gampen_ray.data.gampen_labels import GAMPEN_ZERO_POINT_MAG, Label

    if config.preset:
        size, rate = _PRESETS[config.preset]
        band = config.preset.removeprefix("sim_")[0]
        config = replace(
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
    return replace(config, bands=config.bands or ("unknown",), **uris)
