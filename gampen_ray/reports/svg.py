"""Convert matplotlib figures to inline SVGs in the page's colours and font.

Colours are written as CSS variables (`PALETTE`), text as text, and nothing in an SVG refers to anything outside it.
"""

import functools
import io
import re
import warnings
from collections.abc import Callable
from typing import ParamSpec
from xml.etree import ElementTree

import matplotlib
import matplotlib.style
from matplotlib.figure import Figure

Params = ParamSpec("Params")

# CSS variable -> colours on a light and a dark ground. matplotlib draws the light ones, which `to_svg` replaces.
PALETTE = {
    "ground": ("#fdfdfc", "#14181d"),
    "surface": ("#f4f5f4", "#1b2127"),
    "rule": ("#dfe3e6", "#303942"),
    "muted": ("#5d6872", "#9aa7b2"),
    "ink": ("#1d242b", "#e4e9ed"),
    "accent": ("#2a628f", "#7fb4de"),
    "truth": ("#b8501f", "#f2a065"),
    "fine": ("#1d7340", "#7fd29a"),
    "caution": ("#8a5d00", "#f0c04f"),
    "alarm": ("#b3201f", "#ff8f86"),
}
GROUND, RULE, MUTED, INK, ACCENT, TRUTH = (PALETTE[name][0] for name in ("ground", "rule", "muted", "ink", "accent", "truth"))
_FONT_SIZE = 11.0
_RC = {
    "svg.fonttype": "none",
    "svg.hashsalt": "gampen_ray",
    "text.parse_math": False,
    "figure.dpi": 72,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.labelsize": _FONT_SIZE,
    "axes.labelpad": 6,
    "axes.linewidth": 1,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": _FONT_SIZE,
    "ytick.labelsize": _FONT_SIZE,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.major.pad": 5,
    "ytick.major.pad": 5,
    "legend.frameon": False,
    "legend.fontsize": _FONT_SIZE,
    "legend.labelcolor": MUTED,
}
_VARIABLES = {light: f"var(--{name})" for name, (light, _) in PALETTE.items()}
_COLOR = re.compile("|".join(_VARIABLES))
# Before matplotlib 3.10 the size and the families are one property.
_FONT = re.compile(r"font(-size)?: ([\d.]+px)[^;]*(; font-family: [^;]*)?")
_LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}(?:e-\d+)?")


def styled(draw: Callable[Params, str]) -> Callable[Params, str]:
    """Draw with this module's settings, whatever the user's matplotlibrc says, and leave no global state behind."""

    @functools.wraps(draw)
    def wrapper(*args: Params.args, **kwargs: Params.kwargs) -> str:
        with matplotlib.rc_context(), warnings.catch_warnings():
            # The browser chooses the glyphs; matplotlib only measures them.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            matplotlib.style.use(["default", _RC])
            return draw(*args, **kwargs)

    return wrapper


def drawable(text: str) -> str:
    """Replace unprintable characters, which XML does not allow or a line cannot show."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


def to_svg(fig: Figure, key: str, alt: str) -> str:
    """Return a figure as an ``svg`` element for an HTML page, the same text in every run.

    Namespaces, metadata and style sheet are dropped; ids get the prefix ``key``, which makes them unique on a page.
    """
    file = io.BytesIO()
    fig.savefig(file, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(file.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if _name(child.tag) in ("metadata", "style"):
                parent.remove(child)
    used = set(re.findall(r"#([\w-]+)", " ".join(v for e in root.iter() for k, v in e.attrib.items() if _name(k) != "d")))
    for element in root.iter():
        element.tag = _name(element.tag)
        attributes = {_name(name): value for name, value in element.attrib.items()}
        if attributes.get("id") not in used:
            attributes.pop("id", None)
        element.attrib.clear()
        element.attrib.update({name: _attribute(name, value, key) for name, value in attributes.items()})
        element.tail = None
    box = root.attrib["viewBox"]
    root.attrib.clear()
    root.attrib.update(
        {"class": "plot", "viewBox": box, "preserveAspectRatio": "xMidYMax", "role": "img", "aria-label": drawable(alt)}
    )
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)


def _name(tag: str) -> str:
    return tag.rpartition("}")[2]


def _attribute(name: str, value: str, key: str) -> str:
    if name == "id":
        return f"{key}-{value}"
    if name == "href":
        return f"#{key}-{value.removeprefix('#')}"
    if name == "clip-path":
        return value.replace("#", f"#{key}-")
    if name == "style":
        value = _FONT.sub(r"font-size: \2", value)
        return _COLOR.sub(lambda match: _VARIABLES[match[0]], value)
    return _LONG_NUMBER.sub(lambda match: f"{float(match[0]):.2f}", value)
