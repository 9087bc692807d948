"""The tables of the scripts in `benchmarks/`."""

import pytest

from longvision.benchmark.rows import read_rows, write_rows


def test_a_row_is_added_to_those_that_are_there(tmp_path):
    table = tmp_path / "x.csv"
    assert read_rows(table) == []
    write_rows(table, [{"name": "a, b", "seconds": 1.5}])
    write_rows(table, [*read_rows(table), {"name": "c", "seconds": ""}])
    assert read_rows(table) == [{"name": "a, b", "seconds": "1.5"}, {"name": "c", "seconds": ""}]
    assert table.read_bytes() == b'name,seconds\n"a, b",1.5\nc,\n'


def test_columns_that_a_later_row_has_no_more_are_kept(tmp_path):
    table = tmp_path / "x.csv"
    write_rows(table, [{"name": "a", "gigabytes": 2}])
    write_rows(table, [*read_rows(table), {"name": "b", "seconds": 3}])
    assert table.read_bytes() == b"name,gigabytes,seconds\na,2,\nb,,3\n"


def test_rows_are_there_until_others_are_written(tmp_path):
    class Broken:
        def __str__(self):
            raise OSError("No space left on device")

    table = tmp_path / "x.csv"
    write_rows(table, [{"name": "a"}, {"name": "b"}])
    with pytest.raises(OSError, match="No space"):
        write_rows(table, [{"name": "a"}, {"name": Broken()}])
    assert table.read_bytes() == b"name\na\nb\n" and list(tmp_path.iterdir()) == [table]
