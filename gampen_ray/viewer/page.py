"""The page of the viewer: a table of galaxies, their places on the sky, some of them as images, and one of them whole.

It has no script: all that it shows follows from its address (`gampen_ray.viewer.query`).
Shape legend: M galaxies.
"""

import functools
import math
from typing import Any

import jinja2
import matplotlib.figure
import numpy as np
from markupsafe import Markup

from gampen_ray import plot
from gampen_ray.data.headers import unit_zero_point
from gampen_ray.data.units import shown_unit
from gampen_ray.errors import StorageError, UserError
from gampen_ray.inference.flags import REMARKS, Flag
from gampen_ray.posterior.mixture import Mixture
from gampen_ray.posterior.summary import LEVELS
from gampen_ray.reports import figures
from gampen_ray.reports.axes import Axis, sky_axes, unwrapped, wrapped
from gampen_ray.reports.page import POLICY, environment
from gampen_ray.reports.shown import magnitude_of
from gampen_ray.reports.svg import TRUTH, styled, to_svg
from gampen_ray.viewer.galaxies import Galaxies, Galaxy
from gampen_ray.viewer.query import GALLERIES, Query, parsed
from gampen_ray.viewer.table import ANY, NONE, WARNED, Selection

__all__ = ["VIEW_POLICY", "Page"]

VIEW_POLICY = f"{POLICY} 'self'"
"""Images come from the viewer itself too."""
_PAGE_ROWS, _GALLERY, _MAPPED = 25, 12, 20_000
_STATISTICS = ("mean", "median", "mode", "std", "std_aleatoric", "std_epistemic")
_SHOWN = (*_STATISTICS, *(f"{end}{level}" for level in LEVELS for end in ("lo", "hi")))
_SUMMARIES = (*_SHOWN, "skew", "kurtosis")


