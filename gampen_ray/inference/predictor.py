"""From cutouts to posteriors on one device: batches sized to its memory, arithmetic suited to it.

Shape legend: N galaxies, K passes, D targets, C bands, H x W pixels, J conditions.
"""

import dataclasses
import logging
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch

from gampen_ray.data.cutouts import by_side
from gampen_ray.errors import UserError
from gampen_ray.inference.flags import MOST_BLEND, Flag, condition_flags, image_flags, range_flags
from gampen_ray.inference.mc_dropout import ThinnedNetworks
from gampen_ray.inference.out_of_distribution import features
from gampen_ray.model.images import Matched
from gampen_ray.model.measure import blend_share, centre_offset, flat_core
from gampen_ray.model.pixel_grids import resize
from gampen_ray.model.spatial_transformer import crop_corners, crop_images, crop_scale
from gampen_ray.posterior.mixture import Mixture, proper

if TYPE_CHECKING:
    from gampen_ray.inference.bundle import Bundle

logger = logging.getLogger(__name__)

Precision = Literal["auto", "float32", "bfloat16"]
"""Of the network behind the spatial transformer; auto: bfloat16 on a GPU, float32 elsewhere."""
# What the activations of a batch may take: on a CPU such that layers stay near the cache, on a GPU half of what is free.
_CPU_BYTES = 64 << 20
_MAX_BATCH = 4096
# Of unknown conditions; passes take turns, and each draw takes a pass through the layers in front of dropout.
_CONDITION_DRAWS = 17


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """Posteriors of N galaxies with what was learned on the way.

    Parameters
    ----------
    mixture
        Posterior, calibrated if the bundle says so.
    usable_N
        False where the network's output is not a proper Gaussian (pixels near the limits of float32); the mixture is then a
        placeholder.
    affine_N23
        Maps from crop to image coordinates; see `gampen_ray.model.spatial_transformer`.
    crop_scale_N
        Side of each learned crop over the side of the network's input.
    centre_offset_N
        How far each galaxy lies from the middle, pixels; see `gampen_ray.model.measure.centre_offset`.
    flags_N
        Sums of `gampen_ray.inference.flags.Flag` values: those that the image decides.
    """

    mixture: Mixture
    usable_N: np.ndarray
    affine_N23: np.ndarray
    crop_scale_N: np.ndarray
    centre_offset_N: np.ndarray
    flags_N: np.ndarray

    @staticmethod
    def concatenate(parts: list["Prediction"]) -> "Prediction":
        """Return the predictions of all galaxies."""
        names = ("usable_N", "affine_N23", "crop_scale_N", "centre_offset_N", "flags_N")
        arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        return Prediction(mixture=Mixture.concatenate([part.mixture for part in parts]), **arrays)

    def take(self, index_N: np.ndarray) -> "Prediction":
        """Return the predictions of some galaxies, in this order."""
        names = (field.name for field in dataclasses.fields(self))
        return Prediction(**{name: getattr(self, name)[index_N] for name in names})


class Seen(NamedTuple):
    """What a network saw of N cutouts: its input, the learned crops, and these on the input."""

    image_NCHW: np.ndarray
    """In the flux units, at the pixel scale and of the size of the training cutouts."""
    crop_NCHW: np.ndarray
    """As large as the input."""
    corner_N42: np.ndarray
    """Corners of the crops in drawing order: (x, y) in pixels of the input, (0, 0) the centre of its first pixel."""


def settled_precision(precision: Precision, *, gpu: bool) -> Precision:
    """Return what a precision means on a GPU or on a CPU: float32 or bfloat16."""
    if precision == "auto":
        return "bfloat16" if gpu else "float32"
    return precision


