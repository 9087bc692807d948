"""Rows as text."""

import pytest

from longvision.benchmark.table import _number, models_table, ops_table
from support.benchmark_rows import ROWS, row


def test_columns_are_aligned_and_sizes_are_groups():
    lines = models_table(ROWS).splitlines()
    header, *body = lines
    assert [number for number, line in enumerate(lines) if not line] == [1, 4, 7, 10]
    for name, cell in {"ms": "12.35", "images/s": "162", "GMACs": "1.5", "time ×": "1"}.items():
        end = header.index(name) + len(name)
        assert body[1][:end].endswith(f" {cell}"), (name, body[1])
    assert "deit+materialised" in body[2]
    assert "12346" in body[4]
    assert body[5].endswith("out of memory")
    assert body[7].startswith("992 ")
    assert body[7].endswith("the nearest that it takes to 1000; samples: 3 (3 first calls)")
    assert body[8].startswith("1000 ")
    assert not any(line.endswith(" ") for line in lines)


def test_a_ratio_of_a_first_call_is_marked():
    cold = {"samples": "1 (first call)", "memory_ratio": 0.5}
    warm = models_table([row("deit", 224, time_ratio=0.107), row("vim", 224)])
    assert " 0.107 " in warm and "~" not in warm
    for rows in (
        [row("deit", 224, time_ratio=0.107, **cold), row("vim", 224)],
        [row("deit", 224, time_ratio=0.107, memory_ratio=0.5), row("vim", 224, **cold)],  # the baseline's
    ):
        text = models_table([*rows, row("vit", 224, "failed"), row("deit", 512, time_ratio=0.2), row("vim", 512)])
        assert text.splitlines()[-1] == "~: rests on a first call, which is not warm; raise --budget for more samples"
        assert " ~0.107 " in text and " ~0.5" in text
        assert " 0.2 " in text and "~-" not in text


def test_a_ratio_of_a_first_call_is_marked_among_operators_too():
    def op_row(backend, samples, products_ratio, reference_ratio):
        times = {"ms_median": 1.0, "ms_q1": 1.0, "ms_q3": 1.0}
        ratios = {"products_ratio": products_ratio, "reference_ratio": reference_ratio}
        return {"tokens": 197, "backend": backend, "samples": samples, "status": "ok", **times, **ratios}

    products, cpu = op_row("matrix products", "60", 1.0, 0.1), op_row("cpu", "60", 0.3, 0.04)
    assert "~" not in ops_table([products, cpu, op_row("reference", "60", 9.0, 1.0)])
    lines = ops_table([products, cpu, op_row("reference", "3 (3 first calls)", 9.0, 1.0)]).splitlines()
    assert lines[1].split()[-3:] == ["1", "~0.1", "60"]
    assert lines[2].split()[-3:] == ["0.3", "~0.04", "60"]
    assert lines[3].split()[-6:-4] == ["~9", "~1"]
    assert lines[4:] == ["", "~: rests on a first call, which is not warm; raise --budget for more samples"]


def test_the_table_says_where_the_baseline_has_no_time():
    alone = row("deit", 512, time_ratio=None)
    text = models_table([row("deit", 224), row("vim", 224), alone, row("vim", 512, "out of memory")])
    assert text.splitlines()[-1] == "no × at 512: the baseline vim has no time there; name another with --baseline"
    assert "--baseline" not in models_table([row("vim", 224), row("deit", 224, "out of memory")])
    assert "--baseline" not in models_table([row("vim", 224, "out of memory")])  # no time at all is another matter


@pytest.mark.parametrize(
    "value, text",
    [(None, "-"), (0.001234, "0.001234"), (0.0000012, "0.000001"), (12.3456, "12.35"), (12345678.9, "12345679")],
)
def test_numbers_have_no_exponent(value, text):
    assert _number(value) == text
