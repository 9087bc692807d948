"""`longvision validate RUN --tokens 64,128,256`: one model at several numbers of tokens an image."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longvision.errors import UserError
from longvision.types import Split

if TYPE_CHECKING:
    from longvision.engine.report import Outcome


def read_budgets(text: str | None) -> list[int]:
    """ "64,256" -> [64, 256], rising; none where there is no text. Raises UserError."""
    words = [] if text is None else text.split(",")
    if not all(re.fullmatch(r"\s*0*[1-9]\d*\s*", word) for word in words):
        raise UserError(f"--tokens {text}: expected the most patches of an image, one or more numbers as 64,128,256")
    return sorted(set(map(int, words)))


def evaluate_by_tokens(trainer: Any, task: Any, data: Any, split: Split, budgets: list[int]) -> "dict[int, Outcome]":
    """Evaluate with images of at most so many tokens each. Raises UserError for a model of images of one size."""
    from longvision.data.token_budget import evaluate_within
    from longvision.engine.report import evaluate
    from longvision.models.backbone import free_patch

    patch, packed = free_patch(task.model, "--tokens"), getattr(task.model, "takes_packed", False)
    outcomes = {}
    for tokens in budgets:
        evaluate_within(data, tokens, patch, packed)
        outcomes[tokens] = evaluate(trainer, task, data, split)
    return outcomes


def write_curve(outcomes: "dict[int, Outcome]", folder: Path, title: str) -> None:
    """Print a line for each number of tokens; the metrics into tokens.csv, the first of them drawn in tokens.png."""
    from longvision.benchmark.folder import make_folder, write_csv
    from longvision.engine.callbacks.progress import percent
    from longvision.viz.charts import draw_tokens

    rows = [{"tokens": tokens, **outcome.metrics} for tokens, outcome in outcomes.items()]
    shown = next(iter(outcomes.values())).words
    for row in rows:
        metrics = [f"{words} {percent(row[name])}" for name, words in shown.items()]
        print(f"{row['tokens']:>6} tokens  {', '.join(metrics)}")
    make_folder(str(folder))
    write_csv(folder / "tokens.csv", rows)
    name, words = next(iter(shown.items()))
    draw_tokens(rows, folder / "tokens.png", title, name, words)
    print(folder)
