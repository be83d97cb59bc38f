"""The error of our own checks, told apart from bugs."""


class InputError(ValueError):
    """What the user gave cannot be honoured: it names the argument, what was expected and what came.

    The command shows it as one line and ends with exit code 2; any other exception is a bug, and shows its
    traceback.
    """


class FileError(InputError, OSError):
    """A file that cannot be written, as on a full disk: it names the file."""
