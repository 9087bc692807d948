"""Where results go, and how they are written."""

import csv
from pathlib import Path

import pytest

from longvision.benchmark.folder import make_folder, write_csv
from longvision.errors import ExistingFileError, UserError
from longvision.files import check_new_folder


def test_rows_are_written_as_a_whole(tmp_path):
    for rows in ([{"a": 1}], [{"a": 1}, {"a": None}]):
        write_csv(tmp_path / "rows.csv", rows)
    with (tmp_path / "rows.csv").open() as file:
        assert list(csv.DictReader(file)) == [{"a": "1"}, {"a": ""}]
    assert list(tmp_path.iterdir()) == [tmp_path / "rows.csv"]
    write_csv(tmp_path / "none.csv", [])
    assert not (tmp_path / "none.csv").exists()


def test_a_new_folder_each_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = {make_folder(None) for _ in range(3)}
    assert len(folders) == 3 and all(folder.is_dir() for folder in folders)
    assert make_folder("own/one").is_dir()
    (tmp_path / "own/one/file").write_text("x")
    for out in ("own/one", "own/one/file", "own/one/file/new"):
        with pytest.raises(ExistingFileError, match=f"--out {out}"):
            check_new_folder(out, "--out")


def test_a_folder_that_may_not_be_made(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", "elsewhere")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=r"/new.*Permission denied"):
        make_folder(str(tmp_path / "new"))
