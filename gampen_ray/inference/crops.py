"""Write the learned crop of an image file as a FITS file, in the units and coordinates of the original.

GaMPEN's autocrop writes the first channel of the stretched network input. Here the network predicts the affine map from the
stretched image, and the map is applied to the stored pixels. Shape legend: N galaxies, C bands, H x W pixels.
"""

import dataclasses
import gzip
import io
import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from astropy.io import fits

from gampen_ray.config import ReaderConfig
from gampen_ray.data.agreement import agreed
from gampen_ray.data.cutouts import Cutout, CutoutError, central, fit_to_size, noise_to_size, overlap, without_blanks
from gampen_ray.data.image_reading import raised
from gampen_ray.data.reader_process import map_header, read_file
from gampen_ray.data.readers import chosen_readers
from gampen_ray.data.shards import DatasetInfo
from gampen_ray.errors import UserError
from gampen_ray.inference.bundle import Bundle
from gampen_ray.inference.flags import Flag, crop_at_bound
from gampen_ray.model.spatial_transformer import crop_images, crop_scale

__all__ = ["CropInput", "Cropper", "crop_name", "pixel_map"]

_FITS_NAME = re.compile(r"\.(fits?|fts)(\.[fg]z)?$", re.IGNORECASE)

_HISTORY = (
    # At most 72 characters per line.
    "gampen-ray crop: the spatial transformer's crop of the file of this",
    "name, or of a galaxy of TILE, resampled bilinearly; flux is conserved:",
    "pixels were multiplied by GRAREA. x_file = GRA1_1 x + GRA1_2 y + GRB1,",
    "y_file = GRA2_1 x + GRA2_2 y + GRB2 in FITS pixels (from 1) of the file",
    "or the tile. Zero beyond the network's input.",
)


def crop_name(name: str) -> str:
    """Return the name of a file's crop: the same, with ``.fits`` appended unless it is that of a FITS file."""
    return name if _FITS_NAME.search(name) else f"{name}.fits"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CropInput:
    """What a crop is made of.

    Parameters
    ----------
    planes
        Image (C x H x W) of the network's size, in its own flux unit, and the noise planes that the network takes.
    factor
        From that unit to the network's.
    header
        Of the image of which it is a part.
    shape
        Height and width of what was cropped or zero-padded about its centre to the network's size, pixels.
    origin_2
        (x, y) of the first pixel of that in the image of the header, pixels from 0.
    condition_J
        Values of the bundle's conditions; where one is not finite, the training galaxies' mean is taken. None: for all.
    flags
        What was done to the image before, a sum of `gampen_ray.inference.flags.Flag` values.
    """

    planes: np.ndarray
    factor: float
    header: fits.Header
    shape: tuple[int, int]
    origin_2: tuple[int, int] = (0, 0)
    condition_J: np.ndarray | None = None
    flags: int = 0


