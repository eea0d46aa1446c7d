"""Progress of long work: a line that redraws itself on a terminal, plain log lines elsewhere."""

import logging
import sys
import time

logger = logging.getLogger(__name__)

_LOG_INTERVAL_S = 10.0


class Progress:
    """A counter of finished work that shows rate and remaining time.

    Parameters
    ----------
    what
        Name of the job, e.g. ``"simulate"``.
    total
        Final count.
    noun
        What is counted, in the plural, e.g. ``"galaxies"``.
    """

    def __init__(self, what: str, total: int, noun: str) -> None:
        self._what, self._total, self._noun = what, total, noun
        self._done = self._skipped = 0
        self._start = self._last = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def __enter__(self) -> "Progress":
        self._show()
        return self

    def __exit__(self, *_: object) -> None:
        if self._terminal:
            sys.stderr.write("\n")
            sys.stderr.flush()

    def skip(self, count: int) -> None:
        """Add what was finished earlier, which does not enter the rate."""
        self._done += count
        self._skipped += count

    def restart(self) -> None:
        """Count the time from now: what came before was other work."""
        self._start = time.monotonic()
        self._skipped = self._done

    def advance(self, count: int, note: str = "", *, always: bool = False) -> None:
        """Add what was finished now, and show it with ``note`` if a line is due, or ``always``."""
        self._done += count
        if self._terminal or always or self._done >= self._total or time.monotonic() - self._last > _LOG_INTERVAL_S:
            self._show(note)

    def _show(self, note: str = "") -> None:
        self._last = time.monotonic()
        elapsed = self._last - self._start
        text = f"{self._what}: {self._done:,}/{self._total:,} {self._noun}"
        if self._done > self._skipped:
            rate = (self._done - self._skipped) / max(elapsed, 1e-9)
            speed = f"{rate:,.1f}/s" if rate >= 1 else f"{60 * rate:,.1f}/min"
            text += f", {speed}, {max(self._total - self._done, 0) / rate:,.0f} s left"
        text += f" | {note}" if note else ""
        if self._terminal:
            sys.stderr.write("\r\x1b[K" + text)
            sys.stderr.flush()
        else:
            logger.info(text)
