"""The `status` verb: what became of a run, by the files of its output folder. It imports neither Ray nor PyTorch."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from gampen_ray.commands.registry import load_verbs, verb
from gampen_ray.config.base import config_class
from gampen_ray.errors import UserError
from gampen_ray.messages import counted, printable

# Files whose footers are read to count rows: of more, as many, evenly spaced.
_MOST_READ = 1_000


@config_class
class StatusConfig:
    """Say whether a run is running, finished or dead, what it has done so far, and what comes next."""

    run: str
    """Output folder of a verb; local or s3:// URI."""
    format: Literal["text", "json"] = "text"
    """text: lines for a terminal; json: the same as an object."""


@verb("status", positional="run")
def status(config: StatusConfig) -> dict[str, str]:
    """Print what is known of a run, and return it as texts by label: run, state, now, epochs, trials, galaxies and so on, next.

    Raises
    ------
    UserError
        If the folder holds no run.
    """
    import json

    from gampen_ray import lock, storage
    from gampen_ray.run_folder import RunFolder

    output = storage.absolute(config.run)
    if storage.size(output) is not None:
        raise _no_run(config.run, [])
    record, files = RunFolder.recorded(output), storage.list_files(output)
    if record is None:
        raise _no_run(config.run, [uri.removeprefix(output).strip("/") for uri in files])
    held = lock.held(output)
    complete = storage.join(output, record.complete) in files
    version, begun = (record.provenance.get(name, "unknown") for name in ("gampen_ray", "date"))
    found = {"run": f"{record.verb}, begun {begun} with gampen_ray {version}"}
    again = "run the same command again: it resumes"
    has_document = complete and record.complete.endswith(".json")
    document = storage.read_json(storage.join(output, record.complete)) if has_document else {}
    if complete:
        found["state"] = "finished"
        found["next"] = load_verbs()[record.verb].following(record.config | {"output": config.run}, document)
    elif held is None and not record.complete:
        found["state"] = "not running; made by an older release, which did not note how a finished run is known"
    elif held is None:
        found |= {"state": "unfinished: it failed, or was stopped", "next": again}
    elif held.is_running:
        found |= {"state": f"running: {held.holder}, last heartbeat {held.age_s:.0f} s ago", "now": held.doing}
    else:
        end = "is gone" if held.is_alive is False else f"has been silent for {held.age_s:.0f} s"
        found |= {"state": f"dead: {held.holder} {end}", "at the end": held.doing, "next": again}
    found |= _contents(output, files, document)
    # What comes next, at the end.
    found = {label: text for label, text in (found | {"next": found.pop("next", "")}).items() if text}
    text = json.dumps(found, indent=2) if config.format == "json" else "\n".join(f"{k + ':':<12} {v}" for k, v in found.items())
    sys.stdout.write(f"{printable(text, lines=True)}\n")
    return found


def _no_run(folder: str, names: Sequence[str]) -> UserError:
    from gampen_ray.run_folder import RUN_FILE

    below = sorted(name.removesuffix(f"/{RUN_FILE}") for name in names if name.endswith(f"/{RUN_FILE}"))
    remedy = f"give one of the runs below it: {', '.join(below[:5])}" if below else "give the output folder of a verb"
    return UserError(f"run: {folder} holds no run (no {RUN_FILE}); {remedy}")


def _contents(output: str, files: Sequence[str], document: Mapping[str, Any]) -> dict[str, str]:
    """Return what a run has written: numbers from its last file, a JSON document, if that is there, else from all others."""
    from gampen_ray import storage
    from gampen_ray.training.history import HISTORY, read_history

    found = {}
    if (history := storage.join(output, HISTORY)) in files:
        rows = read_history(history)
        losses = [f"{name} {_number(rows[-1][f'{key}_loss'])}" for key, name in (("train", "loss"), ("val", "validation"))]
        least = min((row for row in rows if row["val_loss"] is not None), key=lambda row: row["val_loss"], default=None)
        best = f" (least {_number(least['val_loss'])} in epoch {least['epoch']:.0f})" if least else ""
        found["epochs"] = f"{rows[-1]['epoch']:.0f}, {', '.join(losses)}{best}"
    if trials := [uri for uri in files if uri.startswith(f"{output}/trials/") and uri.endswith("/trial.json")]:
        states = Counter(row["state"] for row in storage.read_each(storage.read_json, trials))
        found["trials"] = ", ".join(f"{count:,} {state}" for state, count in states.most_common())
    if counts := {name.removeprefix("num_"): value for name, value in document.items() if name.startswith("num_")}:
        counts = counts.pop("rows", {}) | counts
        names = sorted(counts, key=lambda name: name != "galaxies")
        found["wrote"] = ", ".join(f"{counts[name]:,} {name.replace('_', ' ')}" for name in names)
    elif rows := _rows_by_folder(output, files):
        found["wrote"] = ", ".join(f"{text} in {folder}/" for folder, text in rows.items())
    for name, row in document.get("verdicts", {}).items():
        found[name] = f"{row['verdict']}: {row['text']}"
    return found


def _rows_by_folder(output: str, files: Sequence[str]) -> dict[str, str]:
    """Return the rows of the Parquet files in each folder of the output, as texts by the folder's name."""
    import pyarrow.parquet as pq

    from gampen_ray import storage

    def num_rows(uri: str) -> int:
        with storage.open_input(uri) as file:
            return pq.ParquetFile(file).metadata.num_rows

    uris: dict[str, list[str]] = {}
    for uri in files:
        folder, _, name = uri.removeprefix(output).strip("/").rpartition("/")
        if name.endswith(".parquet"):
            uris.setdefault(folder or ".", []).append(uri)
    found = {}
    for folder, some in uris.items():
        step = -(-len(some) // _MOST_READ)
        rows = sum(storage.read_each(num_rows, some[::step])) * len(some) // len(some[::step])
        found[folder] = f"{'about ' if step > 1 else ''}{counted(rows, 'row')} of {counted(len(some), 'file')}"
    return found


def _number(value: Any) -> str:
    return "not finite" if value is None else f"{value:.3f}"