class Predictor:
    """Maps cutouts to posteriors with one set of thinned networks.

    Parameters
    ----------
    bundle
        Trained model.
    num_passes, seed
        Number of dropout masks and their seed.
    device
        Where the network runs; ``auto``: on a GPU if there is one.
    precision
        See `Precision`.
    batch_size
        Galaxies per forward pass; 0: as many as fit the device. Halved for good where memory runs out. Changes no result.
    zero_point_mag, pixel_scale_arcsec
        Of the cutouts to predict, which are converted to those of the training cutouts; None: the same.
    """

    def __init__(
        self,
        bundle: "Bundle",
        *,
        num_passes: int,
        seed: int,
        device: str = "auto",
        precision: Precision = "auto",
        batch_size: int = 0,
        zero_point_mag: float | None = None,
        pixel_scale_arcsec: float | None = None,
    ) -> None:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._bundle, self._device = bundle, torch.device(device)
        self._units = {"zero_point_mag": zero_point_mag, "pixel_scale_arcsec": pixel_scale_arcsec}
        gpu = self._device.type == "cuda"
        self._thinned = ThinnedNetworks(
            bundle.network,
            num_passes,
            seed,
            device=self._device,
            dtype=getattr(torch, settled_precision(precision, gpu=gpu)),
            repeated_band=bundle.images.repeats_a_band,
        )
        image_NCHW = torch.zeros(1, bundle.images.num_planes, bundle.images.size, bundle.images.size, device=self._device)
        condition_NJ = torch.zeros(1, len(bundle.images.conditions))
        numbers = bundle.images.numbers(image_NCHW, condition_NJ)
        num_bytes = self._thinned.prepare(bundle.images.stretched(image_NCHW), numbers)
        budget = torch.cuda.mem_get_info(self._device)[0] // 2 if gpu else _CPU_BYTES
        self.batch_size = batch_size or int(np.clip(budget // num_bytes, 1, _MAX_BATCH))

    def match(self, images_NCHW: np.ndarray) -> Matched:
        """Return cutouts in the flux units and pixel scale of the training cutouts."""
        return self._bundle.images.match(torch.tensor(images_NCHW, device=self._device), **self._units)

    def seen(self, images_NCHW: np.ndarray, prediction: Prediction) -> "Seen":
        """Return what the network saw of cutouts whose prediction is given."""
        image_NCHW = resize(self.match(images_NCHW).image_NCHW, self._bundle.images.size).cpu()
        affine_N23 = torch.from_numpy(prediction.affine_N23)
        corner_N42 = np.stack([crop_corners(affine_23, image_NCHW.shape[-1]).numpy() for affine_23 in affine_N23])
        return Seen(image_NCHW.numpy(), crop_images(image_NCHW, affine_N23).numpy(), corner_N42)

    def __call__(
        self, images_NCHW: np.ndarray, condition_NJ: np.ndarray | None = None, side_N: np.ndarray | None = None
    ) -> Prediction:
        """Return the posteriors of one cutout or more; see `gampen_ray.inference.bundle.Bundle.predict`.

        Parameters
        ----------
        images_NCHW
            Cutouts, in the units that the predictor was given; N x 2C x H x W if the bundle takes noise planes.
        condition_NJ
            Values of the bundle's conditions. One that is not finite is unknown: the posterior is that over its values in the
            training, and the galaxy is flagged. Left out: so for all.
        side_N
            Sides of the images before they were zero-padded, pixels: they are predicted without the zeros, in which there is
            neither sky nor noise. Left out: none was padded.

        Raises
        ------
        UserError
            If a cutout has pixels that are not finite.
        """
        self._bundle.images.check(images_NCHW.shape)
        finite_NCHW = np.isfinite(images_NCHW[:, : len(self._bundle.images.bands)])
        if not finite_NCHW.all():
            bad = np.flatnonzero(~finite_NCHW.reshape(len(images_NCHW), -1).all(axis=1))
            raise UserError(f"images: {bad.size} have non-finite pixels, the first is number {bad[0]}; fill or remove them")
        conditions = self._bundle.images.conditions
        if condition_NJ is None:
            condition_NJ = np.full((len(images_NCHW), len(conditions)), np.nan)
        parts, order, size = [], [], images_NCHW.shape[-1]
        for rows, inside in by_side(np.full(len(images_NCHW), size) if side_N is None else side_N, size):
            parts.append(self._batches(images_NCHW[rows][..., inside, inside], condition_NJ[rows]))
            order.append(np.arange(len(images_NCHW))[rows])
        return Prediction.concatenate(parts).take(np.argsort(np.concatenate(order)))

    def _batches(self, images_NCHW: np.ndarray, condition_NJ: np.ndarray) -> Prediction:
        parts: list[Prediction] = []
        start = 0
        while start < max(1, len(images_NCHW)):
            try:
                rows = slice(start, start + self.batch_size)
                parts.append(self._batch(images_NCHW[rows], condition_NJ[rows]))
            except torch.OutOfMemoryError:
                if self.batch_size == 1:
                    raise
                self.batch_size //= 2
                torch.cuda.empty_cache()
                logger.warning("the device is out of memory: batches of %s galaxies from here on", self.batch_size)
            else:
                start += self.batch_size
        return Prediction.concatenate(parts)

    def _batch(self, images_NCHW: np.ndarray, condition_NJ: np.ndarray) -> Prediction:
        matched, images = self.match(images_NCHW), self._bundle.images
        mean_J = np.array([condition.mean for condition in images.conditions])
        filled_NJ = torch.from_numpy(np.where(np.isfinite(condition_NJ), condition_NJ, mean_J)).float()
        x_NCHW, number_NM = images.stretched(matched), images.numbers(matched, filled_NJ)
        unknown_N = ~np.isfinite(condition_NJ).all(axis=1) & (self._bundle.known_conditions is not None)
        # Where all are unknown, only what the passes share is looked at.
        passes = self._thinned(x_NCHW, number_NM, (0,) if unknown_N.all() else None)
        outputs_NKP = passes.outputs_NKP
        if unknown_N.any():
            assert number_NM is not None
            rows = torch.from_numpy(unknown_N).to(self._device)
            over_NKP = self._over_conditions(x_NCHW[rows], number_NM[rows], condition_NJ[unknown_N])
            outputs_NKP = over_NKP if unknown_N.all() else outputs_NKP.index_put((rows,), over_NKP)
        mean_NKD, scale_tril_NKDD = self._bundle.network.likelihood.components(outputs_NKP.double())
        usable_N = proper(mean_NKD, scale_tril_NKDD)
        identity_DD = torch.eye(len(self._bundle.targets), dtype=torch.float64, device=self._device)
        mean_NKD[~usable_N], scale_tril_NKDD[~usable_N] = 0.0, identity_DD
        mixture = self._bundle.calibration(Mixture(mean_NKD, scale_tril_NKDD, self._bundle.targets))
        affine_N23 = passes.affine_N23.cpu().numpy()
        novelty, offset_N = self._bundle.novelty, centre_offset(matched.image_NCHW, matched.sky)
        centre_offset_N = offset_N.double().cpu().numpy()
        flags_N = image_flags(
            affine_N23,
            features(passes.activations) if novelty else np.zeros((len(images_NCHW), 0)),
            novelty,
            zoom=images.zoom(self._units["pixel_scale_arcsec"]),
            centre_offset_N=centre_offset_N,
        )
        flags_N |= condition_flags(condition_NJ, images.conditions, self._bundle.known_conditions)
        if self._bundle.ranges:
            flags_N |= range_flags(images.plain_numbers(matched).cpu().numpy(), self._bundle.ranges)
        if images.measure and number_NM is not None:
            measured_NM = number_NM[:, : number_NM.shape[1] - len(images.conditions)]
            blended_N = (blend_share(measured_NM, len(images.bands), images.size) > MOST_BLEND).cpu().numpy()
            flags_N |= np.where(blended_N, Flag.BLENDED.value, 0)
        flat_N = flat_core(torch.tensor(images_NCHW[:, : len(images.bands)], device=self._device)).cpu().numpy()
        flags_N |= np.where(flat_N, Flag.CORE_SATURATED.value, 0)
        padded = min(matched.image_NCHW.shape[-2:]) < images.size
        return Prediction(
            mixture=Mixture(mixture.mean_NKD.cpu(), mixture.scale_tril_NKDD.cpu(), mixture.targets),
            usable_N=usable_N.cpu().numpy(),
            affine_N23=affine_N23,
            crop_scale_N=crop_scale(passes.affine_N23).cpu().numpy(),
            centre_offset_N=centre_offset_N,
            flags_N=flags_N | (Flag.INPUT_PADDED.value if padded else 0),
        )

    def _over_conditions(self, x_NCHW: torch.Tensor, number_NM: torch.Tensor, condition_NJ: np.ndarray) -> torch.Tensor:
        """Return the outputs of passes that each have conditions of the training where these are unknown, N x K x P.

        The mixture of the passes is then the posterior over the unknown conditions.
        """
        known, num_passes = self._bundle.known_conditions, self._thinned.num_passes
        assert known is not None
        count = min(_CONDITION_DRAWS, num_passes)
        outputs_KNP: list[torch.Tensor] = [torch.empty(0)] * num_passes
        for s, drawn_NJ in enumerate(known.drawn(condition_NJ, count)):
            drawn_NM = number_NM.clone()
            drawn_NM[:, -drawn_NJ.shape[1] :] = torch.from_numpy(drawn_NJ).to(number_NM)
            outputs_KNP[s::count] = self._thinned(x_NCHW, drawn_NM, range(s, num_passes, count)).outputs_NKP.unbind(1)
        return torch.stack(outputs_KNP, dim=1)
