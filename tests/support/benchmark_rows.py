"""Rows as `longvision benchmark models` makes them."""

from typing import Any


def row(model: str, requested: int, status: str = "ok", ms: float = 10.0, **changes: Any) -> dict[str, Any]:
    measured = status == "ok"
    return {
        "model": model,
        "form": "",
        "checkpoint": "",
        "attention": "",
        "mode": "infer",
        "requested": requested,
        "size": requested,
        "batch": 2,
        "dtype": "float32",
        "device": "a processor",
        "threads": 2 if measured else None,
        "ms_median": ms if measured else None,
        "ms_q1": ms * 0.9 if measured else None,
        "ms_q3": ms * 1.1 if measured else None,
        "samples": "60",
        "images_per_s": 2e3 / ms if measured else None,
        "peak_mb": ms * 3 if measured else None,
        "gmacs": 1.5,
        "time_ratio": 1.0 if measured else None,
        "memory_ratio": None,
        "baseline": "vim",
        "status": status,
        **changes,
    }


ROWS = [
    row("vim", 224, ms=12.345),
    row("deit", 224, ms=9.9, form="materialised"),
    row("vim", 512, ms=12345.6),
    row("deit", 512, "out of memory", form="materialised"),
    row("vim", 1000, ms=30000, size=992, samples="3 (3 first calls)"),
    row("deit", 1000, "skipped: out of memory at 512", form="materialised"),
]
