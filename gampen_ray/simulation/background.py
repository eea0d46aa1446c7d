"""Galaxies on a survey's own sky: simulated ones, added to the pixels of its coadd tiles.

Noise and its correlation, the residual sky, other galaxies, stars and artefacts are the tile's, and so is the width of the PSF
where the survey states it. A galaxy keeps from a brighter source the distance that it keeps in `gampen_ray.simulation.scene`.
Each has a cutout of its own, so that no two meet. Shape legend: N galaxies, H x W pixels.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import ndimage

from gampen_ray.config.scene import SceneConfig
from gampen_ray.data.cutouts import CutoutError, fit_to_size, without_blanks
from gampen_ray.data.tiles.cutting import Tile
from gampen_ray.data.tiles.footprint import Footprint, Selection
from gampen_ray.data.tiles.planning import selected
from gampen_ray.errors import UserError
from gampen_ray.simulation.dataset import Simulated
from gampen_ray.simulation.galaxies import Galaxy
from gampen_ray.simulation.inputs import Inputs
from gampen_ray.simulation.render import Psf, render
from gampen_ray.simulation.scene import draw_psf, draw_target, exclusion_arcsec, near, stream, streams
from gampen_ray.simulation.surveys import Survey

__all__ = ["Background", "survey_on"]

_ATTEMPTS = 20
"""Places that are tried for a galaxy."""
_SAME_FWHM = 0.01
"""Relative difference of the width of a PSF from the one that the survey states."""
_PEAK_SIGMA = 5.0
"""Significance, of 3 x 3 pixels, of a source beside which galaxies are placed."""
_REACH = np.arange(1.0, 3.01, 0.25)
"""Radii, exclusion radii, within which the light of the sky is compared with the galaxy's."""


def survey_on(survey: Survey, footprint: Footprint, band: str) -> Survey:
    """Return a survey preset with a band's pixels of a footprint; populations, gain and flux unit remain the preset's."""
    return dataclasses.replace(survey, band=band, pixel_scale_arcsec=footprint.select((band,)).pixel_scale_arcsec)


