"""What a job stops with in one line: the user's mistakes, and storage that does not do its work."""


class UserError(ValueError):
    """A mistake in what the user gave: one line that names the field, the value and the remedy.

    The command line prints it on standard error and exits with 2.
    """


class StorageError(RuntimeError):
    """A disk that is full, or a server that does not answer: one line that names the file and what happened.

    No row is to blame for it: a job stops, and the same command goes on when the storage works again. The command line
    prints it on standard error and exits with 1.
    """
