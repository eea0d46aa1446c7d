"""Read and summarise a quarantine folder: the rows and files that cannot be used, with reasons."""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from gampen_ray import storage
from gampen_ray.data import shards
from gampen_ray.errors import UserError

__all__ = ["log_first_reasons", "log_reasons", "nothing_usable", "read_quarantine", "reason_examples"]

logger = logging.getLogger(__name__)
_MOST_LOGGED, _FIRST_FILES = 5, 100


def read_quarantine(folder: str, most_files: int | None = None) -> list[tuple[str, str]]:
    """Return source and reason of the rows in the quarantine of a dataset or output folder, or in its first files."""
    rows: list[tuple[str, str]] = []
    for uri in storage.list_files(storage.join(folder, shards.QUARANTINE), ".parquet")[:most_files]:
        table = shards.read_shard(uri, ["source", "reason"])
        rows += zip(table["source"].to_pylist(), table["reason"].to_pylist(), strict=True)
    return rows


def log_reasons(rows: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Log the most common of the reasons in quarantine, and return all; see `reason_examples`."""
    reasons = reason_examples(rows)
    for reason, count in [*reasons.items()][:_MOST_LOGGED]:
        logger.info("  %s in quarantine: %s", f"{count:,}", reason)
    return reasons


def log_first_reasons(folder: str, num_rows: int) -> None:
    """Log the reasons as `log_reasons`, of the first hundred files of a quarantine of so many rows: a survey has thousands."""
    rows = read_quarantine(folder, _FIRST_FILES)
    if len(rows) < num_rows:
        logger.info("  of the first %s in quarantine:", f"{len(rows):,}")
    log_reasons(rows)


def reason_examples(rows: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Count sources and reasons by kind of reason, most common first; each is named by the first reason and its file's name.

    A kind is the text before a colon, whatever its numbers.
    """
    first: dict[str, str] = {}
    for source, reason in rows:
        first.setdefault(_kind(reason), f"{reason} ({source.rpartition('/')[2]})")
    return {first[kind]: count for kind, count in _kinds(rows).most_common()}


def nothing_usable(claim: str, rows: Sequence[tuple[str, str]], noun: str) -> UserError:
    """Return an error with the most common reason and one of its sources.

    Parameters
    ----------
    claim
        Start of the message, e.g. ``"images: none of the 3 files can be cropped"``.
    rows
        Sources and reasons.
    noun
        Plural noun for the rows.
    """
    ((common, count),) = _kinds(rows).most_common(1)
    source, reason = min(row for row in rows if _kind(row[1]) == common)
    return UserError(f"{claim}; the most common reason ({count:,} {noun}), here for {source}: {reason}")


def _kinds(rows: Iterable[tuple[str, str]]) -> Counter[str]:
    return Counter(_kind(reason) for _, reason in rows)


def _kind(reason: str) -> str:
    return re.sub(r"\d[\d,.]*", "N", reason.partition(":")[0])
