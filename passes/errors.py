"""The one hierarchy of errors: what a user can cause, and how the command line answers it."""

__all__ = ["CheckFailed", "InputError", "SepwiseError", "UnsupportedError"]


class SepwiseError(Exception):
    """Root of all errors that sepwise raises on purpose.

    The message is one clear line: who (file, operator, node), what was found, what was needed, and what to do.
    The command line prints it and exits with `exit_status`, never with a traceback.

    Attributes:
        exit_status: The status of a command that ends with this error.
    """

    exit_status: int = 3


class InputError(SepwiseError):
    """Something the user gave cannot be used: a file, a shape, a name, an option."""

    exit_status = 2


class UnsupportedError(InputError):
    """The model is sound as far as can be told, but needs an operator set or an operator unknown here."""


class CheckFailed(SepwiseError):  # noqa: N818 - a verdict about the model, not a mishap
    """A verification ran to its end and its answer is no."""

    exit_status = 1
