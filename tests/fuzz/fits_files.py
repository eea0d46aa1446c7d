"""Mutated FITS files, each of which must give an image or a reason in time; prints JSON.

``python -m tests.fuzz.fits_files --count 10000 --seed 1``, and ``--streams`` for compressed images whose streams alone are
edited. A finding is reproduced by its seed and number: ``mutated(files(), seed, number)``.
"""

import argparse
import bz2
import functools
import gzip
import io
import json
import re
import resource
import sys
import time
from collections import Counter

import numpy as np
from astropy.io import fits

from gampen_ray.config import ReaderConfig
from gampen_ray.data.cutouts import CutoutError
from gampen_ray.data.reader_process import File, close, read_files

_SIDE, _CARD, _BLOCK = 24, 80, 2880
_NUMBERS = "0 -1 1 2 3 7 -16 9 10 99 999 1000 20000 30000 65536 2147483647 -2147483648 4294967297 1e308 -1e308 1e-320 NaN T"
_TEXTS = "'' 'RA---TAB' 'HCOMPRESS_1' 'RICE_1' 'GZIP_2' 'PLIO_1' '1QB(9999999)'"
_VALUES = f"{_NUMBERS} {_TEXTS}".split()
_STRUCTURE = "NAXIS NAXIS1 NAXIS2 NAXIS3 BITPIX PCOUNT GCOUNT TFIELDS THEAP TFORM1 TTYPE1 EXTEND GROUPS XTENSION EXTNAME END"
_COMPRESSION = "ZNAXIS ZNAXIS1 ZTILE1 ZTILE2 ZBITPIX ZCMPTYPE ZVAL1 ZNAME1 ZQUANTIZ ZSCALE ZZERO ZDITHER0 ZBLANK"
_PIXELS = "BSCALE BZERO BLANK BSOFTEN BOFFSET WCSAXES A_ORDER B_ORDER AP_ORDER CRVAL1 CRPIX1 CD1_1 CDELT1 CTYPE1 CTYPE2 PV1_1"
_NAMES = f"{_STRUCTURE} {_COMPRESSION} {_PIXELS}".split()


@functools.cache
def files() -> dict[str, bytes]:
    """Return intact files of many kinds by name."""
    rng = np.random.default_rng(0)
    pixels = rng.normal(100, 10, (_SIDE, _SIDE)).astype(np.float32)
    integers = pixels.astype(np.int16)
    plain = _file(fits.PrimaryHDU(pixels, _header()))
    scaled = fits.PrimaryHDU(integers, _header(BSCALE=0.5, BZERO=3.0, BLANK=100))
    mask, variance = fits.ImageHDU((integers > 110).astype(np.int32), name="MASK"), fits.ImageHDU(pixels, name="VARIANCE")
    mask.header["HIERARCH MP_NO_DATA"] = 3
    sip = _header(A_ORDER=2, B_ORDER=2, A_2_0=1e-5, B_0_2=1e-5, CTYPE1="RA---TAN-SIP", CTYPE2="DEC--TAN-SIP")
    tpv = _header(PV1_1=1.0, PV1_4=1e-3, PV2_1=1.0, CTYPE1="RA---TPV", CTYPE2="DEC--TPV")
    table = fits.BinTableHDU.from_columns([fits.Column("a", "J", array=[1, 2])])
    made = {
        "plain": plain,
        "double": _file(fits.PrimaryHDU(pixels.astype(np.float64), _header())),
        "scaled": _file(scaled),
        "extensions": _file(fits.PrimaryHDU(), fits.ImageHDU(pixels, _header(), name="SCI"), mask, variance, table),
        "cube": _file(fits.PrimaryHDU(pixels[None], _header())),
        "sip": _file(fits.PrimaryHDU(pixels, sip)),
        "tpv": _file(fits.PrimaryHDU(pixels, tpv)),
        "gz": gzip.compress(plain, mtime=0),
        "bz2": bz2.compress(plain),
    }
    for kind in ("RICE_1", "GZIP_1", "GZIP_2", "HCOMPRESS_1", "PLIO_1"):
        for name, image in (("floats", pixels), ("integers", np.abs(integers))):
            if (kind, name) != ("PLIO_1", "floats"):
                tile = {"tile_shape": (8, 8)} if kind != "PLIO_1" else {}
                hdu = fits.CompImageHDU(image, _header(), compression_type=kind, **tile)
                made[f"{kind} {name}"] = _file(fits.PrimaryHDU(), hdu)
    made["fz gz"] = gzip.compress(made["RICE_1 floats"], mtime=0)
    return made


