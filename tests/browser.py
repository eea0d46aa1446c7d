"""The layout of a page in a real browser, at the widths of a desktop, a tablet and a phone."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
CHROMIUM_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--virtual-time-budget=20000",
    "--dump-dom",
)
# The page forbids scripts, so a frame around it measures: the frame's width is the page's viewport.
HARNESS = """<!doctype html><meta charset="utf-8"><body>
<iframe width="1280" height="900" srcdoc="{page}"></iframe><iframe width="768" height="900" srcdoc="{page}"></iframe>
<iframe width="400" height="900" srcdoc="{page}"></iframe>
<script>
onload = () => {{
  const measure = frame => {{
    const page = frame.contentDocument, root = page.documentElement;
    const outside = [...page.body.querySelectorAll("*")].filter(e => !e.closest(".scroll") && !e.closest("svg")
      && (e.getBoundingClientRect().right > frame.width || e.getBoundingClientRect().left < 0));
    const words = [...page.querySelectorAll("svg.plot text")].map(e => {{
      const box = e.getBoundingClientRect();
      return Math.min(box.left, frame.width - box.right);
    }});
    return {{
      viewport: root.clientWidth, width: root.scrollWidth, outside: outside.map(e => e.outerHTML.slice(0, 200)),
      margin: Math.min(...words), zoom: Math.min(...[...page.querySelectorAll("svg.plot")].map(e => e.getScreenCTM().a)),
      color: frame.contentWindow.getComputedStyle(page.querySelector("svg.plot text")).fill,
      images: page.querySelectorAll("svg.cutout image").length,
    }};
  }};
  document.body.replaceChildren(JSON.stringify([...document.querySelectorAll("iframe")].map(measure)));
}};
</script>"""


def layouts(page: str, folder: Path) -> list[dict[str, Any]]:
    """Return what is measured of a page, which loads nothing else, at 1280, 768 and 400 pixels; skips without a browser."""
    if CHROMIUM is None:
        pytest.skip("no chromium or google-chrome on PATH")
    (folder / "harness.html").write_text(HARNESS.format(page=html.escape(page)), encoding="utf-8")
    output = subprocess.run(
        [CHROMIUM, *CHROMIUM_FLAGS, f"--user-data-dir={folder / 'profile'}", (folder / "harness.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    found = re.search(r"<body>(.*)</body>", output, re.DOTALL)
    assert found, output
    return json.loads(html.unescape(found[1]))
