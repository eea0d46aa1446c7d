"""Progress of long work: a line that redraws itself on a terminal, plain log lines elsewhere."""

import logging
import sys
import time

from gampen_ray.messages import printable

logger = logging.getLogger(__name__)

_LOG_INTERVAL_S = 10.0


class Progress:
    """A counter of finished work that shows rate and remaining time.

    Parameters
    ----------
    what
        Name of the job, e.g. ``"simulate"``.
    total
        Final count; None: unknown, and a short job shows nothing.
    noun
        What is counted, in the plural, e.g. ``"galaxies"``.
    """

    def __init__(self, what: str, total: int | None, noun: str) -> None:
        self._what, self._total, self._noun = what, total, noun
        self._done = self._skipped = 0
        self._start = self._last = time.monotonic()
        self._terminal, self._shown = sys.stderr.isatty(), False

    def __enter__(self) -> "Progress":
        if self._total is not None:
            self._show()
        return self

    def __exit__(self, *_: object) -> None:
        if self._terminal and self._shown:
            sys.stderr.write("\n")
            sys.stderr.flush()

    def skip(self, count: int) -> None:
        """Add what was finished earlier, which does not enter the rate."""
        self._done += count
        self._skipped += count

    def advance(self, count: int, note: str = "", *, always: bool = False) -> None:
        """Add what was finished now, and show it with ``note`` if a line is due, or ``always``."""
        self._done += count
        since = time.monotonic() - self._last
        if self._total is None:
            due = since > (1.0 if self._terminal else _LOG_INTERVAL_S)
        else:
            due = self._terminal or self._done >= self._total or since > _LOG_INTERVAL_S
        if due or always:
            self._show(note)

    def _show(self, note: str = "") -> None:
        self._last, self._shown = time.monotonic(), True
        elapsed = self._last - self._start
        total = "" if self._total is None else f"/{self._total:,}"
        text = f"{self._what}: {self._done:,}{total} {self._noun}"
        if self._done > self._skipped:
            rate = (self._done - self._skipped) / max(elapsed, 1e-9)
            speed = f"{rate:,.1f}/s" if rate >= 1 else f"{60 * rate:,.1f}/min"
            text += f", {speed}"
            text += "" if self._total is None else f", {max(self._total - self._done, 0) / rate:,.0f} s left"
        text += f" | {note}" if note else ""
        if self._terminal:
            sys.stderr.write("\r\x1b[K" + printable(text))
            sys.stderr.flush()
        else:
            logger.info(text)
