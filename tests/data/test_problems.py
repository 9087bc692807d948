import warnings

import pytest

from longvision.data.problems import counted, listing, once_each, refuse, refuse_many
from longvision.errors import UserError

NAMES = [str(number) for number in range(12)]


def test_ten_are_named():
    assert listing(NAMES[:10]) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert listing(NAMES, "; ") == "0; 1; 2; 3; 4; 5; 6; 7; 8; 9; …"


def test_what_is_said_of_several_files_is_said_once():
    said = ["/a/x y.png has the value 7", "/a/b.png has the value 7", "/a/c.png is text"]
    rows = [f"row {row} of /a/x.parquet is not an image" for row in (7, 9)]
    assert once_each(rows) == ["row 7 of /a/x.parquet is not an image (also row 9 of /a/x.parquet)"]
    assert once_each(said) == ["/a/x y.png has the value 7 (also /a/b.png)", "/a/c.png is text"]


@pytest.mark.parametrize(
    ("count", "noun", "words"),
    [(1, "image", "1 image"), (2, "image", "2 images"), (2, "class", "2 classes"), (2, "category", "2 categories")],
)
def test_plurals(count, noun, words):
    assert counted(count, noun) == words


def test_what_was_found_is_refused():
    refuse([], "boxes are wrong", "correct them")
    with pytest.raises(UserError, match=r"^boxes are wrong \(0, 1, .*9, … 12 in all\): correct them$"):
        refuse(NAMES, "boxes are wrong", "correct them")


def test_few_are_left_out_and_many_refused():
    with warnings.catch_warnings(action="error"):
        refuse_many([], 100, "of 100 files are not images")
    with pytest.warns(UserWarning, match=r"^12 of 1200 files are not images \(0, 1, .*9, …\): they are left out$"):
        refuse_many(NAMES, 1200, "of 1200 files are not images")
    with pytest.raises(UserError, match=r"^12 of 1199 files are not images \(0, .*…\): .* 1 %"):
        refuse_many(NAMES, 1199, "of 1199 files are not images")
