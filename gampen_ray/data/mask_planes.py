"""Planes of a mask image by name, as headers give them."""

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["header_planes", "plane_bits"]

# LSST's and HSC's cards of the planes of a mask: MP_NO_DATA = 8, or MSKN0008 = 'NO_DATA'.
_PLANE, _NAMED_PLANE = "MP_", "MSKN"


def header_planes(header: Any) -> dict[str, int]:
    """Return the bit of each mask plane that a header names; a damaged card names no plane."""
    bits = {name.removeprefix(_PLANE): str(header[name]) for name in header if name.startswith(_PLANE)}
    bits |= {str(header[name]): name[len(_NAMED_PLANE) :] for name in header if name.startswith(_NAMED_PLANE)}
    return {name: int(bit) for name, bit in bits.items() if bit.isdecimal() and int(bit) < 63}


def plane_bits(planes: Mapping[str, int], chosen: Iterable[str]) -> int:
    """Return the bits of some planes, of which those without a bit count for nothing; -1, all bits, with "any" among them."""
    chosen = set(chosen)
    return -1 if "any" in chosen else sum(1 << bit for bit in {planes[name] for name in chosen & planes.keys()})
