"""Which rows of a unit are to blame for the failure of the whole."""

from collections.abc import Callable

__all__ = ["culprits"]

# A row among a thousand takes ten failures. Where more rows fail than these suffice for, the reason is hardly in the rows.
_MOST_FAILURES = 64


def culprits(num_rows: int, fails: Callable[[range], str]) -> dict[int, str]:
    """Return the rows that fail alone, each with how it does: k rows of n in at most 2 k (1 + log2 n) trials.

    Parameters
    ----------
    num_rows
        Number of rows, which fail together; none is found if they do not fail when they are tried again.
    fails
        Returns how the work on some rows alone fails; empty text: it does not.

    Returns
    -------
    dict
        Reasons by row number. After `_MOST_FAILURES` failures, rows not tried by then are among them.
    """
    found: dict[int, str] = {}
    waiting, failures = [range(num_rows)], 0
    while waiting:
        rows = waiting.pop()
        if not (how := fails(rows)):
            continue
        failures += 1
        if len(rows) == 1 or failures > _MOST_FAILURES:
            found |= dict.fromkeys(rows, how)
        else:
            half = len(rows) // 2
            waiting += [rows[half:], rows[:half]]
    return found