class Page:
    """Renders the page of a catalogue.

    Parameters
    ----------
    galaxies
        Of the catalogue.
    output
        Its folder, as it is shown.
    """

    def __init__(self, galaxies: Galaxies, output: str) -> None:
        self._galaxies, self._table, self._output = galaxies, galaxies.table, output
        self._template = _template()
        # Of the same selection, whichever page or galaxy of it is looked at.
        self._sky = functools.lru_cache(maxsize=8)(self._sky_of)
        self._worst = functools.lru_cache(maxsize=8)(self._worst_of)

    def __call__(self, address: str) -> tuple[int, str]:
        """Return the HTTP status and the HTML for the query of an address; a mistake in it is said in the page."""
        query, problem, row_M = Query(), "", np.zeros(0, int)
        try:
            query = parsed(address)
            row_M = self._table.select(query.selection)
            if query.row >= len(self._table):
                raise UserError(f"row: {query.row:,} is not one of {len(self._table):,}")
        except UserError as error:
            query, problem = Query(where=query.where, text=query.text), str(error)
        return (400 if problem else 200), self._render(query, row_M, problem)

    def _render(self, query: Query, row_M: np.ndarray, problem: str) -> str:
        num_pages = max(1, math.ceil(len(row_M) / _PAGE_ROWS))
        page = min(query.page, num_pages)
        galaxy = gallery = None
        notes = list(self._galaxies.notes)
        try:
            galaxy = self._galaxy(query.row, query.selection) if query.row >= 0 and not problem else None
            gallery = self._gallery(query, row_M)
        except (UserError, StorageError) as error:
            notes.append(str(error))
        return self._template.render(
            title="Catalogue of posteriors",
            output=self._output,
            manifest=self._galaxies.manifest,
            has_images=self._galaxies.has_images,
            notes=notes,
            problem=problem,
            query=query,
            num_selected=len(row_M),
            page=page,
            num_pages=num_pages,
            first=(page - 1) * _PAGE_ROWS,
            targets=[(name, *self._unit(f"{name}_mean")[1:]) for name in self._table.targets],
            columns=self._table.names,
            choices={ANY: "any flag", WARNED: "a flag that warns", NONE: "no flag", **dict.fromkeys(Flag.__members__)},
            rows=self._rows(row_M[(page - 1) * _PAGE_ROWS : page * _PAGE_ROWS]),
            galaxy=galaxy,
            gallery=gallery,
            galleries=GALLERIES,
            sky=None if problem else self._sky(query.unsorted, (galaxy["ra"], galaxy["dec"]) if galaxy else (None, None)),
            num_mapped=min(_MAPPED, len(row_M)),
            facts=self._facts(),
        )

    def _unit(self, column: str) -> tuple[float, str, str]:
        """Return the factor to the unit in which a column is shown, that unit, and the column's own unit."""
        own = self._table.metadata(column, "unit")
        return *shown_unit(own), own

    def _rows(self, row_M: np.ndarray) -> list[dict[str, Any]]:
        keys = ("mean", "median", "lo68", "hi68")
        names = [f"{name}_{key}" for name in self._table.targets for key in keys]
        rows = self._table.rows(row_M, ["object_id", "ra", "dec", "flags", *names]).to_pylist()
        for row, values in zip(row_M, rows, strict=True):
            values |= {"row": int(row), "flags": flags(values["flags"])}
            for name in self._table.targets:
                factor, _, unit = self._unit(f"{name}_mean")
                values[f"{name}_magnitude"] = magnitude_of(values[f"{name}_median"], unit)
                values |= {f"{name}_{key}": factor * values[f"{name}_{key}"] for key in keys}
        return rows

    def _galaxy(self, row: int, selection: Selection) -> dict[str, Any]:
        found = self._galaxies.galaxy(row)
        row_M = self._table.select(selection)
        place = np.flatnonzero(row_M == row)
        before, after = (
            int(row_M[place[0] + step]) if place.size and 0 <= place[0] + step < len(row_M) else None for step in (-1, 1)
        )
        own = {f"{name}_{key}" for name in self._table.targets for key in _SUMMARIES}
        return {
            **{name: found.values[name] for name in ("object_id", "ra", "dec")},
            "flags": flags(found.values["flags"]),
            "note": found.note,
            "before": before,
            "after": after,
            **_images(found),
            "corner": Markup(corner(found.posterior, found.truth)) if found.posterior else None,
            "numbers": [row for name in self._table.targets for row in self._numbers(found, name)],
            "statistics": _STATISTICS,
            "levels": {key: f"{100 * level:g} %" for key, level in LEVELS.items()},
            "truth": found.truth,
            "others": [
                self._other(name, value)
                for name, value in found.values.items()
                if name not in own | {"object_id", "ra", "dec", "flags"}
            ],
        }

    def _other(self, name: str, value: Any) -> tuple[str, Any, str, str]:
        """Return name, value, unit and description of a column."""
        factor, unit, _ = self._unit(name)
        return name, value if factor == 1 or value is None else factor * value, unit, self._table.metadata(name, "description")

    def _numbers(self, found: Galaxy, name: str) -> list[dict[str, Any]]:
        """Return the statistics of a target, and of its AB magnitude where it is a flux: those that follow from the flux's."""
        factor, unit, own = self._unit(f"{name}_mean")
        values = {key: found.values[f"{name}_{key}"] for key in _SHOWN} | {"truth": found.truth.get(name)}
        known = {key: factor * value for key, value in values.items() if value is not None}
        rows = [dict.fromkeys(values) | known | {"name": name, "unit": unit, "decimals": None}]
        if unit_zero_point(own) is not None:
            # The brightest end has the largest flux.
            ends = {f"{end}{level}": f"{other}{level}" for level in LEVELS for end, other in (("lo", "hi"), ("hi", "lo"))}
            taken = {"truth": "truth", "median": "median"} | ends
            magnitudes = {key: magnitude_of(values[of], own) for key, of in taken.items()}
            rows.append(dict.fromkeys(values) | magnitudes | {"name": f"{name}, AB", "unit": "mag", "decimals": 3})
        return rows

    def _gallery(self, query: Query, row_M: np.ndarray) -> dict[str, Any]:
        values = {}
        if query.gallery == "worst":
            row_M, value_M, what = self._worst(query.unsorted)
            values = dict(zip(row_M.tolist(), value_M.tolist(), strict=True))
        else:
            what = "random"
            if query.gallery == "flagged":
                flags_M = self._table.column("flags").to_numpy()[row_M]
                row_M, what = row_M[(flags_M & ~REMARKS.value) != 0], "random, of those with a flag that warns"
            # The same for the same selection.
            row_M = np.sort(row_M)
            row_M = row_M[np.random.default_rng(0).permutation(len(row_M))[:_GALLERY]]
        found = self._table.rows(row_M, ["object_id", "flags"]).to_pylist()
        shown = zip(row_M.tolist(), found, strict=True)
        return {
            "what": what,
            "rows": [
                {"row": row, "id": one["object_id"], "flags": flags(one["flags"]), "value": values.get(row)}
                for row, one in shown
            ],
        }

    def _worst_of(self, selection: Selection) -> tuple[np.ndarray, np.ndarray, str]:
        return self._galaxies.worst(self._table.select(selection), _GALLERY)

    def _sky_of(self, selection: Selection, chosen: tuple[float | None, float | None]) -> Markup | None:
        row_M = self._table.select(selection)
        if len(row_M) > _MAPPED:
            row_M = np.random.default_rng(0).choice(row_M, _MAPPED, replace=False)
        ra_M, dec_M = (self._table.column(name).to_numpy(zero_copy_only=False)[row_M] for name in ("ra", "dec"))
        known = np.isfinite(ra_M) & np.isfinite(dec_M)
        mark = (chosen[0], chosen[1]) if chosen[0] is not None and chosen[1] is not None else None
        return Markup(sky_positions("sky", ra_M[known], dec_M[known], mark)) if known.any() else None

    def _facts(self) -> dict[str, str]:
        manifest = self._galaxies.manifest
        inference, made = manifest["config"], manifest["provenance"]
        return {
            "catalogue": self._output,
            "dataset": inference["dataset"],
            "split": inference["split"] or "all",
            "bundle": inference["bundle"],
            "Monte Carlo dropout": f"{inference['num_passes']} passes, seed {inference['seed']}, {inference['precision']}",
            "posteriors": "stored whole" if self._table.has_mixtures else "summaries; others are predicted again",
            "made": f"{made.get('date', 'unknown')} with gampen_ray {made.get('gampen_ray', 'unknown')}",
        }


