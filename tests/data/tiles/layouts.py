"""Tiles of every survey as its releases write them: a simulated sky, cut into overlapping tiles on grids of their own.

Shape legend: H x W pixels, N sources.
"""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

SIDE, SIGMA = 112, 1.4
"""Side of a tile, and width of a source, pixels."""
BANDS = ("g", "r")
_SPACING = 16
_SHIFT = 72
"""Pixels from a tile to the next: they overlap by 40."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a survey writes a tile in one band.

    Parameters
    ----------
    write
        From folder, name of the tile, band and what it holds to files.
    tiles
        Names of four tiles.
    scale_arcsec, zero_point_mag
        Of its images.
    bands
        As the index has them.
    """

    write: Callable[["TileContent"], None]
    tiles: tuple[str, str, str, str]
    scale_arcsec: float
    zero_point_mag: float
    bands: tuple[str, ...] = BANDS
    noise: bool = True
    masks: bool = True
    psf_fwhm_arcsec: float = math.nan


@dataclasses.dataclass
class TileContent:
    """What a tile holds: pixels in the survey's unit, their noise (1 sigma), which are bad, and the cards of the WCS."""

    folder: Path
    tile: str
    band: str
    image_HW: np.ndarray
    noise_HW: np.ndarray
    bad_HW: np.ndarray
    cards: fits.Header

    def save(self, name: str, *hdus: Any) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        fits.HDUList(list(hdus)).writeto(path, overwrite=True)

    def header(self, **cards: Any) -> fits.Header:
        header = self.cards.copy()
        header.update(cards)
        return header

    def image(self, name: str = "", **cards: Any) -> Any:
        return fits.ImageHDU(self.image_HW, self.header(**cards), name or None)

    def primary(self, pixels_HW: np.ndarray | None = None, **cards: Any) -> Any:
        return fits.PrimaryHDU(self.image_HW if pixels_HW is None else pixels_HW, self.header(**cards))

    def packed(self, pixels_HW: np.ndarray, name: str = "", **cards: Any) -> Any:
        how: dict[str, Any] = {"compression_type": "GZIP_1", "quantize_level": 0, "tile_shape": (28, SIDE)}
        return fits.CompImageHDU(pixels_HW, self.header(**cards), name or None, **how)


def _hsc(t: TileContent) -> None:
    tract, patch = t.tile.split("-")
    planes = {"HIERARCH MP_BAD": 0, "HIERARCH MP_SAT": 1, "HIERARCH MP_NO_DATA": 8, "HIERARCH MP_DETECTED": 5}
    mask_HW = np.where(t.bad_HW, 1 << 8, 1 << 5).astype(np.int32)
    first = fits.PrimaryHDU(header=fits.Header({"FLUXMAG0": 10**10.8, "FILTER": t.band}))
    name = f"deepCoadd-results/HSC-{t.band.upper()}/{tract}/{patch}/calexp-HSC-{t.band.upper()}-{tract}-{patch}.fits"
    t.save(name, first, t.image(), fits.ImageHDU(mask_HW, fits.Header(planes)), fits.ImageHDU(t.noise_HW**2))


def _legacy(t: TileContent) -> None:
    stem = f"south/coadd/{t.tile[:3]}/{t.tile}/legacysurvey-{t.tile}"
    # NPRIMARY and ALLMASK spoil no pixel.
    mask_HW = np.where(t.bad_HW, 1 << 3, 1 << 0 | 1 << 6).astype(np.int16)
    t.save(f"{stem}-image-{t.band}.fits.fz", fits.PrimaryHDU(), t.packed(t.image_HW, BAND=t.band, BUNIT="nanomaggy"))
    t.save(f"{stem}-invvar-{t.band}.fits.fz", fits.PrimaryHDU(), t.packed(t.noise_HW**-2, BUNIT="1/nanomaggy^2"))
    t.save(f"{stem}-psfsize-{t.band}.fits.fz", fits.PrimaryHDU(), t.packed(np.full_like(t.image_HW, 1.25)))
    if t.band == "g":
        t.save(f"{stem}-maskbits.fits.fz", fits.PrimaryHDU(), t.packed(mask_HW), t.packed(np.zeros_like(mask_HW)))


def _des(t: TileContent) -> None:
    # TPV: radial terms, and a linear one that differs from 1.
    tpv = {"CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV", "PV1_1": 1.0, "PV1_7": 3e-3, "PV2_1": 1.0, "PV2_7": -2e-3}
    assert t.cards["CTYPE1"] == tpv["CTYPE1"]
    planes = (t.packed(t.image_HW, "SCI", MAGZERO=30.0, FILTER=f"{t.band} DECam SDSS c0001 4720.0 1520.0"),)
    planes += (t.packed(t.bad_HW.astype(np.int16), "MSK"), t.packed(t.noise_HW**-2, "WGT"))
    t.save(f"{t.tile}/{t.tile}_r2587p01_{t.band}.fits.fz", fits.PrimaryHDU(), *planes)


