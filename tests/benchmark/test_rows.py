"""The tables of the scripts in `benchmarks/`."""

from longvision.benchmark.rows import read_rows, write_rows


def test_a_row_is_added_to_those_that_are_there(tmp_path):
    table = tmp_path / "x.csv"
    assert read_rows(table) == []
    write_rows(table, [{"name": "a, b", "seconds": 1.5}])
    write_rows(table, [*read_rows(table), {"name": "c", "seconds": ""}])
    assert read_rows(table) == [{"name": "a, b", "seconds": "1.5"}, {"name": "c", "seconds": ""}]
    assert table.read_bytes() == b'name,seconds\n"a, b",1.5\nc,\n'
