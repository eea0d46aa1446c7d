"""Errors that end a job with one line: mistakes of the user, storage failures, and a Ray that does not start."""

AGAIN = "run the same command again: finished work is kept"
"""Remedy of a storage failure, at the end of its message."""


class UserError(ValueError):
    """A mistake in the user's input: one line that names the field, the value and the remedy.

    The command line prints it on standard error and exits with 2.
    """


class MissingError(UserError):
    """A field that must be given, and is not."""


class StorageError(RuntimeError):
    """A storage failure, such as a full disk or a server that does not respond: one line that names the file and the cause.

    No row is at fault: the job stops, and the same command resumes it once the storage works again. The command line prints
    the error on standard error and exits with 1.
    """


class StartError(RuntimeError):
    """Ray or a process of ours does not start, on a machine that is too busy for instance, or a cluster does not answer.

    The command line prints it on standard error and exits with 1.
    """
