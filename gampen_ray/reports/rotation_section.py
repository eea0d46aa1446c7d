"""The report's section on rotation stability: posteriors of the example galaxies against the angle of their cutouts.

Shape legend: N galaxies, A angles, D targets.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from gampen_ray.inference.rotation import RotationStability
from gampen_ray.model.targets import TargetSchema
from gampen_ray.reports.axes import Axis, axes, figure
from gampen_ray.reports.figures import number
from gampen_ray.reports.svg import ACCENT, MUTED, TRUTH, styled, to_svg


def rotation_section(targets: TargetSchema, object_ids: Sequence[int | str], stability: RotationStability) -> dict[str, Any]:
    """Return the content of the section for galaxies with these ids, in the order of ``stability``."""
    deviation_NAD, scatter_ND = stability.deviation(), stability.scatter()
    # One vertical range for all, so that panels can be compared.
    extent = max(1.5, 1.1 * float(np.abs(deviation_NAD).max()))
    worst_D = scatter_ND.argmax(0)
    rows = [
        {
            "target": name,
            "median": float(np.median(scatter_ND[:, d])),
            "worst": float(scatter_ND[worst_D[d], d]),
            "worst_id": object_ids[worst_D[d]],
            "inside": share,
        }
        for d, (name, share) in enumerate(zip(targets.names, stability.share_inside().tolist(), strict=True))
    ]
    return {
        "num_angles": len(stability.angle_A),
        "num_galaxies": len(scatter_ND),
        "plots": [
            Markup(deviation(f"rotation{d}", name, stability.angle_A, deviation_NAD[:, :, d], int(worst_D[d]), extent))
            for d, name in enumerate(targets.names)
        ],
        "rows": rows,
        "largest": max(rows, key=lambda row: row["median"]),
    }


@styled
def deviation(key: str, name: str, angle_A: np.ndarray, deviation_NA: np.ndarray, worst: int, extent: float) -> str:
    """Return the deviation of the posterior means from their average over the angles, one line per galaxy.

    Parameters
    ----------
    angle_A
        Degrees, from 0; lines repeat their first value at 360.
    deviation_NA
        In posterior standard deviations.
    worst
        Index of the highlighted galaxy.
    extent
        Half-range of the vertical axis.
    """
    fig = figure(360, 250)
    ax = axes(fig)
    ax.axhspan(-1, 1, color=ACCENT, alpha=0.1, linewidth=0, zorder=0)
    ax.axhline(0, color=MUTED, linewidth=1, dashes=(4, 3), zorder=2)
    angle = np.append(angle_A, 360)
    quarters = np.flatnonzero(angle % 90 == 0)
    for i, values_A in enumerate(deviation_NA):
        values = np.append(values_A, values_A[0])
        style = {"color": TRUTH, "zorder": 4} if i == worst else {"color": ACCENT, "alpha": 0.6, "zorder": 3}
        ax.plot(angle, values, linewidth=1.2, marker="o", markevery=quarters, markersize=4, markeredgewidth=0, **style)
    ax.set_xlim(-6, 366)
    ax.set_xticks(range(0, 361, 90), [f"{degrees}°" for degrees in range(0, 361, 90)])
    Axis(low=-extent, high=extent).on_y(ax, "Deviation / posterior σ")
    ax.set_xlabel("Angle of the cutout")
    largest = number(float(np.abs(deviation_NA).max()))
    alt = (
        f"{name} of {len(deviation_NA)} galaxies at {len(angle_A)} angles: deviations of at most {largest} standard deviations"
    )
    return to_svg(fig, key, alt)