def _kids(t: TileContent) -> None:
    stem = f"KiDS_DR4.0_{t.tile}_{t.band}"
    t.save(f"{stem}_sci.fits", t.primary())
    t.save(f"{stem}_wei.fits", t.primary((~t.bad_HW).astype(np.float32)))
    # Halos spoil no pixel.
    t.save(f"{stem}_msk.fits", t.primary(np.where(t.bad_HW, 2, 16).astype(np.int32)))


def _ps1(t: TileContent) -> None:
    stem = f"rings.v3.skycell.{t.tile}.stk.{t.band}.unconv"
    a, softening, offset = 1.0857362047581296, 2.0, 0.5
    cards: dict[str, Any] = {"EXPTIME": 100.0, "HIERARCH FPA.ZP": 25.0, "HIERARCH FPA.FILTERID": f"{t.band}.00000"}
    squeezed = {"BSOFTEN": softening, "BOFFSET": offset}
    compressed_HW = a * np.arcsinh((t.image_HW.astype(np.float64) - offset) / (2 * softening))
    t.save(f"{stem}.fits", fits.PrimaryHDU(), t.packed(compressed_HW, **cards, **squeezed))
    t.save(f"{stem}.wt.fits", fits.PrimaryHDU(), t.packed(t.noise_HW**2, **cards))
    t.save(f"{stem}.mask.fits", fits.PrimaryHDU(), t.packed(np.where(t.bad_HW, 8, 512).astype(np.int16)))


def _sdss(t: TileContent) -> None:
    t.save(f"frame-{t.band}-{t.tile}.fits.bz2", t.primary(NMGY=0.005, FILTER=t.band), fits.ImageHDU(np.ones(SIDE)))


def _euclid(t: TileContent) -> None:
    band = {"VIS": "VIS", "J": "NIR-J"}[t.band]
    for time, shift in (("20230101T000000.0Z_00.00", 1.0), ("20241018T214045.2Z_00.00", 0.0)):
        end = f"_TILE{t.tile}-66AFEC_{time}.fits"
        t.save(f"{t.tile}/{t.band}/EUC_MER_BGSUB-MOSAIC-{band}{end}", t.primary(t.image_HW + np.float32(shift), MAGZERO=23.9))
        t.save(f"{t.tile}/{t.band}/EUC_MER_MOSAIC-{band}-RMS{end}", t.primary(t.noise_HW))
        t.save(f"{t.tile}/{t.band}/EUC_MER_MOSAIC-{band}-FLAG{end}", t.primary(np.where(t.bad_HW, 1, 2).astype(np.int32)))


def _rubin(t: TileContent, *, new: bool = False) -> None:
    names = {0: "BAD", 1: "SAT", 8: "NO_DATA"}
    planes = (
        {f"MSKN{bit:04d}": name for bit, name in names.items()}
        if new
        else {f"HIERARCH MP_{n}": bit for bit, n in names.items()}
    )
    variance_HW = np.where(t.bad_HW, np.inf, t.noise_HW**2).astype(np.float32)
    mask = fits.ImageHDU(np.where(t.bad_HW, 1 << 8, 0).astype(np.int32), fits.Header(planes), "MASK")
    hdus = [t.image("IMAGE", BUNIT="nJy", FILTER=t.band), mask, fits.ImageHDU(variance_HW, name="VARIANCE")]
    table = fits.BinTableHDU.from_columns([fits.Column("x", "J", array=[1, 2])], name="INDEX")
    tract, patch = t.tile.split("-")
    t.save(f"deep_coadd_{tract}_{patch}_{t.band}_lsst_cells_v1.fits", fits.PrimaryHDU(), *hdus, table)


def _jwst(t: TileContent) -> None:
    # HDUs in another order than usual, SIP.
    hdus = [fits.ImageHDU(t.noise_HW, name="ERR"), t.image("SCI", BUNIT="MJy/sr", PIXAR_SR=1e-14)]
    band = {"F200W": "clear-f200w", "F444W": "clear-f444w"}[t.band]
    first = fits.PrimaryHDU(header=fits.Header({"FILTER": t.band, "PUPIL": "CLEAR"}))
    t.save(f"{t.tile}_{band}_i2d.fits.gz", first, *hdus)


