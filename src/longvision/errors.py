"""What a person can mend. The command prints these as one sentence and exits with 2; anything else is a bug of ours or
of a library, and keeps its traceback."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

OUT_OF_MEMORY = re.compile(
    r"can't allocate memory|cannot allocate memory|unable to allocate|out of memory|bad_alloc"
    r"|could not create a memory",
    re.IGNORECASE,
)
ZIP_WRITER = re.compile(r"inline_container\.cc.* unexpected pos|PytorchStreamWriter failed writing")


class UserError(ValueError):
    """What came, what was expected, what to do: one sentence."""


class MissingFileError(UserError, FileNotFoundError):
    """A path that the user gave does not exist."""


class ExistingFileError(UserError, FileExistsError):
    """What would be written exists already, and nothing is overwritten."""


class UnreadableImage(UserError):
    """A file that is no image, or a damaged one; a long job names it, counts it and goes on."""


class ImageTooLarge(UserError):
    """An image that does not fit into the memory there is; a long job names it, counts it and goes on."""


class DivergedError(UserError):
    """The loss is no longer a number: nothing of this step is worth saving."""


class LostPeerError(UserError):
    """Of several processes another one has ended or hangs; it may not have said why."""


def is_out_of_memory(error: BaseException) -> bool:
    """Of Python, torch or a library that says so in words alone."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error)) is not None
    )


class UnsavedError(UserError):
    """A checkpoint or weights could not be written; those that were there are as they were."""


def disk_words(error: BaseException) -> str | None:
    """Why a disk did not take a checkpoint; None for any other error.

    torch, which cannot end its zip file then, raises an error of its own after the disk's; from another process it
    comes alone.
    """
    reason = error.__context__ if isinstance(error, RuntimeError) else error
    if isinstance(reason, OSError):
        return reason.strerror or str(reason)
    is_torch_s = isinstance(error, RuntimeError) and ZIP_WRITER.search(str(error))
    return "the disk took only a part of it" if is_torch_s else None


@contextmanager
def told_as_unsaved(path: object) -> Iterator[None]:
    """Inside, what is raised where a disk does not take a checkpoint is an UnsavedError that names `path`."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if (words := disk_words(error)) is None:
            raise
        raise UnsavedError(f"{path} could not be written: {words}") from error


def is_unsaved(error: BaseException) -> bool:
    """Such a one, or the system's own words for a disk that is full."""
    return isinstance(error, UnsavedError) or (
        isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    )


@contextmanager
def user_paths() -> Iterator[None]:
    """Inside, what the system says of a path that the user gave (no permission, disk full, not a folder) is a UserError
    with that path; for the few places where a command opens or makes such paths."""
    try:
        yield
    except (UserError, BrokenPipeError):
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise UserError(f"{where}{error.strerror or error}") from error
