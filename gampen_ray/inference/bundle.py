"""The model bundle: everything prediction needs, in one directory, loaded without executing pickled code.

``bundle.json`` (format version, network config, targets, images, calibration, metrics, provenance), ``weights.safetensors``,
``novelty.safetensors`` (unless imported from GaMPEN), ``conditions.safetensors`` (if the network takes any) and
``SHA256SUMS``.
Shape legend: N galaxies, K passes, D targets, C bands, H x W pixels.
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.torch

from gampen_ray import documents, storage
from gampen_ray.config import NetworkConfig
from gampen_ray.config.base import build, to_dict
from gampen_ray.config.parts import NUM_PASSES
from gampen_ray.errors import UserError
from gampen_ray.inference.bundle_files import (
    CHECKSUMS,
    CONDITIONS,
    DESCRIPTION,
    NOVELTY,
    REMEDY,
    WEIGHTS,
    Description,
    checksums,
    tensors,
    verify,
    weights,
)
from gampen_ray.inference.flags import FlagCounts, galaxy_flags
from gampen_ray.inference.known_conditions import KnownConditions, impossible
from gampen_ray.inference.out_of_distribution import OutOfDistribution
from gampen_ray.inference.pixels import plain_condition, plain_pixels, refuse_flat
from gampen_ray.inference.predictor import Precision, Predictor
from gampen_ray.inference.ranges import Ranges
from gampen_ray.inference.signature import check_signature
from gampen_ray.model.flops import inference_flops
from gampen_ray.model.images import ImagePreprocessing
from gampen_ray.model.meta import without_weights
from gampen_ray.model.network import Network
from gampen_ray.model.targets import TargetSchema
from gampen_ray.posterior.calibration import Calibration
from gampen_ray.posterior.mixture import Mixture
from gampen_ray.posterior.prior import Prior
from gampen_ray.posterior.summary import Statistics
from gampen_ray.run_folder import RunFolder

logger = logging.getLogger(__name__)

FORMAT_VERSION = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bundle:
    """A trained model.

    Parameters
    ----------
    network
        From preprocessed images (N x C x H x W) to raw outputs (N x P).
    config
        Architecture of the network.
    targets
        Names, units, transforms and standardisation.
    images
        Preprocessing of cutouts.
    calibration
        Factors on the posteriors about their means; ones where calibration is switched off.
    metrics
        Figures of merit on the validation split, plain values.
    provenance
        Versions, git revision, dataset fingerprint, date and training config, plain values.
    novelty
        Detects unusual images; None in bundles that were imported, or made before it was stored.
    ranges
        Of what is measured in held-out cutouts; None as for ``novelty``.
    known_conditions
        Of training galaxies; None as for ``novelty``, or if the network takes no conditions.
    prior
        Of the targets in training, for `gampen_ray.posterior.mixture.Mixture.reweight`; None as for ``novelty``.
    """

    network: Network
    config: NetworkConfig
    targets: TargetSchema
    images: ImagePreprocessing
    calibration: Calibration
    metrics: dict[str, Any]
    provenance: dict[str, Any]
    novelty: OutOfDistribution | None = None
    ranges: Ranges | None = None
    known_conditions: KnownConditions | None = None
    prior: Prior | None = None

    def predict(
        self,
        images_NCHW: np.ndarray,
        *,
        noise_planes: np.ndarray | None = None,
        conditions: Mapping[str, np.ndarray] | None = None,
        num_passes: int = NUM_PASSES,
        seed: int = 0,
        batch_size: int = 0,
        device: str = "auto",
        precision: Precision = "auto",
        zero_point_mag: float | None = None,
        pixel_scale_arcsec: float | None = None,
        warn: bool = True,
    ) -> Mixture:
        """Return the posteriors of cutouts in flux units.

        Parameters
        ----------
        images_NCHW
            Cutouts in the bands of the training data, of any byte order; cropped or zero-padded about the centre as needed.
            For a bundle of one band also N x H x W, or one image of H x W.
            Masked pixels of a masked array, of NumPy or astropy, have no value; the unit of an astropy Quantity, such as nJy,
            gives the zero point.
        noise_planes
            Standard deviation of each pixel, in the shape and unit of the images, for a bundle that was trained with noise
            planes; unknown where it is masked, zero or not finite.
        conditions
            Values (N, or one for all) of the bundle's conditions, such as the PSF's width, by name. Of NaN, for unknown, the
            posterior is over the values of training galaxies. A Quantity is converted to the unit of the name.
        num_passes
            Number K of Monte Carlo dropout passes.
        seed
            Seed of the dropout masks.
        batch_size
            Galaxies per forward pass, without effect on the result; 0: as many as fit the device.
        device
            Where the network runs: ``cpu``, ``cuda``, ``cuda:1``, ...; ``auto``: on a GPU if there is one.
        precision
            Precision of the network after the spatial transformer: float32 or bfloat16; ``auto``: bfloat16 on a GPU, else
            float32.
        zero_point_mag, pixel_scale_arcsec
            Zero point and pixel scale of the cutouts, which are converted to those of the training cutouts; None: the same.

        warn
            Whether posteriors that may be wrong are counted in a warning.

        Raises
        ------
        UserError
            If a condition or the noise planes are left out, if the images have wrong bands or non-finite pixels or are too
            bright for the network, or if their unit, zero point or pixel scale makes no sense.
        """
        for name, value, least in (("num_passes", num_passes, 1), ("seed", seed, 0)):
            if value < least:
                raise UserError(f"{name}: {value} is below {least}")
        sigma = self._noise(noise_planes, images_NCHW)
        images_NCHW, zero_point_mag = plain_pixels(images_NCHW, zero_point_mag, pixel_scale_arcsec)
        if len(self.images.bands) == 1 and images_NCHW.ndim in (2, 3):
            images_NCHW = images_NCHW.reshape(-1, 1, *images_NCHW.shape[-2:])
        if sigma is not None:
            self.images.check(images_NCHW.shape, len(self.images.bands))
            images_NCHW = np.concatenate([images_NCHW, sigma.reshape(images_NCHW.shape)], axis=1)
        self.images.check(images_NCHW.shape)
        refuse_flat(images_NCHW)
        predictor = Predictor(
            self,
            num_passes=num_passes,
            seed=seed,
            batch_size=batch_size,
            device=device,
            precision=precision,
            zero_point_mag=zero_point_mag,
            pixel_scale_arcsec=pixel_scale_arcsec,
        )
        prediction = predictor(images_NCHW, self.condition_values(conditions or {}, len(images_NCHW)))
        if not prediction.usable_N.all():
            raise UserError(
                f"images: {(~prediction.usable_N).sum()} give no finite posterior, the first is number "
                f"{np.argmin(prediction.usable_N)}; mask or remove their extreme pixels"
            )
        # A catalogue has the flags of each galaxy; a mixture has none.
        if warn and (warning := FlagCounts.of(galaxy_flags(prediction.flags_N, Statistics(prediction.mixture))).warning):
            logger.warning(warning)
        return prediction.mixture

    def condition_values(self, columns: Mapping[str, np.ndarray], count: int) -> np.ndarray:
        """Return the values of the bundle's conditions for ``count`` galaxies, N x J float64.

        Raises
        ------
        UserError
            If a column is missing, has another length or a unit that does not fit its name, or if no PSF has such sizes.
        """
        names = self.images.condition_names
        for name in names:
            if name not in columns:
                raise UserError(
                    f"conditions: {name} is missing, and the bundle was trained with {', '.join(names)}; give its values, NaN "
                    "where one is unknown"
                )
            if np.shape(columns[name]) not in ((), (count,)):
                raise UserError(
                    f"conditions: {name} has the shape {np.shape(columns[name])} for {count} galaxies; give one a galaxy"
                )
        values_JN = [np.broadcast_to(plain_condition(name, columns[name]), count) for name in names]
        condition_NJ = np.stack(values_JN, axis=1) if names else np.empty((count, 0))
        reason_N = impossible(names, condition_NJ)
        if (reason_N != "").any():
            raise UserError(f"conditions: {(bad := reason_N[reason_N != ''])[0]} ({len(bad)} of {count} images)")
        return condition_NJ

    def _noise(self, noise_planes: Any, images: Any) -> np.ndarray | None:
        # Native float32 standard deviations in the images' shape; None for a bundle without noise planes.
        if not self.images.noise_planes:
            if noise_planes is not None:
                raise UserError("noise_planes: are given, but the bundle was trained without; leave them out")
            return None
        if noise_planes is None:
            raise UserError(
                "noise_planes: are missing, and the bundle was trained with them; give the standard deviation of each pixel"
            )
        if np.shape(noise_planes) != np.shape(images):
            shapes = f"have the shape {np.shape(noise_planes)}, but the images {np.shape(images)}"
            raise UserError(f"noise_planes: {shapes}; give one for each pixel")
        units = [str(getattr(planes, "unit", "") or "") for planes in (noise_planes, images)]
        if units[0] not in ("", units[1]):
            raise UserError(f"noise_planes: are in {units[0]}, but the images in {units[1] or 'no unit'}; convert one of them")
        return plain_pixels(getattr(noise_planes, "value", noise_planes), None, None)[0]

    @property
    def num_parameters(self) -> int:
        """Number of the network's weights."""
        return sum(p.numel() for p in self.network.parameters())

    def flops(self, num_passes: int) -> int:
        """Return the floating-point operations of a galaxy's posterior; see `gampen_ray.model.flops.inference_flops`."""
        return inference_flops(
            self.config,
            channels=1 if self.images.repeats_a_band else self.images.channels,
            size=self.images.size,
            num_targets=len(self.targets),
            num_passes=num_passes,
            numbers=len(self.images.number_names),
        )

    def save(self, uri: str) -> None:
        """Write the bundle to a folder or s3:// URI; the checksums come last."""
        description = {
            "format_version": FORMAT_VERSION,
            "network": to_dict(self.config),
            "targets": self.targets.to_dict(),
            "images": self.images.to_dict(),
            "calibration": self.calibration.to_dict(),
            "novelty": {"threshold": self.novelty.threshold} if self.novelty else None,
            "ranges": self.ranges.to_dict() if self.ranges else None,
            "prior": self.prior.to_dict() if self.prior else None,
            "metrics": self.metrics,
            "provenance": self.provenance,
        }
        files = {
            DESCRIPTION: json.dumps(description, indent=2).encode(),
            WEIGHTS: safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in self.network.state_dict().items()}),
        }
        if self.novelty:
            files[NOVELTY] = safetensors.torch.save(self.novelty.to_tensors())
        if self.known_conditions:
            files[CONDITIONS] = safetensors.torch.save(self.known_conditions.to_tensors())
        files[CHECKSUMS] = checksums(files)
        for name, data in files.items():
            storage.write_bytes_atomic(storage.join(uri, name), data)


