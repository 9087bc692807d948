"""Reading many files at once."""

from longvision.data.io import threads


def test_few_wait_in_line_and_order_stays(monkeypatch):
    monkeypatch.setattr(threads, "AT_ONCE", 4)
    taken = []
    items = (taken.append(number) or number for number in range(10))
    found = threads.each_in_threads(str, items)
    assert next(found) == "0" and len(taken) == 4
    assert [*found] == [str(number) for number in range(1, 10)]
    assert threads.in_threads(str, range(9)) == [str(number) for number in range(9)]
