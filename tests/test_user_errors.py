"""What a person can mend is a UserError; what the system says of a path of theirs becomes one."""

import errno

import pytest

from longvision.errors import ExistingFileError, MissingFileError, UserError, user_paths


@pytest.mark.parametrize("code", [errno.EACCES, errno.ENOSPC, errno.ENOTDIR, errno.EISDIR])
def test_what_the_system_says_of_a_path_is_a_user_s_mistake(code):
    with pytest.raises(UserError, match="given/path: ") as told, user_paths():
        raise OSError(code, "what it says", "given/path")
    assert told.value.__cause__.errno == code


def test_a_path_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="nowhere"), user_paths():
        (tmp_path / "nowhere").read_text()


@pytest.mark.parametrize("kind", [MissingFileError, ExistingFileError, BrokenPipeError, ValueError, RuntimeError])
def test_other_errors_pass(kind):
    with pytest.raises(kind) as told, user_paths():
        raise kind("x")
    assert type(told.value) is kind


def test_they_are_what_python_programs_catch():
    assert issubclass(UserError, ValueError)
    assert issubclass(MissingFileError, FileNotFoundError) and issubclass(ExistingFileError, FileExistsError)