def mutated(intact: dict[str, bytes], seed: int, number: int, *, streams: bool = False) -> tuple[str, bytes]:
    """Return a file of a kind with some mutations, as the seed and the number have it."""
    rng = np.random.default_rng((seed, number))
    names = [name for name in intact if re.match("RICE|GZIP|HCOMP|PLIO", name)] if streams else list(intact)
    name = names[number % len(names)]
    data = bytearray(intact[name])
    for _ in range(rng.integers(1, 5)):
        if streams:
            _edit_stream(data, rng)
        elif name.endswith(("gz", "bz2")) and rng.random() < 0.5:
            # Below the compression, the file.
            inner = bytearray((gzip if name.endswith("gz") else bz2).decompress(intact[name]))
            _edit(inner, rng)
            data = bytearray(gzip.compress(inner, 1, mtime=0))
        else:
            _edit(data, rng)
    return name, bytes(data)


def run(count: int, seed: int, *, streams: bool = False) -> dict[str, object]:
    """Read mutated files, and return the numbers of outcomes, the slowest and the largest memory of the reader."""
    outcomes: Counter[str] = Counter()
    slowest, findings = (0.0, -1, ""), []
    for number in range(count):
        name, data = mutated(files(), seed, number, streams=streams)
        start = time.perf_counter()
        (found,) = read_files([File(data, f"{name}.fits", ReaderConfig())], headers=True)
        seconds = time.perf_counter() - start
        slowest = max(slowest, (round(seconds, 2), number, name))
        reason = "image"
        if isinstance(found, CutoutError):
            reason = " ".join(re.sub(r"'[^']*'|[^a-zA-Z ]+", "#", str(found)).split()[:7])
        if "reading it" in reason:
            findings.append((number, name, str(found)))
        outcomes[reason] += 1
    close()
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    return {
        "count": count,
        "seed": seed,
        "images": outcomes["image"],
        "ended": len(findings),
        "slowest_s": slowest,
        "peak_memory_of_reader_gb": round(peak, 2),
        "outcomes": dict(outcomes.most_common(25)),
        "findings": findings,
    }


def _header(**cards: object) -> fits.Header:
    wcs = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 150.1, "CRVAL2": 2.2, "CRPIX1": 12.5, "CRPIX2": 12.5}
    return fits.Header(wcs | {"CD1_1": -5e-5, "CD2_2": 5e-5, "MAGZERO": 25.0, "FILTER": "r"} | cards)


def _file(*hdus: object) -> bytes:
    buffer = io.BytesIO()
    fits.HDUList(list(hdus)).writeto(buffer)
    return buffer.getvalue()


def _edit(data: bytearray, rng: np.random.Generator) -> None:
    kind = rng.choice(["flips", "cut", "insert", "remove", "card", "card", "card", "swap"])
    place = int(rng.integers(max(len(data), 1)))
    cards = [at for at in range(0, len(data), _CARD) if re.match(rb"[A-Z0-9_-]{1,8} *=", data[at : at + 9])]
    if kind == "flips":
        _flip(data, rng, 0, len(data))
    elif kind == "cut":
        del data[place:]
    elif kind == "insert":
        size = int(rng.choice([1, 2, _CARD, _BLOCK]))
        data[place:place] = rng.bytes(size) if rng.random() < 0.5 else bytes(size)
    elif kind == "remove":
        del data[place : place + int(rng.choice([1, 2, _CARD, _BLOCK]))]
    elif cards and kind == "card":
        at = int(rng.choice(cards))
        name = str(rng.choice(_NAMES)) if rng.random() < 0.4 else bytes(data[at : at + 8]).decode("latin1")
        data[at : at + _CARD] = f"{name:8}= {rng.choice(_VALUES):>20}".ljust(_CARD).encode("latin1")
    elif cards:
        first, second = (int(at) for at in rng.choice(cards, 2))
        data[first : first + 8], data[second : second + 8] = data[second : second + 8], data[first : first + 8]


def _edit_stream(data: bytearray, rng: np.random.Generator) -> None:
    # After the last header: descriptors and streams.
    header = max(match.end() for match in re.finditer(rb"END {77}", data))
    start = -(-header // _BLOCK) * _BLOCK
    if rng.random() < 0.6:
        _flip(data, rng, start, min(len(data), start + int(rng.choice([64, 512, 4096]))))
    else:
        place = int(rng.integers(start, len(data)))
        data[place : place + 8] = rng.bytes(8) if rng.random() < 0.5 else bytes(8)


def _flip(data: bytearray, rng: np.random.Generator, start: int, stop: int) -> None:
    for place in rng.integers(start, max(stop, start + 1), rng.integers(1, 9)):
        if place < len(data):
            data[place] ^= 1 << int(rng.integers(8))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--streams", action="store_true")
    given = parser.parse_args()
    sys.stdout.write(json.dumps(run(given.count, given.seed, streams=given.streams), indent=1) + "\n")