def _hst(t: TileContent) -> None:
    first = fits.PrimaryHDU(header=fits.Header({"FILTER1": t.band, "FILTER2": "CLEAR2L", "EXPTIME": 2000.0}))
    cards: dict[str, Any] = {"BUNIT": "ELECTRONS/S", "PHOTFLAM": 7.0e-20, "PHOTPLAM": 8045.0}
    weight_HW = np.where(t.bad_HW, 0, 2000).astype(np.float32)
    name = f"hst_{t.tile}_acs_wfc_{t.band.lower()}_all_drc.fits"
    t.save(name, first, t.image("SCI", **cards), fits.ImageHDU(weight_HW, name="WHT"))


def roman_tree(image_HW: np.ndarray, noise_HW: np.ndarray, weight_HW: np.ndarray, cards: fits.Header, band: str) -> Any:
    """Return what a mosaic of Roman's holds, by RAD's schemas, on the grid of a header with CD cards."""
    height, width = image_HW.shape
    cd_22 = np.array([[cards[f"CD{row}_{column}"] for column in (1, 2)] for row in (1, 2)])
    scale = math.sqrt(abs(np.linalg.det(cd_22)))
    wcs = WCS(cards)
    ra, dec = wcs.all_pix2world((width - 1) / 2, (height - 1) / 2, 0)
    corners = wcs.all_pix2world([-0.5, -0.5, width - 0.5, width - 0.5], [-0.5, height - 0.5, height - 0.5, -0.5], 0)
    wcsinfo = {
        "ra_ref": cards["CRVAL1"],
        "dec_ref": cards["CRVAL2"],
        "x_ref": cards["CRPIX1"] - 1,
        "y_ref": cards["CRPIX2"] - 1,
        "pixel_scale_ref": scale,
        "rotation_matrix": (cd_22 / scale).tolist(),
        "projection": "TAN",
        "ra": float(ra),
        "dec": float(dec),
        "s_region": "POLYGON ICRS " + " ".join(f"{value:.9f}" for value in np.transpose(corners).ravel()),
    }
    meta = {"wcsinfo": wcsinfo, "instrument": {"optical_element": band}, "cal_step": {"flux": "COMPLETE"}}
    context = np.ones((1, height, width), np.uint32)
    return {"roman": {"meta": meta, "data": image_HW, "context": context, "err": noise_HW, "weight": weight_HW}}


def _roman(t: TileContent) -> None:
    asdf = pytest.importorskip("asdf", reason="writes the files")
    # One band as the pipeline writes it, and one as a user may.
    compression = "lz4" if t.band == "F158" else None
    weight_HW = np.where(t.bad_HW, 0 if t.band == "F158" else np.nan, 100).astype(np.float32)
    tree = roman_tree(t.image_HW, t.noise_HW, weight_HW, t.cards, t.band)
    t.folder.mkdir(exist_ok=True)
    path = t.folder / f"{t.tile}_{t.band.lower()}_coadd.asdf"
    asdf.AsdfFile(tree).write_to(path, all_array_compression=compression)


LAYOUTS = {
    "hsc": Layout(_hsc, ("9813-4,4", "9813-4,5", "9813-5,4", "9813-5,5"), 0.168, 27.0),
    "legacy": Layout(_legacy, ("0591m305", "0593m305", "0591m302", "0593m302"), 0.262, 22.5, psf_fwhm_arcsec=1.25),
    "des": Layout(_des, tuple(f"DES000{i}-0207" for i in range(4)), 0.263, 30.0),
    "kids": Layout(_kids, ("0.0_-31.2", "1.1_-31.2", "0.0_-30.2", "1.1_-30.2"), 0.2, 0.0, noise=False),
    "ps1": Layout(_ps1, ("1234.050", "1234.051", "1234.060", "1234.061"), 0.25, 30.0),
    "sdss": Layout(_sdss, tuple(f"001000-1-010{i}" for i in range(4)), 0.396, 22.5, noise=False, masks=False),
    "euclid": Layout(_euclid, tuple(f"10201821{i}" for i in range(4)), 0.1, 23.9, bands=("VIS", "J")),
    "rubin": Layout(_rubin, ("10463-11", "10463-12", "10463-21", "10463-22"), 0.2, 31.4),
    "rubin-dp2": Layout(lambda t: _rubin(t, new=True), ("10463-11", "10463-12", "10463-21", "10463-22"), 0.2, 31.4),
    "jwst": Layout(_jwst, tuple(f"jw01234-o00{i}_t001_nircam" for i in range(4)), 0.03, 28.9, ("F200W", "F444W"), masks=False),
    "roman": Layout(_roman, tuple(f"r00001_p_full_270p65x4{i}y69" for i in range(4)), 0.055, 26.7704, bands=("F106", "F158")),
    "hst": Layout(
        _hst, tuple(f"skycell-p0081x0{i}y15" for i in range(4)), 0.05, 25.9516, bands=("F606W", "F814W"), noise=False
    ),
}
"""By name: that of the preset, and what differs."""


