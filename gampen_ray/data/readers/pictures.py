"""JPEG and PNG pictures: refused, as they are stretched for display, unless the config allows them."""

import io

import numpy as np

from gampen_ray.config import ReaderConfig
from gampen_ray.data.cutouts import Cutout, CutoutError, too_large
from gampen_ray.data.readers.arrays import NOT_LINEAR, to_bands

__all__ = ["PictureReader"]

_MAGIC = (b"\x89PNG\r\n", b"\xff\xd8\xff")


class PictureReader:
    """A picture with a band a channel, or the channels' mean for one band; the first row is at the top, as in the file."""

    def reads(self, name: str, head: bytes) -> bool:
        return head.startswith(_MAGIC)

    def read(self, data: bytes, config: ReaderConfig) -> Cutout:
        if not config.allow_nonlinear:
            raise CutoutError(f"a JPEG or PNG file: {NOT_LINEAR}")
        # Comes with matplotlib.
        from PIL import Image

        with Image.open(io.BytesIO(data)) as picture:
            if (num_bytes := picture.width * picture.height * 4) > config.max_mebibytes << 20:
                raise too_large("the picture", num_bytes, config)
            pixels = np.asarray(picture.convert("RGB") if len(config.bands) == 3 else picture)
        if len(config.bands) == 1 and pixels.ndim == 3:
            pixels = pixels[..., :3].mean(axis=2)
        return Cutout(to_bands(pixels, config))
