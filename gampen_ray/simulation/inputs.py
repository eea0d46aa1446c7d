"""What a user gives to a simulation: PSF stamps, blank cutouts and a table of fitted galaxies."""

import dataclasses
import io

import numpy as np

from gampen_ray import storage
from gampen_ray.config import ReaderConfig
from gampen_ray.config.scene import SceneConfig
from gampen_ray.data.cutouts import CutoutError
from gampen_ray.data.image_files import image_uris, read_image
from gampen_ray.errors import UserError
from gampen_ray.provenance import content_fingerprint
from gampen_ray.simulation.noise import measure_autocorrelation
from gampen_ray.simulation.psf import StampPsf

__all__ = ["Inputs", "read_galaxies", "read_inputs"]

_COSMOS_PIXEL_ARCSEC = 0.03


@dataclasses.dataclass(frozen=True, eq=False)
class Inputs:
    """Content of the files that a `SceneConfig` names; None where it names none."""

    psfs: tuple[StampPsf, ...] | None = None
    noise_autocorrelation: np.ndarray | None = None
    """See `measure_autocorrelation`."""
    galaxies: dict[str, np.ndarray] | None = None
    """See `read_galaxies`."""

    @property
    def fingerprints(self) -> dict[str, str]:
        """Hash of the content by the (dotted) name of the config field that says where it lies."""
        content = {
            "scene.psf.stamps": [psf.stamp for psf in self.psfs or ()],
            "scene.noise.blank_cutouts": [] if self.noise_autocorrelation is None else [self.noise_autocorrelation],
            "scene.galaxies.catalog": list((self.galaxies or {}).values()),
        }
        return {name: content_fingerprint({}, *columns) for name, columns in content.items() if columns}


def read_inputs(scene: SceneConfig) -> Inputs:
    """Read the files that a scene names.

    Raises
    ------
    UserError
        If a folder or table is missing, empty or damaged, naming the field.
    """
    psfs = blank = galaxies = None
    if scene.psf.stamps:
        psfs = tuple(_psf("scene.psf.stamps", uri, image) for uri, image in _images("scene.psf.stamps", scene.psf.stamps))
    if scene.noise.blank_cutouts:
        images = _images("scene.noise.blank_cutouts", scene.noise.blank_cutouts)
        for uri, image in images:
            if np.isfinite(image).mean() < 0.5 or np.nanquantile(image, 0.25) == np.nanquantile(image, 0.75):
                raise UserError(f"scene.noise.blank_cutouts: {uri} holds no noise; take it out")
        blank = measure_autocorrelation([image for _, image in images])
    if scene.galaxies.catalog:
        galaxies = read_galaxies(scene.galaxies.catalog)
    return Inputs(psfs, blank, galaxies)


def read_galaxies(uri: str) -> dict[str, np.ndarray]:
    """Return the bulge + disk fits of a COSMOS catalogue of GalSim's (Leauthaud et al. 2007, ApJS 172, 219), one entry each.

    Returns
    -------
    dict of array
        ``magnitude`` (AB, F814W), ``effective_radius_arcsec`` (circularised, that of the single Sersic fit),
        ``bulge_to_total``, ``bulge_over_disk`` (circularised half-light radii, 0.02 to 5), ``bulge_axis_ratio``,
        ``disk_axis_ratio`` (at least 0.1), where both fits succeeded.

    Raises
    ------
    UserError
        If the file is not such a table.
    """
    from astropy.table import Table

    with storage.explained(uri):
        data = storage.read_bytes(uri)
    try:
        table = Table.read(io.BytesIO(data), format="fits", hdu=1)
        single, both, share = (np.asarray(table[name], float) for name in ("sersicfit", "bulgefit", "fit_dvc_btt"))
        magnitude, status = np.asarray(table["mag_auto"], float), np.asarray(table["fit_status"])
    except (OSError, KeyError, IndexError, ValueError) as error:
        raise UserError(
            f"scene.galaxies.catalog: {uri} is no table of COSMOS fits ({error}); give GalSim's *_fits.fits"
        ) from None
    disk, bulge = (both[:, 1 + first] * np.sqrt(np.abs(both[:, 3 + first])) for first in (0, 8))
    with np.errstate(divide="ignore", invalid="ignore"):
        columns = {
            "magnitude": magnitude,
            "effective_radius_arcsec": single[:, 1] * np.sqrt(np.abs(single[:, 3])) * _COSMOS_PIXEL_ARCSEC,
            "bulge_to_total": share,
            "bulge_over_disk": (bulge / disk).clip(0.02, 5),
            "bulge_axis_ratio": both[:, 11].clip(0.1, 1),
            "disk_axis_ratio": both[:, 3].clip(0.1, 1),
        }
    good = np.all([np.isfinite(values) for values in columns.values()], axis=0)
    good &= (share >= 0) & (share <= 1) & (disk > 0) & (bulge > 0) & (status[:, 0] > 0) & (status[:, -1] > 0)
    if not good.any():
        raise UserError(f"scene.galaxies.catalog: {uri} has no galaxy with both fits; give another table")
    return {name: values[good] for name, values in columns.items()}


def _images(field: str, folder: str) -> list[tuple[str, np.ndarray]]:
    """Read all images of a folder, in the order of their names."""
    images, reader = [], ReaderConfig(headers="ignore", max_mebibytes=1024)
    for uri in image_uris(field, folder):
        try:
            images.append((uri, read_image(uri, storage.read_bytes(uri), reader).image_HW))
        except CutoutError as error:
            raise UserError(f"{field}: {uri}: {error}") from None
    return images


def _psf(field: str, uri: str, stamp: np.ndarray) -> StampPsf:
    if not np.isfinite(stamp).all() or stamp.sum() <= 0 or any(side % 2 == 0 for side in stamp.shape):
        raise UserError(f"{field}: {uri} has even sides {stamp.shape}, non-finite pixels or no flux; give stamps of odd sides")
    return StampPsf.of(stamp)