@dataclasses.dataclass
class Sky:
    """Simulated sources, and the pixels of the tiles that were written.

    Parameters
    ----------
    ra_N, dec_N, mag_NC
        Positions, deg, and AB magnitudes by band.
    pixels
        By tile and band: pixels in the survey's unit, and which have no value.
    wcs
        By tile.
    """

    ra_N: np.ndarray
    dec_N: np.ndarray
    mag_NC: np.ndarray
    pixels: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]
    wcs: dict[str, WCS]


def tile_cards(number: int, ra: float, dec: float, scale_arcsec: float, kind: str = "TAN") -> fits.Header:
    """Return the WCS of one of four tiles about a position: TAN, TAN-SIP or TPV."""
    shift = _SHIFT / 2 * scale_arcsec / 3600
    down, left = divmod(number, 2)
    declination = dec + (shift if down else -shift)
    name = {"TAN-SIP": "TAN-SIP", "TPV": "TPV"}.get(kind, "TAN")
    angle = math.radians(3.0)
    cd = scale_arcsec / 3600
    header = fits.Header()
    header["CTYPE1"], header["CTYPE2"] = f"RA---{name}", f"DEC--{name}"
    header["CRVAL1"] = (ra + (shift if left else -shift) / math.cos(math.radians(dec))) % 360
    header["CRVAL2"] = declination
    header["CRPIX1"] = header["CRPIX2"] = (SIDE + 1) / 2
    header["CD1_1"], header["CD1_2"] = -cd * math.cos(angle), cd * math.sin(angle)
    header["CD2_1"], header["CD2_2"] = cd * math.sin(angle), cd * math.cos(angle)
    header["RADESYS"] = "ICRS"
    if kind == "TAN-SIP":
        header["A_ORDER"] = header["B_ORDER"] = 2
        header["A_2_0"], header["B_0_2"], header["A_1_1"] = 2e-4, -1e-4, 1e-4
    if kind == "TPV":
        header["PV1_1"] = header["PV2_1"] = 1.0
        header["PV1_4"], header["PV2_4"] = 0.3, -0.2
    return header


def write_sky(
    folder: Path, layout: Layout, *, ra: float = 359.9995, dec: float = -1.2, kind: str = "TAN", seed: int = 0
) -> Sky:
    """Write four overlapping tiles of a survey in two bands; the sources are 16 pixels apart, and some pixels have no value."""
    rng = np.random.default_rng(seed)
    cards = {tile: tile_cards(number, ra, dec, layout.scale_arcsec, kind) for number, tile in enumerate(layout.tiles)}
    wcs = {tile: WCS(header) for tile, header in cards.items()}
    reach = (SIDE + _SHIFT) / 2 - 12
    steps = np.arange(-reach, reach, _SPACING)
    offset = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2) + rng.uniform(-2, 2, (len(steps) ** 2, 2))
    offset = offset * layout.scale_arcsec / 3600
    ra_N, dec_N = (ra - offset[:, 0] / math.cos(math.radians(dec))) % 360, dec + offset[:, 1]
    mag_NC = rng.uniform(18, 21, (len(ra_N), 2))
    pixels = {}
    for tile in layout.tiles:
        x_N, y_N = wcs[tile].all_world2pix(ra_N, dec_N, 0)
        for place, band in enumerate(layout.bands):
            flux_N = 10 ** (0.4 * (layout.zero_point_mag - mag_NC[:, place]))
            sigma = 1e-3 * float(flux_N.min())
            image_HW = rng.normal(0, sigma, (SIDE, SIDE))
            grid = np.arange(SIDE)
            for x, y, flux in zip(x_N, y_N, flux_N, strict=True):
                profiles = (np.exp(-((grid - at) ** 2) / (2 * SIGMA**2)) for at in (y, x))
                image_HW += flux / (2 * math.pi * SIGMA**2) * np.outer(*profiles)
            bad_HW = np.zeros((SIDE, SIDE), bool)
            if layout.masks:
                bad_HW[50:52, 20:30] = True
            noise_HW = np.full((SIDE, SIDE), sigma, np.float32)
            image_HW = image_HW.astype(np.float32)
            layout.write(TileContent(folder, tile, band, image_HW, noise_HW, bad_HW, cards[tile]))
            pixels[tile, band] = image_HW, bad_HW
    return Sky(ra_N, dec_N, mag_NC, pixels, wcs)