def load_bundle(uri: str, digest: str = "") -> Bundle:
    """Load a model bundle.

    Parameters
    ----------
    uri
        The bundle, a run folder of ``train`` that holds one, or ``builtin:NAME``.
    digest
        `bundle_digest` that it must have: the workers of a job load the bundle later than its driver. Empty: any.

    Raises
    ------
    UserError
        If there is no bundle, it is damaged, its format is newer than this program, or it has another digest.
    """
    uri = bundle_uri(uri)
    files = {name: storage.read_bytes(storage.join(uri, name)) for name in (DESCRIPTION, WEIGHTS, CHECKSUMS)}
    if digest and _digest(files[CHECKSUMS]) != digest:
        raise UserError(f"bundle: {uri} was replaced while it was in use; put the former one back, or give a new output folder")
    where = f"bundle: {uri}/{DESCRIPTION} is damaged"
    version = documents.parsed(documents.Versioned, files[DESCRIPTION], where, REMEDY).format_version
    if version != FORMAT_VERSION:
        remedy = "upgrade gampen_ray" if version > FORMAT_VERSION else "train or import it again"
        raise UserError(f"bundle: {uri} has format_version {version}, this gampen_ray reads {FORMAT_VERSION}; {remedy}")
    for name in (NOVELTY, CONDITIONS):
        if name.encode() in files[CHECKSUMS]:
            files[name] = storage.read_bytes(storage.join(uri, name))
    verify(uri, files)
    described = documents.parsed(Description, files[DESCRIPTION], where, REMEDY)
    with documents.refused(where, REMEDY):
        # Bundles that do not say it were made without.
        if isinstance(crop := described.network.get("spatial_transformer"), dict):
            crop.setdefault("subtract_psf", False)
        config = build(NetworkConfig, described.network, recorded=True)
        targets, images, calibration, ranges, prior = _parts(described)
        # Allocates no memory: the weights are assigned.
        with without_weights():
            network = Network.of(config, images, len(targets))
    network.load_state_dict(weights(files[WEIGHTS], f"bundle: {uri}/{WEIGHTS} is damaged", network), assign=True)
    novelty = None
    if described.novelty:
        where = f"bundle: {uri}/{NOVELTY} is damaged"
        with documents.refused(where, REMEDY):
            novelty = OutOfDistribution.from_tensors(tensors(files.get(NOVELTY, b""), where), described.novelty.threshold)
    known = None
    if CONDITIONS in files:
        where = f"bundle: {uri}/{CONDITIONS} is damaged"
        with documents.refused(where, REMEDY):
            known = KnownConditions.from_tensors(tensors(files[CONDITIONS], where), len(images.conditions))
    return Bundle(
        network=network.eval(),
        config=config,
        targets=targets,
        images=images,
        calibration=calibration,
        metrics=described.metrics,
        provenance=described.provenance,
        novelty=novelty,
        ranges=ranges,
        known_conditions=known,
        prior=prior,
    )


