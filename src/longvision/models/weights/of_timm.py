"""Files of weights for timm's own models: timm reads and renames what is in them, and is strict, but where the model
has another number of classes than timm knows of the file. Then it only logs what does not fit."""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from longvision.models.weights.files import other_model, read_weights

HEADS = ("head", "head.fc", "fc", "classifier")  # as others name it
logger = logging.getLogger(__name__)


def classes_of(path: str, heads: Sequence[str]) -> int | None:
    """How many classes the head in a file is for, None where none is found. Raises as `read_weights`."""
    weights, _ = read_weights(path)
    return next((len(weights[f"{head}.weight"]) for head in (*heads, *HEADS) if f"{head}.weight" in weights), None)


@contextmanager
def checked(path: str, name: str, heads: Sequence[str], in_file: int | None, wanted: int) -> Iterator[None]:
    """Looks at what timm loads meanwhile, by what it logs.

    Args:
        path: of the file.
        name: of the model.
        heads: names of the model's.
        in_file: the classes of the file's head, None for no head.
        wanted: those of the model, 0 for a model without a head, which does not need all of a file.

    Raises:
        UserError: a file of another model; a head that starts anew is told.
    """
    found: dict[str, list[str]] = {"Missing": [], "Unexpected": []}
    log = logging.getLogger("timm.models._builder")
    level, shown = log.level, log.getEffectiveLevel()

    def note(record: logging.LogRecord) -> bool:
        said = re.match(r"(Missing|Unexpected) keys \((.*?)\)", record.getMessage())
        if said:
            found[said[1]] += said[2].split(", ")
        return said is None and record.levelno >= shown

    log.addFilter(note)
    log.setLevel(logging.INFO)  # at which timm says what is missing
    try:
        yield
    finally:
        log.setLevel(level)
        log.removeFilter(note)
    missing, unknown = ([n for n in names if n.rpartition(".")[0] not in heads] for names in found.values())
    differ = [f"{name} is missing" for name in missing]
    if wanted:
        differ += [f"{name} is unknown to the model" for name in unknown]
    if differ:
        raise other_model(path, differ, name)
    if wanted and found["Missing"]:
        what = f"a head for {in_file} classes" if in_file else "no head that fits"
        logger.warning("%s has %s, the model %d: its head starts anew", path, what, wanted)
