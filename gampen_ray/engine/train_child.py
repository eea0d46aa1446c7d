"""The life of a process of `gampen_ray.engine.train_processes`: one worker of a training.

Its driver sends one message, the job, and reads all that it sends.
"""

import os
import pickle
import signal
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import distributed

from gampen_ray.errors import StorageError, UserError
from gampen_ray.plugins import load_plugins
from gampen_ray.training.execute import execute
from gampen_ray.training.group import GroupWorker


def main(file_descriptor: int) -> None:
    """Work for the driver at the other end of a connection."""
    # Ctrl-C in a terminal may reach it too; the driver decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Open to the end: where it closes, the process ends.
    connection = Connection(file_descriptor)
    try:
        job = connection.recv()
    except EOFError:
        # The driver has ended meanwhile.
        return
    threading.Thread(target=_end_with_driver, args=(connection,), daemon=True).start()
    try:
        _work(job, connection)
    except Exception as error:
        _send_error(error, connection)


def _work(job: dict[str, Any], connection: Connection) -> None:
    load_plugins()
    torch.set_num_threads(job["threads"])
    rank, world_size = job["rank"], job["world_size"]
    if world_size > 1:
        distributed.init_process_group("gloo", init_method=job["meeting"], rank=rank, world_size=world_size)
    worker = GroupWorker(job["run"], rank=rank, world_size=world_size, device=torch.device("cpu"), send=connection.send)
    execute(worker, job["run"])
    if world_size > 1:
        distributed.destroy_process_group()


def _end_with_driver(connection: Connection) -> None:
    """Wait for the end of the driver, and end at once."""
    try:
        connection.recv()
    except (EOFError, OSError):
        os._exit(1)


def _send_error(error: Exception, connection: Connection) -> None:
    if not isinstance(error, UserError | StorageError):
        error.add_note(traceback.format_exc())
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            error = RuntimeError("".join(traceback.format_exception(error)))
    connection.send({"error": error})


if __name__ == "__main__":
    main(int(sys.argv[1]))
