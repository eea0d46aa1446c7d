"""`crop` on a footprint: the sources of a catalogue are cut from tiles by the code of `infer`; each crop is written as FITS.

A crop is ``crops/TILE/IDENTIFIER.fits``, where what could not stand in a file's name is percent-encoded. A unit of the plan is
done when each of its sources has a crop or is in the unit's quarantine file.
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from gampen_ray.commands.tile_plans import check_catalog, planned_units, tile_source
from gampen_ray.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from astropy.io import fits

    from gampen_ray.commands.crop import CropConfig
    from gampen_ray.data.cutouts import CutoutError
    from gampen_ray.data.sources import Source, Unit
    from gampen_ray.engine.resources import Workers
    from gampen_ray.inference.bundle import Bundle
    from gampen_ray.inference.crops import CropInput, Cropper
    from gampen_ray.run_folder import RunFolder

    _Cropped = tuple[Unit, list[tuple[str, str, str, Any]]]

__all__ = ["crop_all", "file_name", "opened"]

_CROPS = "crops"
_UNIT_ROWS = 1024


def opened(config: "CropConfig", bundle: "Bundle") -> "Source":
    """Return a footprint as the input of a bundle.

    Raises
    ------
    UserError
        For a field that cannot be had with a footprint, or if the bundle does not suit it.
    """
    check_catalog(config)
    source = tile_source(config, config.images, bundle)
    scales = [source.info.pixel_scale_arcsec, bundle.images.pixel_scale_arcsec]
    if bundle.images.zoom(scales[0]) != 1:
        raise UserError(
            f"images: {config.images} has pixels of {scales[0]:.4g} arcsec, the bundle was trained on {scales[1]:.4g}; give a "
            "bundle or a footprint of the same pixel scale"
        )
    return source


def crop_all(
    config: "CropConfig", folder: "RunFolder", source: "Source", bundle: "Bundle", start: "Callable[[Workers], Cropper]"
) -> int:
    """Write the crops of all sources that have none yet, and return the number of sources, with those in quarantine.

    Parameters
    ----------
    source
        See `opened`.
    start
        Called on a worker, it returns what makes the crops.

    Raises
    ------
    UserError
        If no source has a tile.
    """
    from gampen_ray import storage
    from gampen_ray.engine.units import run_units

    units, num_unassigned, _ = planned_units(config, folder, source, _UNIT_ROWS)
    there = {uri.removeprefix(folder.uri).strip("/") for uri in storage.list_files(folder.uri)}
    todo = [unit for unit in units if not _is_done(unit, folder.uri, there)]
    total = sum(unit.num_rows for unit in units)
    num_bad, factor = 0, 1.0
    if bundle.images.zero_point_mag is not None:
        factor = 10 ** (0.4 * (bundle.images.zero_point_mag - (source.info.zero_point_mag or 0.0)))

    def receive(bad: int, _: "Workers") -> str:
        nonlocal num_bad
        folder.check_lock()
        num_bad += bad
        return f"{num_bad:,} in quarantine" if num_bad else ""

    work, write = functools.partial(_Crop, source, factor, config.batch_size, start), functools.partial(_write, config.output)
    run_units("crop", todo, work, total=total, noun="galaxies", resources=config.resources, write=write, receive=receive)
    return total + num_unassigned


def file_name(tile: str, identifier: str) -> str:
    """Return the name of a crop below the output folder: different ones for different sources of a tile, which stay in it.

    >>> file_name("0591m305", "../NGC 1/a")
    'crops/0591m305/%2E.%2FNGC 1%2Fa.fits'
    """
    return "/".join((_CROPS, _part(tile), f"{_part(identifier)}.fits"))


def _part(text: str) -> str:
    quoted = quote(text, safe=" +,=@")
    return f"%2E{quoted[1:]}" if quoted.startswith(".") else quoted


class _Crop:
    """Cuts and crops the sources of a unit; called from two threads, so that one reads while the other computes."""

    def __init__(
        self, source: "Source", factor: float, num_rows: int, start: "Callable[[Workers], Cropper]", workers: "Workers"
    ) -> None:
        import threading

        self._source, self._factor, self._num_rows, self._lock = source, factor, num_rows, threading.Lock()
        self._cropper = start(workers)

    def __call__(self, unit: "Unit") -> "_Cropped":
        """Return the unit, and of each source the identifier, the file of its tile, the crop's name, and the crop or why there
        is none."""
        from gampen_ray.data.tiles.planning import TILE
        from gampen_ray.data.tiles.units import TileUnit, read_unit

        # That of the plan, if a source is cut from another.
        tile = read_unit(TileUnit(unit.uri, unit.start, unit.num_rows))[TILE][0].as_py()
        found = []
        for rows, _ in self._source.read(unit, self._num_rows):
            ids = [str(identifier) for identifier in rows["object_id"]]
            names = [file_name(tile, identifier) for identifier in ids]
            inputs = [self._input(rows, row) for row in range(len(ids))]
            with self._lock:
                found += zip(ids, map(str, rows["source"]), names, self._cropper.crop(names, inputs), strict=True)
        return unit, found

    def _input(self, rows: "dict[str, np.ndarray]", row: int) -> "CropInput | CutoutError":
        import numpy as np

        from gampen_ray.data.cutouts import CutoutError
        from gampen_ray.data.tiles.cutting import first_pixels
        from gampen_ray.data.tiles.planning import TILE
        from gampen_ray.data.tiles.reading import RESAMPLED
        from gampen_ray.inference.crops import CropInput
        from gampen_ray.inference.flags import Flag

        if reason := str(rows["reason"][row]):
            return CutoutError(reason)
        image_CHW = rows["image"][row]
        left, first = (int(first_pixels(rows[axis][row : row + 1], image_CHW.shape[-1])[0]) for axis in ("x", "y"))
        conditions = [float(rows[name][row]) if name in rows else np.nan for name in self._source.conditions]
        flags = Flag.PIXELS_FILLED * bool(rows["pixels_filled"][row]) | Flag.RESAMPLED * bool(rows[RESAMPLED][row])
        return CropInput(
            planes=image_CHW,
            factor=self._factor,
            header=self._header(str(rows[TILE][row]), str(rows["object_id"][row]), rows["ra"][row], rows["dec"][row]),
            shape=image_CHW.shape[-2:],
            origin_2=(left, first),
            condition_J=np.array(conditions),
            flags=flags,
        )

    def _header(self, tile: str, identifier: str, ra: float, dec: float) -> "fits.Header":
        import numpy as np
        from astropy.io import fits

        assert self._source.tiles is not None
        selection = self._source.tiles.selection
        header = fits.Header.fromstring(selection.grid(int(np.searchsorted(selection.names, tile))).wcs, sep="\n")
        # FITS holds ASCII alone.
        header["OBJECT"] = identifier if identifier.isascii() and identifier.isprintable() else quote(identifier)
        header["TILE"] = (tile, "from which the galaxy was cut")
        header["RA"], header["DEC"] = (float(ra), "[deg] ICRS, by the catalogue"), (float(dec), "[deg] ICRS, by the catalogue")
        header["MAGZERO"] = (self._source.info.zero_point_mag, "[mag] AB magnitude of one unit of flux")
        return header


def _write(output: str, cropped: "_Cropped") -> int:
    """Write the crops of a unit and, last, its quarantine file; return the number of its sources there."""
    from gampen_ray import storage
    from gampen_ray.data import shards
    from gampen_ray.data.cutouts import CutoutError
    from gampen_ray.data.file_names import NO_NAME, is_file_name

    unit, found = cropped
    bad: list[tuple[str, str, str]] = []
    for identifier, source, name, result in found:
        if isinstance(result, CutoutError):
            bad.append((identifier, source, str(result)))
        elif not is_file_name(name):
            bad.append((identifier, source, f"its crop has no valid name: {NO_NAME}"))
        else:
            storage.write_bytes_atomic(storage.join(output, name), result)
    uri = storage.join(output, shards.QUARANTINE, unit.name)
    if bad:
        ids, sources, reasons = zip(*bad, strict=True)
        shards.write_quarantine(uri, object_id=ids, source=sources, reason=reasons)
    else:
        storage.delete(uri)
    return len(bad)


def _is_done(unit: "Unit", output: str, there: set[str]) -> bool:
    """Return whether each source of a unit has a crop or is in its quarantine file, given the files that are there."""
    from gampen_ray import storage
    from gampen_ray.data import shards
    from gampen_ray.data.tiles.planning import TILE
    from gampen_ray.data.tiles.units import TileUnit, read_unit

    rows = read_unit(TileUnit(unit.uri, unit.start, unit.num_rows))
    tile, ids = rows[TILE][0].as_py(), {str(identifier) for identifier in rows["object_id"].to_pylist()}
    missing, bad = {identifier for identifier in ids if file_name(tile, identifier) not in there}, set()
    if (name := storage.join(shards.QUARANTINE, unit.name)) in there:
        bad = set(shards.read_shard(storage.join(output, name), ["object_id"])["object_id"].to_pylist())
    return missing == bad
