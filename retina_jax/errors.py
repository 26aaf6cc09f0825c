"""Errors that end a run with one clear line instead of a traceback."""


class UserError(Exception):
    """A mistake in a flag, path, data set or shape: one line that names the value and the fix.

    ``main`` and the scripts print it without a traceback and leave with exit code 2.
    """


class RunError(Exception):
    """A fault that no flag foresaw (a loss that is not finite, a full disk): exit code 1.

    The last good checkpoint stays; the message says which it is and how to go on.
    """
