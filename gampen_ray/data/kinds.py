"""What an image shows, by the words of its name: a name is that of an HDU (EXTNAME) or of a file.

Surveys and tools deliver weights, masks, PSFs and error maps beside the image of a galaxy; none of these is a galaxy.
"""

import bisect
import re
from collections.abc import Sequence
from typing import Any, Literal

__all__ = ["Kind", "hdu_kind", "hdu_name", "is_aside", "kind_of", "shows_galaxies", "without_siblings"]

Kind = Literal["", "science", "mask", "variance", "weight", "error", "psf", "other"]
"""Of an image; empty: its name does not say. ``variance`` and ``error`` grow with the noise, ``weight`` falls."""

_WORDS: dict[str, Kind] = {
    **dict.fromkeys(("sci", "science", "image", "img", "data", "flux", "fitim"), "science"),
    **dict.fromkeys(("mask", "masks", "msk", "mskim", "maskbits", "dq", "dqmask", "flag", "flags", "badpix", "bpm"), "mask"),
    **dict.fromkeys(("var", "variance"), "variance"),
    **dict.fromkeys(("wht", "weight", "weights", "wgt", "wei", "ivar", "invvar", "coverage", "wtmap"), "weight"),
    **dict.fromkeys(("err", "error", "errors", "rms", "sigma", "noise", "uncert", "unc", "std", "stddev"), "error"),
    **dict.fromkeys(("psf", "psfs", "psfim", "psfsize", "psfex"), "psf"),
    **dict.fromkeys(("seg", "segim", "segm", "segmap", "segmentation", "nexp", "depth", "galdepth", "psfdepth"), "other"),
    **dict.fromkeys(("model", "blobmodel", "resid", "residual", "residuals", "chi", "bkg", "background", "bgmod"), "other"),
    **dict.fromkeys(("preview", "thumb", "thumbnail", "quicklook"), "other"),
    # NOAO's pipelines for DECam, Mosaic and 90prime: c4d_170801_080516_ooi_g_v1, and _ood_ and _oow_ beside it.
    **dict.fromkeys(("ooi", "oki", "opi", "osi"), "science"),
    **dict.fromkeys(("ood", "okd", "opd", "osd"), "mask"),
    **dict.fromkeys(("oow", "okw", "opw", "osw"), "weight"),
}
_FILLERS = ("map", "maps")
# In the name of a file these may as well be part of that of a galaxy, such as one with an exponential profile.
_HDU_WORDS: dict[str, Kind] = dict.fromkeys(("con", "ctx", "exp", "sky", "wcsdvarr", "footprint"), "other")
_NAMES = ("EXTNAME", "DES_EXT", "IMAGETYP", "IMTYPE", "EXTTYPE")
_LETTERS = re.compile("[A-Za-z]+")
# A filter such as F115W and a word without a delimiter: F115Wsci.
_GLUED = re.compile(rf"(?<=\d[WMN])(?=(?:{'|'.join(_WORDS)})(?![a-z]))", re.IGNORECASE)


def kind_of(name: str) -> Kind:
    """Return what the HDU of a name shows: ``SCI``, ``VAR_POISSON``, ``MERRMS_VIS``, ...; the first known word decides."""
    for word in re.findall("[a-z]+", name.lower()):
        if kind := (_WORDS | _HDU_WORDS).get(word.removeprefix("mer")):
            return kind
    return ""


def shows_galaxies(name: str) -> bool:
    """Return whether images of a name may be those of galaxies: it is that of no mask, PSF or the like."""
    return kind_of(name) in ("", "science")


def hdu_name(hdu: Any) -> str:
    """Return the name of an HDU; some of the Legacy Surveys' and HSC's cutouts have other cards than EXTNAME."""
    names = (str(hdu.header.get(card) or "") for card in _NAMES)
    # fpack names every image so.
    return next((name for name in names if name not in ("", "COMPRESSED_IMAGE")), "")


def hdu_kind(hdu: Any) -> Kind:
    """Return what an HDU shows; see `kind_of`."""
    return kind_of(hdu_name(hdu))


def is_aside(folder: str) -> bool:
    """Return whether a folder holds masks, weights, PSFs or the like of images elsewhere, by its name."""
    return _WORDS.get(folder.lower()) in ("mask", "variance", "weight", "error", "psf")


def without_siblings(names: Sequence[str]) -> tuple[list[int], list[int]]:
    """Return which files show galaxies and which are their siblings (masks, weights, PSFs, ...), by index, in order.

    A file is a sibling if a word of its name says so and another file has the name without that word, or begins as it does
    before that word: ``G1mask`` beside ``G1`` or ``G1_r``, ``a_wht`` beside ``a_sci``, ``mask_G1`` beside ``G1``.

    Parameters
    ----------
    names
        Files by their names without a suffix such as ``.fits``.
    """
    # Of 10^6 names most have the same few words.
    words = {word.lower() for name in names for word in _LETTERS.findall(name)}
    if not any(_WORDS.get(word, "science") != "science" for inside in words for word in (inside, inside[1:])):
        return list(range(len(names))), []
    names = [_GLUED.sub("_", name) for name in names]
    split = [_split(name) for name in names]
    others = sorted(name for name, parts in zip(names, split, strict=True) if parts is None)
    bare = {_bare(name) for name in others}

    def has_partner(before: str, after: str) -> bool:
        if _bare(before + after) in bare:
            return True
        place = bisect.bisect_left(others, before)
        return bool(before) and place < len(others) and others[place].startswith(before)

    siblings = [row for row, parts in enumerate(split) if parts and has_partner(*parts)]
    return sorted(set(range(len(names))) - set(siblings)), siblings


def _split(name: str) -> tuple[str, str] | None:
    # What stands before and after the word that makes a file a sibling.
    for match in _LETTERS.finditer(name):
        if _WORDS.get(match[0].lower(), "science") != "science":
            return name[: match.start()].rstrip("-_. "), name[match.end() :]
    return None


def _bare(name: str) -> str:
    # The name without delimiters and words such as "sci" and "map".
    words = re.findall(r"[A-Za-z]+|\d+|[^\W_]", name)
    return " ".join(word for word in words if _WORDS.get(word.lower()) != "science" and word.lower() not in _FILLERS)
