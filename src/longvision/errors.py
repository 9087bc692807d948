"""What a person can mend. The command prints these as one sentence and exits with 2; anything else is a bug of ours or
of a library, and keeps its traceback."""


class UserError(ValueError):
    """What came, what was expected, what to do: one sentence."""


class MissingFileError(UserError, FileNotFoundError):
    """A path that the user gave does not exist."""


class ExistingFileError(UserError, FileExistsError):
    """What would be written exists already, and nothing is overwritten."""


class UnreadableImage(UserError):
    """A file that is no image, or a damaged one; a long job names it, counts it and goes on."""


class DivergedError(UserError):
    """The loss is no longer a number: nothing of this step is worth saving."""