def _template() -> jinja2.Template:
    templates = environment("gampen_ray.viewer", policy=VIEW_POLICY)
    templates.filters["has_zero_point"] = lambda unit: unit_zero_point(unit) is not None
    templates.filters["degrees"] = lambda angle: "–" if angle is None else f"{angle:.5f}".replace("-", "−")
    return templates.get_template("view.html.jinja")


def flags(value: int) -> list[dict[str, Any]]:
    """Return the flags of a value: name, meaning and whether it warns of a wrong posterior."""
    return [{"name": flag.name, "meaning": flag.meaning, "warns": not flag & REMARKS} for flag in Flag if value & flag.value]


def _images(found: Galaxy) -> dict[str, Any]:
    name = f"galaxy {found.values['object_id']}"
    if found.seen is None:
        image = None if found.image_HW is None else Markup(figures.cutout(found.image_HW, alt=f"Image of {name}"))
        return {"image": image, "crop": None}
    corners_42 = found.seen.corner_N42[0]
    image = figures.cutout(found.seen.image_NCHW[0, 0], corners_42=corners_42, alt=f"Image of {name} with its learned crop")
    crop = figures.cutout(found.seen.crop_NCHW[0, 0], alt=f"The learned crop of {name}")
    side = float(np.linalg.norm(np.diff(corners_42, axis=0), axis=1).mean())
    size = found.seen.image_NCHW.shape[-1]
    return {"image": Markup(image), "crop": Markup(crop), "size": f"{size} × {size} px", "side": f"{side:.0f} px"}


@styled
def corner(posterior: Mixture, truth: dict[str, float]) -> str:
    """Return the corner plot of one galaxy's posterior as an SVG."""
    names = posterior.targets.names
    figure = matplotlib.figure.Figure(figsize=plot.corner_size(len(names)))
    known = [truth[name] for name in names] if {*names} <= {*truth} else None
    _, axes_DD = plot.corner(posterior, truth=known, figure=figure)
    for axes in filter(None, axes_DD.flat):
        axes.tick_params(labelsize=10)
        axes.grid(visible=False)
    return to_svg(figure, "corner", f"Joint posterior density of {', '.join(names)}")


@styled
def sky_positions(key: str, ra_N: np.ndarray, dec_N: np.ndarray, mark: tuple[float, float] | None = None) -> str:
    """Return where galaxies are on the sky, degrees: a few as dots, many as a density; and a mark at one of them."""
    x_N = unwrapped(ra_N)
    fig, ax = sky_axes(x_N, dec_N, width=480)
    (high, low), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    figures.cloud(ax, Axis(low, high), Axis(bottom, top), x_N, dec_N)
    if mark:
        middle = 0.5 * (x_N.min() + x_N.max())
        ax.plot(middle + wrapped(np.array(mark[0] - middle)), mark[1], "o", color=TRUTH, fillstyle="none", markeredgewidth=2)
    ranges = (
        f"{axis} {figures.number(value.min())} to {figures.number(value.max())}°"
        for axis, value in (("RA", ra_N), ("Dec", dec_N))
    )
    return to_svg(fig, key, f"Density of {len(ra_N):,} galaxies on the sky, {', '.join(ranges)}")
