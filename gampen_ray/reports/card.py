"""The model card of a bundle as text."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gampen_ray.inference.psf_sizes import PSF_COLUMNS

__all__ = ["card_text", "training_text"]

_WIDTH = 118


def card_text(described: Mapping[str, Any]) -> str:
    """Return what `gampen_ray.inference.card.describe` gives as text for a terminal."""
    columns = ["target", "unit", "transform", "trained from", "to"]
    rows = [[t["name"], t["unit"] or "-", t["transform"], f"{t['low']:.4g}", f"{t['high']:.4g}"] for t in described["targets"]]
    sections = [described["bundle"], _facts(described), _table(columns, rows)]
    if conditions := described["conditions"]:
        rows = [[c["name"], *(f"{c[key]:.4g}" for key in ("low", "high", "mean"))] for c in conditions]
        sections.append(_table(["condition", "trained from", "to", "mean"], rows))
    sections += _validation(described["metrics"])
    sections += _evaluation(described["evaluation"], psf_sizes=any(c["name"] in PSF_COLUMNS for c in conditions))
    return "\n\n".join(sections)


def training_text(provenance: Mapping[str, Any], *, numbers: bool) -> str:
    """Return in a few words how a bundle was trained, whose network is given numbers beside the image or not."""
    if "imported" in provenance:
        return f"by GaMPEN, imported from {provenance['imported']['model']}"
    if not (config := provenance.get("train")):
        return "unknown"
    optimizer = config["optimizer"]
    epochs = _epochs(optimizer["epochs"])
    if numbers:
        on_images = f", {epochs} on images" if optimizer["epochs"] else ""
        # Left out in a bundle of which the file was changed.
        epochs = f"{_epochs(optimizer.get('numbers_epochs', 0))} on numbers{on_images}"
    text = f"{epochs}, seed {config['seed']}"
    return text + (f", from {provenance['fine_tuned_from']['uri']}" if "fine_tuned_from" in provenance else "")


def _epochs(count: int) -> str:
    return "1 epoch" if count == 1 else f"{count} epochs"


def _facts(described: Mapping[str, Any]) -> str:
    images, network, provenance = (described[key] for key in ("images", "network", "provenance"))
    scale, zero_point = images["pixel_scale_arcsec"], images["zero_point_mag"]
    dataset = provenance.get("dataset", {})
    measured = len(images["numbers"]) - len(images["conditions"])
    facts = {
        "survey": described["survey"] or "unknown",
        "bands": ", ".join(images["bands"]),
        "cutouts": f"{images['size']} x {images['size']} pixels of {'unknown size' if scale is None else f'{scale:g} arcsec'}",
        "zero point": "unknown" if zero_point is None else f"{zero_point:g} mag",
        "beside the image": ", ".join([f"{measured} measured numbers", *(c["name"] for c in images["conditions"])]),
        "likelihood": network["likelihood"],
        "network": f"{network['parameters']:,} parameters, {network['bytes'] / 1e6:.3g} MB, {network['flops'] / 1e9:.3g} "
        "GFLOP a galaxy",
        "dropout": f"rate {network['dropout_rate']:g}, {network['num_passes']} passes",
        "training": training_text(provenance, numbers=bool(images["numbers"])),
        "training galaxies": ", ".join(f"{count:,} {split}" for split, count in dataset.get("num_rows", {}).items()),
        "made with": ", ".join(f"{key} {shown}" for key, shown in _flat(dataset.get("made_by", {}))),
        "bundle made": f"{provenance.get('date', '')} by gampen_ray {provenance.get('gampen_ray', '')}, revision "
        f"{provenance.get('git_revision') or 'unknown'}",
        "digest": described["digest"],
    }
    width = max(map(len, facts))
    return "\n".join(
        textwrap.fill(value, _WIDTH, initial_indent=f"{name:<{width}}  ", subsequent_indent=" " * (width + 2))
        for name, value in facts.items()
        if value
    )


def _validation(metrics: Mapping[str, Any]) -> list[str]:
    """Return what the training measured on its validation split; an imported bundle has nothing."""
    if "coverage" not in metrics:
        return ["validation: none was made"]
    seeds = metrics["seeds"]
    lines = [
        "validation loss " + ("never finite" if metrics["val_loss"] is None else f"{metrics['val_loss']:.4f}"),
        f"two seeds of the dropout masks, {seeds['num_passes']} passes: {seeds['verdict']}: {seeds['worst']}",
    ]
    rows = {version: {"all": coverage} for version, coverage in metrics["coverage"].items()}
    return ["\n".join(textwrap.fill(line, _WIDTH) for line in lines), _coverage("validation galaxies", rows)]


def _evaluation(card: Mapping[str, Any] | None, *, psf_sizes: bool) -> list[str]:
    if card is None:
        return ["held-out galaxies: no evaluation beside the bundle"]
    sections = [
        textwrap.fill(f"{card['num_galaxies']:,} {card['galaxies']}, {card['num_passes']} passes, {card['date']}", _WIDTH),
        _coverage("held-out galaxies", card["coverage"]),
    ]
    if card["width"]:
        sections.append(_by_magnitude("median posterior width", card["width"]))
    for case, table in card["width_over_limit"].items():
        title = f"median width over the information limit, {case.replace('_', ' ')}"
        if psf_sizes and case == "psf_unknown":
            title += "\n(the network is told the PSF's sizes, with which widths below 1 are possible)"
        sections.append(_by_magnitude(title, table))
    if shifts := card["shifts"]:
        names = list(shifts[0]["coverage"])
        rows = [
            [
                shift["name"],
                *(f"{100 * shift['coverage'][name]:.1f}" for name in names),
                f"{100 * shift['flagged']:.1f} %",
                card["verdicts"][shift["name"]],
            ]
            for shift in shifts
        ]
        sections.append(f"shifts; % covered by 68.27 %\n{_table(['', *names, 'flagged', 'verdict'], rows)}")
    if card["known_failures"]:
        failures = (textwrap.fill(text, _WIDTH, initial_indent="* ", subsequent_indent="  ") for text in card["known_failures"])
        sections.append("\n".join(["known failures", *failures]))
    return sections


def _coverage(title: str, groups: Mapping[str, Mapping[str, Iterable[Mapping[str, Any]]]]) -> str:
    """Return a table of coverage in per cent: a row for each bin, a cell of all levels for each target."""
    first = next(iter(next(iter(groups.values())).values()))
    levels = " ".join(dict.fromkeys(f"{100 * row['level']:g}" for row in first))
    names = list(dict.fromkeys(row["target"] for row in first))
    rows = [
        [
            group if group == label or label == "all" else f"{group} {label}",
            *(" ".join(f"{100 * row['coverage']:5.1f}" for row in coverage if row["target"] == name) for name in names),
        ]
        for group, bins in groups.items()
        for label, coverage in bins.items()
    ]
    return f"{title}; % covered by {levels} %\n{_table(['', *names], rows)}"


def _by_magnitude(title: str, table: Mapping[str, Mapping[str, float]]) -> str:
    names = list(next(iter(table.values())))
    rows = [[label, *(f"{row[name]:.3g}" for name in names)] for label, row in table.items()]
    return f"{title}\n{_table(['magnitude', *names], rows)}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return the leaves of nested values by dotted name; empty ones are left out."""
    found: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{key}.")
        elif value not in ("", [], None):
            found.append((prefix + key, str(value)))
    return found


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows in columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    layout = "  ".join([f"{{:<{widths[0]}}}", *(f"{{:>{width}}}" for width in widths[1:])])
    return "\n".join(layout.format(*row) for row in (header, *rows))