def _parts(described: Description) -> tuple[TargetSchema, ImagePreprocessing, Calibration, Ranges | None, Prior | None]:
    # What bundle.json describes; a ValueError where the parts do not fit.
    targets, images = TargetSchema(described.targets), described.images
    calibration = Calibration.from_dict(vars(described.calibration))
    ranges = Ranges.from_dict(vars(described.ranges)) if described.ranges else None
    prior = Prior.from_dict(vars(described.prior), targets) if described.prior else None
    if len(calibration.scale_DB) != len(targets):
        raise ValueError(f"calibration: there are {len(calibration.scale_DB)} rows of factors for {len(targets)} targets")
    if ranges and ranges.low_QC.shape[1] != len(images.bands):
        raise ValueError(f"ranges: there are {ranges.low_QC.shape[1]} columns for {len(images.bands)} bands")
    return targets, images, calibration, ranges, prior


def bundle_digest(uri: str, public_key: str = "") -> str:
    """Return a fingerprint of a bundle's content, independent of its location.

    Parameters
    ----------
    uri
        See `load_bundle`.
    public_key
        File or s3:// URI of the Ed25519 public key by which the bundle must be signed; empty: by none.

    Raises
    ------
    UserError
        If there is no bundle, or it is not signed; see `gampen_ray.inference.signature.check_signature`.
    """
    uri = bundle_uri(uri)
    sums = storage.read_bytes(storage.join(uri, CHECKSUMS))
    if public_key:
        check_signature(uri, sums, public_key)
    return _digest(sums)


def bundle_uri(uri: str) -> str:
    """Return the URI of the bundle itself where a run folder is given.

    Raises
    ------
    UserError
        If there is none.
    """
    if storage.exists(storage.join(uri, "bundle", CHECKSUMS)):
        return storage.join(uri, "bundle")
    if not storage.exists(storage.join(uri, DESCRIPTION)):
        problem, remedy = f"holds no {DESCRIPTION}", "give the folder that `train` or `import-gampen` wrote"
        if run := RunFolder.recorded(uri):
            # By the file that is written last.
            if run.complete and not run.complete.endswith(CHECKSUMS):
                problem = f"is the output of `{run.verb}`, not of `train`"
            else:
                problem, remedy = "is an unfinished run", "run the same command again"
        raise UserError(f"bundle: {uri} {problem}; {remedy}")
    if not storage.exists(storage.join(uri, CHECKSUMS)):
        raise UserError(f"bundle: {uri} is damaged, it holds no {CHECKSUMS}; {REMEDY}")
    return uri


def _digest(checksums: bytes) -> str:
    return hashlib.sha256(checksums).hexdigest()