class _Pending:
    """A galaxy that looks for a place."""

    def __init__(self, background: "Background", index: int, width: int, height: int) -> None:
        self.index, self.rng = index, streams(background.seed, index)
        self._most = np.array([width, height]) - background.size
        galaxy, self.row = draw_target(self.rng, background.survey, background.scene, background.inputs, background.size)
        self.galaxy: Galaxy = galaxy
        self.psf: Psf | None = None
        self.beside = bool(self.rng["place"].random() < background.scene.neighbours.companions)
        self.reason = ""
        self.first_2 = self._anywhere()

    def _anywhere(self) -> np.ndarray:
        return np.floor(self.rng["place"].uniform(0, self._most + 1, 2)).astype(np.int64).clip(0, self._most)

    def elsewhere(self, reason: str) -> None:
        """Draw another place."""
        self.first_2, self.reason = self._anywhere(), reason

    def beside_source(self, sky_HW: np.ndarray, noise: float, scale_arcsec: float) -> None:
        """Move beside the brightest source of the cutout, if there is one, at a distance uniform to the cutout's edge."""
        self.beside, size = False, len(sky_HW)
        smooth_HW = ndimage.uniform_filter(sky_HW, 3, mode="nearest")
        y, x = np.unravel_index(smooth_HW.argmax(), smooth_HW.shape)
        nearest = exclusion_arcsec(self.row) / scale_arcsec
        angle, share = self.rng["place"].uniform(0, 2 * math.pi), self.rng["place"].random()
        if smooth_HW[y, x] < _PEAK_SIGMA * noise / 3:
            return
        distance = nearest + share * max(0.0, 0.5 * size - nearest)
        target_2 = np.array([x + distance * math.cos(angle), y + distance * math.sin(angle)])
        self.first_2 = np.rint(self.first_2 + target_2 - 0.5 * (size - 1)).astype(np.int64).clip(0, self._most)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Background:
    """The sky of a footprint in one band; small enough to send to every task.

    Parameters
    ----------
    footprint
        URI of the footprint.
    band
        Its band.
    survey
        Populations, gain and flux unit, see `survey_on`.
    scene
        Galaxies, PSF and photon noise; ``neighbours.companions`` of the galaxies are placed beside a source of the sky.
    inputs
        Content of the files that the scene names.
    size
        Side of the cutouts, pixels.
    seed
        Another seed gives other galaxies at other places.
    """

    footprint: str
    band: str
    survey: Survey
    scene: SceneConfig
    inputs: Inputs
    size: int
    seed: int

    @property
    def _selection(self) -> Selection:
        return selected(self.footprint, (self.band,))

    def tiles(self, num_galaxies: int) -> dict[int, np.ndarray]:
        """Return the indices of the galaxies of each tile, by its place in the footprint.

        A galaxy's tile depends on the seed and its index alone; tiles get galaxies in proportion to their pixels.

        Raises
        ------
        UserError
            If all tiles are smaller than a cutout, or a tile states no width of the PSF, and the scene gives none.
        """
        footprint = self._selection.footprint
        rows = footprint.table.filter(pa.array(footprint.table["band"].to_numpy() == self.band))
        by_map_T = rows["psf"].combine_chunks().field("path").to_numpy(zero_copy_only=False) != ""
        silent_T = ~by_map_T & np.isnan(rows["psf_fwhm_arcsec"].to_numpy())
        if silent_T.any() and not self._psf_is_given:
            tile = rows["tile"][int(silent_T.argmax())]
            raise UserError(
                f"background: the tile {tile} states no width of the PSF; give scene.psf.stamps, or scene.psf.fwhm_arcsec, the "
                "smallest and largest FWHM"
            )
        place_T = np.searchsorted(footprint.names, rows["tile"].to_numpy())
        sides_2T = np.array([rows[name].to_numpy() for name in ("width", "height")], np.float64)
        room_T = np.maximum(sides_2T - self.size + 1, 0).prod(axis=0)
        if not room_T.any():
            raise UserError(f"cutout_size: {self.size} pixels, but no tile of {self.footprint} is as large; give a smaller one")
        draw_N = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(0,))).random(num_galaxies)
        share_T = np.cumsum(room_T) / room_T.sum()
        tile_N = place_T[np.searchsorted(share_T, draw_N, side="right").clip(0, len(room_T) - 1)]
        order_N = np.argsort(tile_N, kind="stable")
        found, starts = np.unique(tile_N[order_N], return_index=True)
        return dict(zip(found.tolist(), np.split(order_N, starts[1:]), strict=True))

    def simulate(self, tile: int, index_N: Sequence[int]) -> Simulated:
        """Add galaxies to a tile, each to pixels of its own."""
        (file,) = self._selection.files(tile)
        pending = [_Pending(self, index, file.grid.width, file.grid.height) for index in index_N]
        done: dict[int, tuple[dict[str, Any], np.ndarray]] = {}
        with Tile([file], self._selection.footprint.root, self.survey.zero_point_mag) as opened:
            for _ in range(_ATTEMPTS):
                if not pending:
                    break
                for galaxy, found in self._attempts(opened, pending):
                    done[galaxy.index] = found
                pending = [galaxy for galaxy in pending if galaxy.index not in done]
        indices = sorted(done)
        rows = [done[index][0] for index in indices]
        columns: dict[str, np.ndarray] = {"object_id": np.array(indices, np.int64)}
        if rows:
            x_N, y_N = (np.array([row[axis] for row in rows]) for axis in ("x", "y"))
            columns |= dict(zip(("ra", "dec"), file.grid.sky(x_N, y_N), strict=True))
            columns |= {name: np.array([row[name] for row in rows]) for name in rows[0]}
            columns |= {"tile": np.full(len(rows), self._selection.names[tile])}
            columns["image"] = np.stack([done[index][1] for index in indices])[:, None]
        return Simulated(columns, {galaxy.index: galaxy.reason for galaxy in pending})

    def _attempts(self, opened: Tile, pending: list[_Pending]) -> Iterator[tuple[_Pending, tuple[dict[str, Any], np.ndarray]]]:
        """Yield the galaxies whose present place suits them, with columns and image; the others get another place."""
        middle = 0.5 * (self.size - 1)
        first_N2 = np.array([galaxy.first_2 for galaxy in pending])
        for cuts in opened.cut(first_N2[:, 0] + middle, first_N2[:, 1] + middle, self.size):
            for place, number in enumerate(cuts.rows_N.tolist()):
                galaxy, image_HW = pending[number], cuts.image_NCHW[place, 0]
                if cuts.reason_N[place]:
                    galaxy.elsewhere(str(cuts.reason_N[place]))
                    continue
                noise = float(cuts.sky_noise_NC[place, 0])
                if reason := self._set_psf(galaxy, float(cuts.psf_fwhm_arcsec_NC[place, 0])):
                    galaxy.elsewhere(reason)
                    continue
                try:
                    kept_CHW = without_blanks(image_HW[None])
                    (filled_HW,) = fit_to_size(kept_CHW, self.size, (self.scene.masks.fill,))
                except CutoutError as error:
                    galaxy.elsewhere(str(error))
                    continue
                sky_HW = filled_HW - np.median(filled_HW)
                if galaxy.beside:
                    galaxy.beside_source(sky_HW, noise, self.survey.pixel_scale_arcsec)
                    continue
                if self._is_hidden(galaxy, sky_HW):
                    galaxy.elsewhere("a brighter source is at each place that was tried")
                    continue
                yield galaxy, self._added(galaxy, filled_HW, sky_HW, noise, float(cuts.masked_share_N[place]))

    def _set_psf(self, galaxy: _Pending, fwhm_arcsec: float) -> str:
        """Draw the PSF at a place, and return why none can be had there; empty: it can."""
        known = math.isfinite(fwhm_arcsec)
        if not known and not self._psf_is_given:
            return "the width of the PSF is unknown: the survey's map has no value"
        # The same at each place but for its width.
        rng = stream(self.seed, galaxy.index, "psf")
        galaxy.psf, columns = draw_psf(rng, self.survey, self.scene.psf, self.inputs, fwhm_arcsec if known else None)
        galaxy.row |= columns
        if known and not self.scene.psf.stamps and abs(columns["psf_fwhm_arcsec"] / fwhm_arcsec - 1) > _SAME_FWHM:
            pixel = f"{self.survey.pixel_scale_arcsec:.3g} arcsec"
            return f"the width of the PSF is {fwhm_arcsec:.3g} arcsec: a star on pixels of {pixel} is not so narrow"
        return ""

    @property
    def _psf_is_given(self) -> bool:
        return bool(self.scene.psf.stamps) or self.scene.psf.fwhm_arcsec is not None

    def _is_hidden(self, galaxy: _Pending, sky_HW: np.ndarray) -> bool:
        """Return whether a source of the sky is brighter than the galaxy and too near, as `scene` has it."""
        scale = self.survey.pixel_scale_arcsec
        x, y = (0.5 * (self.size - 1) + galaxy.row[f"{axis}_offset_pixel"] for axis in "xy")
        place = np.arange(self.size)
        distance_HW = np.hypot(place - x, place[:, None] - y) / (exclusion_arcsec(galaxy.row) / scale)
        return any(sky_HW[distance_HW <= reach].sum() > galaxy.galaxy.flux * 10 ** (reach - 1) for reach in _REACH)

    def _added(
        self, galaxy: _Pending, background_HW: np.ndarray, sky_HW: np.ndarray, noise: float, masked: float
    ) -> tuple[dict[str, Any], np.ndarray]:
        scale = self.survey.pixel_scale_arcsec
        assert galaxy.psf is not None
        light_HW = render([galaxy.galaxy], psf=galaxy.psf, pixel_scale_arcsec=scale, size=self.size)
        image_HW = background_HW + light_HW
        if self.scene.noise.photons:
            sigma_HW = np.sqrt(np.maximum(light_HW, 0) / self.survey.electrons_per_flux)
            image_HW = image_HW + sigma_HW * galaxy.rng["noise"].standard_normal(light_HW.shape)
        middle = galaxy.first_2 + 0.5 * (self.size - 1)
        row = galaxy.row | {
            "x": float(middle[0] + galaxy.row["x_offset_pixel"]),
            "y": float(middle[1] + galaxy.row["y_offset_pixel"]),
            "sky_noise": noise,
            "neighbour_flux_fraction": float((sky_HW * near(self.size, galaxy.row, scale)).sum() / galaxy.galaxy.flux),
            "masked_fraction": masked,
        }
        return row, image_HW.astype(np.float32)