class Cropper:
    """Maps the content of image files to that of FITS files with their learned crops.

    Parameters
    ----------
    bundle
        Trained model.
    digest
        Fingerprint of the bundle, for the headers.
    crop_size
        Side of the crops, pixels; 0: as the network sees them.
    oversampling
        Each pixel is the mean of this many bilinear samples per side; 0: 4 where the crop's pixels are larger than the file's,
        else 1. Single samples, which the network uses, change the flux of objects narrower than a pixel.
    reader
        Settings of the reader, except what the bundle decides; None: defaults.
    device
        Where the spatial transformer runs.

    Raises
    ------
    UserError
        If the bundle has no spatial transformer, or a crop would have a single pixel.
    """

    def __init__(
        self,
        bundle: Bundle,
        digest: str,
        *,
        crop_size: int = 0,
        oversampling: int = 0,
        reader: ReaderConfig | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        if bundle.network.transformer is None:
            raise UserError(
                "bundle: its network has no spatial transformer (family none), and so no crops; give another bundle"
            )
        self._network = bundle.network.to(device)
        self._crop_size = crop_size or bundle.network.transformer.output_size
        if self._crop_size < 2:
            raise UserError(f"crop_size: a crop of {self._crop_size} pixel a side has no scale; give 2 or more")
        self._images, self._digest, self._device = bundle.images, digest, device
        self._oversampling = oversampling
        read = {"bands": bundle.images.bands, "noise_planes": bundle.images.noise_planes}
        self._reader = dataclasses.replace(reader or ReaderConfig(), **read)
        chosen_readers(self._reader)
        self._policies = self._reader.nan_policies(bundle.images.bands)

    def __call__(self, names: Sequence[str], contents: Sequence[bytes | CutoutError]) -> list[bytes | CutoutError]:
        """Return the crop of each file, or why there is none.

        Parameters
        ----------
        names
            Names of the files: crops of ``.gz`` files are gzipped, those of ``.fz`` files tile-compressed without loss.
        contents
            Content of the files, or why it could not be read.
        """
        return self.crop(names, [self._read(name, content) for name, content in zip(names, contents, strict=True)])

    def crop(self, names: Sequence[str], inputs: Sequence[CropInput | CutoutError]) -> list[bytes | CutoutError]:
        """Return the crop of each input, or why there is none; names as for files."""
        good = [item for item in inputs if isinstance(item, CropInput)]
        maps = iter(self._affine(good) if good else ())
        return [
            self._crop(name, item, next(maps)) if isinstance(item, CropInput) else item
            for name, item in zip(names, inputs, strict=True)
        ]

    def _read(self, name: str, content: bytes | CutoutError) -> CropInput | CutoutError:
        try:
            cutout = read_file(raised(content), name, self._reader)
            inside_CHW = without_blanks(central(cutout.image_CHW, self._images.size))
            planes = [fit_to_size(inside_CHW, self._images.size, self._policies, self._images.bands)]
            if self._images.noise_planes:
                planes.append(noise_to_size(cutout, inside_CHW, self._images.size, self._images.bands))
            shape = cutout.image_CHW.shape[1:]
            return CropInput(
                planes=np.concatenate(planes),
                factor=self._factor(cutout),
                header=cutout.header,
                shape=shape,
                flags=0 if np.isfinite(inside_CHW).all() else Flag.PIXELS_FILLED,
            )
        except CutoutError as error:
            return error

    def _factor(self, cutout: Cutout) -> float:
        # From the flux unit of a file to that of the network, where both are known; refuses another pixel scale or band.
        fields = ("zero_point_mag", "pixel_scale_arcsec")
        both = [name for name in fields if None not in (getattr(cutout, name), getattr(self._images, name))]
        known: dict[str, Any] = {name: getattr(self._images, name) for name in both}
        info = DatasetInfo(bands=self._images.bands, cutout_size=self._images.size, **known)
        said: dict[str, Any] = {name: getattr(cutout, name) for name in both}
        one = Cutout(np.ones((1, 1, 1)), band=cutout.band, **said)
        return float(agreed(one, self._reader, info, origin="the bundle").image_CHW[0, 0, 0])

    @torch.inference_mode()
    def _affine(self, items: Sequence[CropInput]) -> np.ndarray:
        image_NCHW = np.stack([item.planes * np.float32(item.factor) for item in items])
        cutout_NCHW = torch.from_numpy(image_NCHW).to(self._device)
        mean_J = np.array([condition.mean for condition in self._images.conditions])
        # Files have no conditions.
        condition_NJ = np.stack([mean_J if item.condition_J is None else item.condition_J for item in items])
        filled_NJ = torch.from_numpy(np.where(np.isfinite(condition_NJ), condition_NJ, mean_J)).float()
        inputs = self._images.inputs(cutout_NCHW, filled_NJ)
        return self._network.crop(*inputs)[1].double().cpu().numpy()

    def _crop(self, name: str, item: CropInput, theta_23: np.ndarray) -> bytes | CutoutError:
        sides = {"size": self._images.size, "crop_size": self._crop_size}
        matrix_22, offset_2 = pixel_map(theta_23, shape=item.shape, **sides)
        offset_2 = offset_2 + item.origin_2
        area = abs(np.linalg.det(matrix_22)) if np.isfinite(theta_23).all() else 0.0
        image_CHW = item.planes[: len(self._images.bands)]
        crop_CHW = area * self._resampled(image_CHW, theta_23, self._oversampling or (4 if area > 1 else 1))
        # The file stores float32, and a map without area has no inverse.
        if not (area > 0 and np.abs(crop_CHW).max() <= np.finfo(np.float32).max):
            return CutoutError("the network gives no finite crop: extreme pixel values")
        with warnings.catch_warnings():
            # Non-standard headers are common and harmless.
            warnings.simplefilter("ignore")
            try:
                header = map_header(item.header, matrix_22, offset_2)
            except CutoutError as error:
                return error
            header.update(self._cards(theta_23, matrix_22, offset_2))
            padded = Flag.INPUT_PADDED if min(item.shape) < self._images.size else 0
            bound = Flag.CROP_AT_BOUND if crop_at_bound(theta_23[None])[0] else 0
            header["GRFLAGS"] = (int(item.flags | padded | bound), "done to the image, as flags of a catalogue")
            for line in _HISTORY:
                header.add_history(line)
            return _fits_bytes(crop_name(name), crop_CHW.astype(np.float32), header)

    def _resampled(self, image_CHW: np.ndarray, theta_23: np.ndarray, samples: int) -> np.ndarray:
        side = samples * self._crop_size
        # The outermost samples lie beyond the centres of the outermost pixels.
        theta_23 = np.hstack([theta_23[:, :2] * (side - 1) / (side - samples), theta_23[:, 2:]])
        # Double precision, to match the coordinates in the header.
        image_1CHW, theta_123 = (torch.from_numpy(array).double()[None] for array in (image_CHW, theta_23))
        return F.avg_pool2d(crop_images(image_1CHW, theta_123, side), samples)[0].numpy()

    def _cards(self, theta_23: np.ndarray, matrix_22: np.ndarray, offset_2: np.ndarray) -> dict[str, Any]:
        # FITS counts pixels from one.
        origin_2 = offset_2 + 1 - matrix_22.sum(axis=1)
        scale = float(crop_scale(torch.from_numpy(theta_23)[None])[0])
        return {
            # SHA-256 leaves no room for a comment.
            "GRBUNDLE": self._digest,
            "GRSCALE": (scale, "side of the crop / side of the network's input"),
            "GRBANDS": (",".join(self._images.bands), "of the planes"),
            "GRINPUT": (self._images.size, "[pix] side of the network's input"),
            "GRAREA": (abs(np.linalg.det(matrix_22)), "pixel area over that of the file's pixels"),
            **{f"GRA{i + 1}_{j + 1}": (matrix_22[i, j], "map to the file's pixels") for i in (0, 1) for j in (0, 1)},
            **{f"GRB{i + 1}": (origin_2[i], "map to the file's pixels") for i in (0, 1)},
        }


def pixel_map(theta_23: np.ndarray, *, shape: tuple[int, int], size: int, crop_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return matrix A (2 x 2) and offset b (2) of the map p = A p' + b from the crop's pixels to the file's.

    Pixels are (x, y), zero at the centre of the first one.

    Parameters
    ----------
    theta_23
        Affine map of the spatial transformer: [-1, 1] are the centres of the corner pixels, of the crop and of the network's
        input.
    shape
        Height and width of the file's image, pixels, before `gampen_ray.data.cutouts.fit_to_size`.
    size, crop_size
        Sides of the network's input and of the crop, pixels.
    """
    linear_22, shift_2 = theta_23[:, :2], theta_23[:, 2]
    low_2 = np.array([pad.start - crop.start for crop, pad in (overlap(length, size) for length in reversed(shape))])
    offset_2 = (shift_2 + 1 - linear_22.sum(axis=1)) * (size - 1) / 2 - low_2
    return linear_22 * (size - 1) / (crop_size - 1), offset_2


def _fits_bytes(name: str, image_CHW: np.ndarray, header: fits.Header) -> bytes:
    pixels = image_CHW[0] if len(image_CHW) == 1 else image_CHW
    hdus = [fits.PrimaryHDU(pixels, header)]
    if name.lower().endswith(".fz"):
        # Without quantisation: lossless.
        hdus = [fits.PrimaryHDU(), fits.CompImageHDU(pixels, header, compression_type="GZIP_2", quantize_level=0)]
    buffer = io.BytesIO()
    fits.HDUList(hdus).writeto(buffer, output_verify="ignore")
    # Without the time, so that every run gives the same file.
    return gzip.compress(buffer.getvalue(), mtime=0) if name.lower().endswith(".gz") else buffer.getvalue()
