"""Errors that our own checks raise, as opposed to bugs."""


class InputError(ValueError):
    """Input that cannot be honoured. The message names the argument, what was expected and what came.

    The command prints the message alone and exits with code 2. Any other exception is a bug and is shown with
    its traceback.
    """


class FileError(InputError, OSError):
    """A file that cannot be written, for instance because the disk is full. The message names the file."""
