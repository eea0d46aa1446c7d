"""The one exception that means "the user can mend this"."""


class UserError(ValueError):
    """A mistake in what the user gave: one line that names the field, the value and the remedy.

    The command line prints it on standard error and exits with 2.
    """
